"""What comes out: a result for each image, or the coded reason why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.aggregation import Aggregation
from medtl_runtime.answers import Answers, only, require_only
from medtl_runtime.errors import ScanError
from medtl_runtime.heads import Head
from medtl_runtime.intended_use import Mismatch
from medtl_runtime.novelty import Novelty
from medtl_runtime.recipe import Canonical
from medtl_runtime.scan import Header


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """What the heads of the model say of something."""

    answers: Answers
    """By the names of the heads, in their order."""

    @property
    def status(self) -> str:
        """``ok``, or ``abstained`` where no head has a finding or a value."""
        abstained = all(one.is_abstained for one in self.answers.values())
        return "abstained" if abstained else "ok"

    @property
    def finding(self) -> str | None:
        """Of the only head: the class at the operating point; None where the model abstains.

        It, and the next two, raise `UsageError` for several heads, and for a regression.
        """
        return require_only(self.answers, "finding").finding

    @property
    def probabilities(self) -> dict[str, float]:
        """Of the only head: calibrated probability of each class; they add up to 1."""
        return require_only(self.answers, "probabilities").probabilities or {}

    @property
    def prediction_set(self) -> tuple[str, ...] | None:
        """Of the only head: the classes that triage cannot exclude; None without triage."""
        return require_only(self.answers, "prediction set").prediction_set

    def answers_to_json(self) -> dict[str, Any]:
        """Return the fields of a row that say what was found; null where heads are several."""
        alone = only(self.answers)
        flat = {} if alone is None else alone.to_json()
        return {
            "status": self.status,
            **{name: flat.get(name) for name in ("finding", "probabilities", "prediction_set")},
            "answers": {name: answer.to_json() for name, answer in self.answers.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Result(Answered):
    """What the model says of one image."""

    scan: str
    frame: int
    """Index of the frame in the scan, from 0."""
    header: Header = field(repr=False)
    heads: tuple[Head, ...] = field(repr=False)
    """What the model answers, and which columns of ``logits`` and ``cam`` are whose."""
    novelty: Novelty | None
    """How unlike the training data the image is; None where the model file holds no reference."""
    warnings: tuple[Mismatch, ...]
    """Where the header departs from the intended use, without being refused for it."""
    logits: NDArray[np.float32]
    """The columns of all heads, (K,)."""
    cam: NDArray[np.float32] = field(repr=False)
    """Activation maps, K x h x w; the mean over a map is the column's logit."""
    embedding: NDArray[np.float32] = field(repr=False)
    """Shape (D,)."""
    canonical: Canonical = field(repr=False)
    """The image as the network saw it."""
    model: dict[str, str | None]
    """Name, version, precision and digest of the model file, and the digest of its site file."""
    engine: str
    milliseconds: dict[str, float]
    """Wall time of the steps: read (with decoding), prepare, run (its share of a batch)."""

    @property
    def sop_instance_uid(self) -> str:
        """Of the DICOM object; empty for other images."""
        return self.header.sop_instance_uid

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values, without pixels and maps; see `docs/result.md`."""
        return {
            "scan": self.scan,
            "frame": self.frame,
            "sop_instance_uid": self.sop_instance_uid,
            **self.answers_to_json(),
            "logits": [round(float(logit), 5) for logit in self.logits],
            "novelty": None if self.novelty is None else self.novelty.to_json(),
            "warnings": [warning.to_json() for warning in self.warnings],
            "voi": self.canonical.voi,
            "model": self.model,
            "engine": self.engine,
            "milliseconds": {step: round(ms, 2) for step, ms in self.milliseconds.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Failure:
    """An image without a score, and why."""

    scan: str
    error: ScanError
    frame: int | None = None
    """None where the whole scan failed."""
    header: Header = field(default_factory=Header, repr=False)

    @property
    def status(self) -> str:
        """``refused`` where the image could be read, else ``error``."""
        return self.error.status

    def to_json(self) -> dict[str, Any]:
        """Return the failure as JSON values; see `docs/result.md`."""
        return {
            "scan": self.scan,
            "frame": self.frame,
            "sop_instance_uid": self.header.sop_instance_uid,
            "status": self.status,
            "reason": self.error.code,
            "message": self.error.reason,
            "attribute": self.error.attribute,
            "found": self.error.found,
            "expected": self.error.expected,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseResult(Answered):
    """What the model says of a whole series, and of each of its slices."""

    scan: str
    series_instance_uid: str
    aggregation: Aggregation
    notes: tuple[str, ...]
    """What is unusual of the series, without being refused for it."""
    slices: Sequence[Result | Failure]
    """In the order of the positions; slices that were refused as novel are not aggregated."""

    @property
    def scored(self) -> list[Result]:
        """The slices that were aggregated."""
        return [one for one in self.slices if isinstance(one, Result)]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values; see `docs/result.md`."""
        first = self.scored[0]
        return {
            "scan": self.scan,
            "series_instance_uid": self.series_instance_uid,
            **self.answers_to_json(),
            "aggregation": str(self.aggregation),
            "notes": list(self.notes),
            "model": first.model,
            "engine": first.engine,
            "slices": [one.to_json() for one in self.slices],
        }


Outcome = Result | CaseResult | Failure


def without_pixels(result: Result) -> Result:
    """Return a result without its image and maps, a few hundred KiB, so that many can be kept."""
    canonical = replace(result.canonical, pixels=np.empty((0, 0, 0), np.uint16))
    return replace(result, canonical=canonical, cam=np.empty((0, 0, 0), np.float32))
