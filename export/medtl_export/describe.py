"""Builds the description that goes into the file: what the model is, comes from and needs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medtl_export import compare, graph
from medtl_export.choose import Chosen
from medtl_export.targets import Target
from medtl_runtime import __version__
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.decision import Decision
from medtl_runtime.intended_use import IntendedUse
from medtl_runtime.modelfile import Description, SelfTest
from medtl_runtime.novelty import EmbeddingReference
from medtl_runtime.selftest import synthetic_logits
from medtl_train.checkpoint import About

OLDEST_ONNXRUNTIME = "1.23"
"""The oldest release that medtl installs and is tested with; see its extras ``cpu`` and ``gpu``."""

_SEEDS = (1, 2, 3, 4)
# Of the largest stored logit: float kernels differ in the last digits, int8 kernels by a step of
# the activations' grid here and there; a saturating kernel is off by far more.
_SELF_TEST_TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2}


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """What an export arrived at."""

    about: About
    summary: Mapping[str, Any]
    """The run's ``metrics.json``."""
    chosen: Chosen
    target: Target
    parity: compare.Parity
    decision: Decision
    embedding_reference: EmbeddingReference | None
    aggregation: Aggregation
    intended_use: IntendedUse


def describe(name: str, contents: Contents) -> Description:
    """Return the description of a model file."""
    about, summary = contents.about, contents.summary
    chosen = contents.chosen
    return Description(
        name=name,
        version=summary["data"]["fingerprint"].removeprefix("sha256:")[:12],
        heads=about.heads,
        recipe=about.recipe,
        decision=contents.decision,
        aggregation=contents.aggregation,
        intended_use=contents.intended_use,
        embedding_reference=contents.embedding_reference,
        self_test=_self_test(contents),
        target=contents.target.name,
        precision=chosen.precision,
        quantisation=chosen.account,
        provenance=_provenance(contents),
        requires={
            "ir_version": chosen.model.ir_version,
            "opset": graph.opset(chosen.model),
            "onnxruntime": OLDEST_ONNXRUNTIME,
        },
    )


def _self_test(contents: Contents) -> SelfTest:
    chosen = contents.chosen
    logits = synthetic_logits(chosen.session, contents.about.recipe, _SEEDS)
    return SelfTest(
        seeds=_SEEDS,
        logits=tuple(tuple(float(x) for x in row) for row in logits),
        tolerance=_SELF_TEST_TOLERANCE[chosen.precision] * max(1.0, float(np.abs(logits).max())),
    )


def _provenance(contents: Contents) -> dict[str, Any]:
    """Return where the model comes from, without any path of this machine."""
    about, summary = contents.about, contents.summary
    configuration = {
        name: _without_folder(value) if name in _PATHS else value
        for name, value in summary["config"].items()
    }
    return {
        "run": summary["name"],
        "architecture": about.arch,
        "head": about.head,
        "data_fingerprint": about.fingerprint,
        "images": summary["data"]["images"],
        "patients": summary["data"]["patients"],
        "targets": {split: _counted(rows) for split, rows in summary["data"]["targets"].items()},
        "patients_known": summary["data"]["patients_known"],
        "configuration": configuration,
        "parent_weights": Path(summary["transfer"]["source"]).name,
        "validation": summary["validation"],
        "test": summary["test"],
        "external": summary["external"],
        "distillation": summary.get("distillation"),
        "parity": asdict(contents.parity),
        "versions": {
            **graph.versions(),
            **summary["training"]["versions"],
            "medtl": __version__,
        },
    }


_PATHS = ("from_run", "weights", "external", "cache")
"""Options whose values may be paths of this machine."""


def _without_folder(value: Any) -> Any:
    """Return the name of a path, or of each of several."""
    if isinstance(value, list | tuple):
        return [_without_folder(one) for one in value]
    return Path(value).name if isinstance(value, str) and value else value


def _counted(targets: Mapping[str, Any]) -> dict[str, Any]:
    """Return how often each head's classes are, without the least and greatest of its values.

    These are of one patient each.
    """
    kept = ("counts", "median", "unknown")
    return {
        head: {name: row[name] for name in kept if name in row} for head, row in targets.items()
    }
