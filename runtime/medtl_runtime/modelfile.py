"""What a medtl model file says of itself; `docs/model-file.md` specifies it.

The description is one JSON document under the key ``medtl`` of the ONNX file's
``metadata_props``. The exporter builds it from these types and the runtime reads it into them.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import MedtlError, ModelUnusable
from medtl_runtime.recipe import Recipe

METADATA_KEY = "medtl"
SCHEMA_VERSION = 1

INPUT = "image"
OUTPUTS = ("logits", "cam", "embedding")

Rule = Literal["argmax", "threshold"]


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """How a class is chosen from the probabilities.

    ``argmax`` takes the most probable class. ``threshold``, for two classes, takes ``positive``
    when its probability is at least ``threshold``.
    """

    rule: Rule = "argmax"
    positive: str | None = None
    threshold: float | None = None
    chosen: str = ""
    """On what, and by which criterion, the point was chosen."""

    def decide(self, classes: Sequence[str], probabilities: NDArray[np.float64]) -> str:
        """Return the class for one image; ``probabilities`` has shape (K,)."""
        if self.rule == "argmax":
            return classes[int(np.argmax(probabilities))]
        assert self.positive is not None
        assert self.threshold is not None
        positive = classes.index(self.positive)
        chosen = positive if probabilities[positive] >= self.threshold else 1 - positive
        return classes[chosen]


@dataclass(frozen=True, kw_only=True)
class IntendedUse:
    """What the model was made for; an empty field says nothing."""

    modalities: tuple[str, ...] = ()
    """DICOM Modality (0008,0060) values of the training data."""


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
    task: str
    classes: tuple[str, ...]
    recipe: Recipe
    self_test: SelfTest
    operating_point: OperatingPoint = OperatingPoint()
    temperature: float = 1.0
    """Logits are divided by it before the softmax (Guo et al., ICML 2017)."""
    intended_use: IntendedUse = IntendedUse()
    precision: str = "fp32"
    quantisation: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any]
    requires: Mapping[str, Any]

    def to_json(self) -> str:
        """Return the document that goes into the file."""
        document = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        document["recipe"] = self.recipe.to_json()
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
        except (MedtlError, KeyError, TypeError, ValueError, AttributeError) as cause:
            raise ModelUnusable(path, f"malformed description ({cause})") from cause
        return description


def _description(document: dict[str, Any]) -> Description:
    test, use = document.pop("self_test"), document.pop("intended_use")
    return Description(
        recipe=Recipe.from_json(document.pop("recipe")),
        classes=tuple(document.pop("classes")),
        operating_point=OperatingPoint(**document.pop("operating_point")),
        intended_use=IntendedUse(modalities=tuple(use["modalities"])),
        self_test=SelfTest(
            seeds=tuple(test["seeds"]),
            logits=tuple(tuple(row) for row in test["logits"]),
            tolerance=float(test["tolerance"]),
        ),
        **document,
    )


def _check(description: Description, path: Path | str) -> None:
    classes, point = description.classes, description.operating_point
    for field, kind in (
        ("name", str),
        ("version", str),
        ("precision", str),
        ("quantisation", Mapping | None),
        ("provenance", Mapping),
        ("requires", Mapping),
    ):
        if not isinstance(getattr(description, field), kind):
            raise ModelUnusable(path, f"its {field} is {getattr(description, field)}")
    if not all(isinstance(name, str) for name in classes):
        raise ModelUnusable(path, f"its classes are {classes}; expected names")
    if description.task != "multiclass":
        raise ModelUnusable(path, f"task {description.task}; this version runs multiclass")
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ModelUnusable(path, f"its classes are {classes}; expected two or more different ones")
    if point.rule not in get_args(Rule):
        raise ModelUnusable(path, f"operating point rule {point.rule}")
    if point.rule == "threshold" and (
        len(classes) != 2
        or point.positive not in classes
        or not isinstance(point.threshold, int | float)
        or not 0 <= point.threshold <= 1
    ):
        raise ModelUnusable(path, "operating point with a threshold that fits no class")
    if not 0 < description.temperature < math.inf:
        raise ModelUnusable(path, f"temperature {description.temperature}; expected more than 0")
    _check_self_test(description.self_test, len(classes), path)


def _check_self_test(test: SelfTest, classes: int, path: Path | str) -> None:
    if not test.seeds or not all(isinstance(s, int) and 0 <= s < 2**32 for s in test.seeds):
        raise ModelUnusable(path, f"self-test seeds {test.seeds}; expected 32-bit integers")
    if np.shape(test.logits) != (len(test.seeds), classes) or not np.isfinite(test.logits).all():
        raise ModelUnusable(path, "self-test logits that are not one row of numbers for each seed")
    if not 0 <= test.tolerance < math.inf:
        raise ModelUnusable(path, f"self-test tolerance {test.tolerance}; expected 0 or more")


def probabilities(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Return softmax(logits / temperature) over the last axis, in double precision."""
    scaled = np.asarray(logits, np.float64) / temperature
    shifted = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def file_digest(path: Path) -> str:
    """Return ``sha256:`` and the file's hexadecimal SHA-256 digest."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
