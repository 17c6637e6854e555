"""What a medtl model file says of itself; `docs/model-file.md` specifies it.

The description is one JSON document under the key ``medtl`` of the ONNX file's
``metadata_props``. The exporter builds it from these types and the runtime reads it into them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from medtl_runtime.aggregation import Aggregation
from medtl_runtime.decision import Decision
from medtl_runtime.errors import MedtlError, ModelUnusable
from medtl_runtime.heads import CONTROL, Head, check_heads, width
from medtl_runtime.intended_use import IntendedUse
from medtl_runtime.novelty import EmbeddingReference
from medtl_runtime.recipe import Recipe

METADATA_KEY = "medtl"
SCHEMA_VERSION = 4

INPUT = "image"
OUTPUTS = ("logits", "cam", "embedding")


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Synthetic inputs, by seed, and the logits that the exporter's engine gave for them."""

    seeds: tuple[int, ...]
    logits: tuple[tuple[float, ...], ...]
    tolerance: float
    """Largest absolute difference of a logit that still passes."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The whole description of a model file."""

    name: str
    version: str
    heads: tuple[Head, ...]
    """What the model answers, in the order of the columns of its logits."""
    recipe: Recipe
    self_test: SelfTest
    decision: Decision
    aggregation: Aggregation = field(default_factory=Aggregation)
    """Over the slices of a series."""
    intended_use: IntendedUse = field(default_factory=IntendedUse)
    embedding_reference: EmbeddingReference | None = None
    """What embeddings of the training data look like; None where novelty is not scored."""
    target: str = "cpu"
    """What the file was made for; ``auto`` prefers its engine."""
    precision: str = "fp32"
    quantisation: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any]
    requires: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the only head."""
        (head,) = self.heads
        return head.classes

    def to_json(self) -> str:
        """Return the document that goes into the file."""
        reference = self.embedding_reference
        document = {
            "schema_version": SCHEMA_VERSION,
            **{one.name: getattr(self, one.name) for one in fields(self)},
            "heads": [head.to_json() for head in self.heads],
            "recipe": self.recipe.to_json(),
            "decision": self.decision.to_json(),
            "aggregation": asdict(self.aggregation),
            "intended_use": self.intended_use.to_json(),
            "embedding_reference": None if reference is None else reference.to_json(),
            "self_test": asdict(self.self_test),
        }
        return json.dumps(document, sort_keys=True, ensure_ascii=False)

    @staticmethod
    def from_json(text: str, path: Path | str) -> "Description":
        """Read the document.

        Raises
        ------
        ModelUnusable
            Not JSON, another schema version, a missing or malformed field.
        """
        try:
            document = json.loads(text)
            found = document.pop("schema_version")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as cause:
            raise ModelUnusable(path, "its description is not a medtl document") from cause
        if found != SCHEMA_VERSION:
            expected = f"this version of medtl reads {SCHEMA_VERSION}"
            raise ModelUnusable(path, f"schema version {found}; {expected}")
        try:
            description = _description(document)
            _check(description, path)
        except ModelUnusable:
            raise
        except (
            MedtlError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
        ) as cause:
            raise ModelUnusable(path, f"malformed description ({cause})") from cause
        return description


def _description(document: dict[str, Any]) -> Description:
    test, reference = document.pop("self_test"), document.pop("embedding_reference")
    heads = tuple(map(Head.from_json, document.pop("heads")))
    check_heads(heads)  # first, because decisions are about them
    return Description(
        recipe=Recipe.from_json(document.pop("recipe")),
        heads=heads,
        decision=Decision.from_json(document.pop("decision"), heads),
        aggregation=Aggregation(**document.pop("aggregation")),
        intended_use=IntendedUse.from_json(document.pop("intended_use")),
        embedding_reference=None if reference is None else EmbeddingReference.from_json(reference),
        self_test=SelfTest(
            seeds=tuple(test["seeds"]),
            logits=tuple(tuple(row) for row in test["logits"]),
            tolerance=float(test["tolerance"]),
        ),
        **document,
    )


def _check(description: Description, path: Path | str) -> None:
    for name, kind in (
        ("name", str),
        ("version", str),
        ("target", str),
        ("precision", str),
        ("quantisation", Mapping | None),
        ("provenance", Mapping),
        ("requires", Mapping),
    ):
        if not isinstance(getattr(description, name), kind):
            raise ModelUnusable(path, f"its {name} is {getattr(description, name)}")
    for name in ("name", "version", "target", "precision"):
        _refuse_control_characters(name, getattr(description, name), path)
    if description.decision.novelty is not None and description.embedding_reference is None:
        raise ModelUnusable(path, "novelty cut-offs without an embedding reference")
    _check_self_test(description.self_test, width(description.heads), path)


def _refuse_control_characters(field: str, text: str, path: Path | str) -> None:
    if CONTROL.search(text):
        raise ModelUnusable(path, f"its {field} is {text!a}, with a control character")


def _check_self_test(test: SelfTest, columns: int, path: Path | str) -> None:
    if not test.seeds or not all(isinstance(s, int) and 0 <= s < 2**32 for s in test.seeds):
        raise ModelUnusable(path, f"self-test seeds {test.seeds}; expected 32-bit integers")
    if np.shape(test.logits) != (len(test.seeds), columns) or not np.isfinite(test.logits).all():
        raise ModelUnusable(path, "self-test logits that are not one row of numbers for each seed")
    if not 0 <= test.tolerance < math.inf:
        raise ModelUnusable(path, f"self-test tolerance {test.tolerance}; expected 0 or more")


def file_digest(path: Path) -> str:
    """Return ``sha256:`` and the file's hexadecimal SHA-256 digest."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
