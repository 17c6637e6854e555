"""How logits become a finding; the part of a model that a site may fit to its own cases.

The exporter writes a `Decision` into the model file, and `medtl-infer calibrate` another one into
the site file beside it (see `medtl_runtime.site`).
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import UsageError

Rule = Literal["argmax", "threshold"]
AggregationRule = Literal["max", "mean", "top-k-mean"]


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
class Triage:
    """When the model abstains: class-wise conformal prediction (Vovk et al., 2005).

    A class is in the prediction set of an image when its probability is at least the class's
    threshold. The finding stands when it is alone in the set; otherwise the model abstains.
    """

    error_rate: float
    """Of the images of a class, at most this share lacks the class in its set, 0 to 1."""
    thresholds: tuple[float, ...]
    """(K,), each 0 to 1."""
    images: int
    """How many the thresholds were fitted on."""

    def prediction_set(
        self, classes: Sequence[str], probabilities: NDArray[np.float64]
    ) -> tuple[str, ...]:
        """Return the classes that cannot be excluded; ``probabilities`` has shape (K,)."""
        return tuple(
            name
            for name, chance, least in zip(classes, probabilities, self.thresholds, strict=True)
            if chance >= least
        )


@dataclass(frozen=True, kw_only=True)
class NoveltyCutoffs:
    """Above which scores an image is refused as unlike the training data; see `novelty`."""

    energy: float
    mahalanobis: float
    false_refusal_rate: float
    """Share of images like those of the fit that are refused, 0 to 1; by either score."""
    images: int
    """How many the cut-offs were fitted on."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Everything between logits and a finding."""

    temperature: float = 1.0
    """Logits are divided by it before the softmax (Guo et al., ICML 2017)."""
    operating_point: OperatingPoint = OperatingPoint()
    triage: Triage | None = None
    """None: the model never abstains."""
    novelty: NoveltyCutoffs | None = None
    """None: no image is refused as novel."""

    def finding(
        self, classes: Sequence[str], probabilities: NDArray[np.float64]
    ) -> tuple[str | None, tuple[str, ...] | None]:
        """Return the finding and the prediction set of one image or case.

        The finding is None where the model abstains, the set where there is no triage;
        ``probabilities`` has shape (K,).
        """
        finding = self.operating_point.decide(classes, probabilities)
        if self.triage is None:
            return finding, None
        possible = self.triage.prediction_set(classes, probabilities)
        return finding if possible == (finding,) else None, possible

    def check(self, classes: Sequence[str]) -> None:
        """Raise `UsageError` naming the field that does not fit the classes."""
        _check_point(self.operating_point, classes)
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"temperature is {self.temperature}; expected more than 0")
        if self.triage is not None:
            _check_triage(self.triage, classes)
        if self.novelty is not None:
            _check_novelty(self.novelty)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any], classes: Sequence[str]) -> "Decision":
        """Read what `to_json` wrote.

        Raises
        ------
        UsageError
            A field is missing, unknown, or does not fit the classes.
        """
        try:
            fields = dict(data)
            decision = Decision(
                temperature=_number(fields.pop("temperature")),
                operating_point=OperatingPoint(**fields.pop("operating_point")),
                triage=_triage(fields.pop("triage")),
                novelty=_novelty(fields.pop("novelty")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as cause:
            raise UsageError(f"malformed decision ({cause})") from cause
        if fields:
            raise UsageError(f"decision with unknown fields: {', '.join(sorted(fields))}")
        decision.check(classes)
        return decision


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _triage(data: Any) -> Triage | None:
    if data is None:
        return None
    return Triage(**{**data, "thresholds": tuple(map(_number, data["thresholds"]))})


def _novelty(data: Any) -> NoveltyCutoffs | None:
    return None if data is None else NoveltyCutoffs(**data)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and -sys.float_info.max <= value <= sys.float_info.max


def _check_count(images: object) -> None:
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise UsageError(f"fitted on {images} images; expected 1 or more")


def _check_point(point: OperatingPoint, classes: Sequence[str]) -> None:
    if point.rule not in get_args(Rule):
        raise UsageError(f"operating point rule is {point.rule}; expected argmax or threshold")
    if not isinstance(point.chosen, str):
        raise UsageError(f"operating point chosen is {point.chosen}; expected words")
    if point.positive is not None and point.positive not in classes:
        raise UsageError(f"operating point positive is {point.positive}; expected a class")
    if point.rule == "argmax" and point.threshold is not None:
        raise UsageError(f"operating point with a threshold {point.threshold} for argmax")
    if point.rule == "threshold" and (
        len(classes) != 2 or point.positive is None or not _is_share(point.threshold)
    ):
        raise UsageError("operating point with a threshold that fits no class")


def _check_triage(triage: Triage, classes: Sequence[str]) -> None:
    if not _is_share(triage.error_rate):
        raise UsageError(f"triage error_rate is {triage.error_rate}; expected 0 to 1")
    _check_count(triage.images)
    if len(triage.thresholds) != len(classes) or not all(map(_is_share, triage.thresholds)):
        raise UsageError(f"triage thresholds are {triage.thresholds}; expected one of 0 to 1 each")


def _check_novelty(cutoffs: NoveltyCutoffs) -> None:
    for field in ("energy", "mahalanobis"):
        value = getattr(cutoffs, field)
        if not _is_finite(value):
            raise UsageError(f"novelty {field} is {value}; expected a number")
    if not _is_share(cutoffs.false_refusal_rate):
        found = cutoffs.false_refusal_rate
        raise UsageError(f"novelty false_refusal_rate is {found}; expected 0 to 1")
    _check_count(cutoffs.images)


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """How the probabilities of a series' slices become those of the case."""

    rule: AggregationRule = "max"
    k: int | None = None
    """How many slices ``top-k-mean`` averages; None for the other rules."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(AggregationRule):
            expected = ", ".join(get_args(AggregationRule))
            raise UsageError(f"aggregation is {self.rule}; expected {expected}")
        if self.rule != "top-k-mean":
            if self.k is not None:
                found = f"aggregation {self.rule} with a k, {self.k}"
                raise UsageError(f"{found}; only top-k-mean has one")
        elif isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise UsageError(f"aggregation top-k-mean: k is {self.k}; expected 1 or more")

    @staticmethod
    def parse(text: str) -> "Aggregation":
        """Read ``max``, ``mean`` or ``top-3-mean``."""
        if text in ("max", "mean"):
            return Aggregation(rule=text)
        if match := re.fullmatch(r"top-(\d{1,6})-mean", text):
            return Aggregation(rule="top-k-mean", k=int(match[1]))
        raise UsageError(f"aggregation is {text}; expected max, mean or top-K-mean, K a number")

    def __str__(self) -> str:
        return f"top-{self.k}-mean" if self.rule == "top-k-mean" else self.rule


def probabilities(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Return softmax(logits / temperature) over the last axis, in double precision."""
    scaled = np.asarray(logits, np.float64) / temperature
    shifted = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
