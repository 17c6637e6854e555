"""How logits become findings; the part of a model that a site may fit to its own cases.

The exporter writes a `Decision` into the model file, and `medtl-infer calibrate` another one into
the site file beside it (see `medtl_runtime.site`). `medtl_runtime.answers` applies it.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head, Kind

Rule = Literal["argmax", "threshold", "median", "value"]

_RULES: Mapping[Kind, tuple[Rule, ...]] = {
    "multiclass": ("argmax", "threshold"),
    "binary": ("argmax", "threshold"),
    "ordinal": ("median",),
    "regression": ("value",),
}


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """How an answer is chosen from what the network says.

    ``argmax`` takes the most probable class. ``threshold``, for two classes, takes ``positive``
    when its probability is at least ``threshold``. ``median``, for grades, takes the lowest grade
    that at least half of the probability does not lie above, which makes the least absolute error
    in grades. ``value`` is that of a regression.
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
        if self.rule == "median":
            return classes[int(np.argmax(np.cumsum(probabilities) >= 0.5))]
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
class Margin:
    """How far a regression's value may be off: split conformal prediction (Lei et al., 2018)."""

    coverage: float
    """Of the images, at least this share has its true value within the interval, 0 to 1."""
    half_width: float
    """The interval is the value plus or minus this, in the head's unit; 0 or more."""
    images: int
    """How many it was fitted on."""


@dataclass(frozen=True, kw_only=True)
class NoveltyCutoffs:
    """Above which scores an image is refused as unlike the training data; see `novelty`."""

    energy: float | None
    """None where no head has classes."""
    mahalanobis: float
    false_refusal_rate: float
    """Share of images like those of the fit that are refused, 0 to 1; by either score."""
    images: int
    """How many the cut-offs were fitted on."""


@dataclass(frozen=True, kw_only=True)
class HeadDecision:
    """Everything between a head's columns of the logits and its answer."""

    temperature: float = 1.0
    """The columns are divided by it (Guo et al., ICML 2017); 1 for a regression."""
    operating_point: OperatingPoint = OperatingPoint()
    triage: Triage | None = None
    """None: the head never abstains."""
    interval: Margin | None = None
    """Of a regression; None: its value has no interval."""

    def finding(
        self, classes: Sequence[str], probabilities: NDArray[np.float64]
    ) -> tuple[str | None, tuple[str, ...] | None]:
        """Return the finding and the prediction set of one image or case.

        The finding is None where the head abstains, the set where there is no triage;
        ``probabilities`` has shape (K,).
        """
        finding = self.operating_point.decide(classes, probabilities)
        if self.triage is None:
            return finding, None
        possible = self.triage.prediction_set(classes, probabilities)
        return finding if possible == (finding,) else None, possible

    @property
    def is_fitted(self) -> bool:
        """Whether something was fitted that holds for single images or for series only."""
        return bool(self.operating_point.rule == "threshold" or self.triage or self.interval)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Everything between the logits and the findings."""

    heads: tuple[HeadDecision, ...]
    """One for each head of the model, in their order."""
    novelty: NoveltyCutoffs | None = None
    """None: no image is refused as novel."""

    def check(self, heads: Sequence[Head]) -> None:
        """Raise `UsageError` naming the field that does not fit the heads."""
        if len(self.heads) != len(heads):
            raise UsageError(f"decision about {len(self.heads)} heads; the model has {len(heads)}")
        for head, own in zip(heads, self.heads, strict=True):
            _check_head(own, head)
        if self.novelty is not None:
            _check_novelty(self.novelty, heads)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; `from_json` is its inverse."""
        return {**asdict(self), "heads": [_head_to_json(one) for one in self.heads]}

    @staticmethod
    def from_json(data: Mapping[str, Any], heads: Sequence[Head]) -> "Decision":
        """Read what `to_json` wrote.

        Raises
        ------
        UsageError
            A field is missing, unknown, or does not fit the heads.
        """
        try:
            fields = dict(data)
            decision = Decision(
                heads=tuple(map(_head_decision, fields.pop("heads"))),
                novelty=_novelty(fields.pop("novelty")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as cause:
            raise UsageError(f"malformed decision ({cause})") from cause
        if fields:
            raise UsageError(f"decision with unknown fields: {', '.join(sorted(fields))}")
        decision.check(heads)
        return decision


def plain_point(head: Head) -> OperatingPoint:
    """Return how a head's answer is chosen where nothing was fitted."""
    return OperatingPoint(rule=_RULES[head.kind][0])


def plain_decision(heads: Sequence[Head]) -> Decision:
    """Return a decision to which nothing was fitted."""
    return Decision(heads=tuple(HeadDecision(operating_point=plain_point(one)) for one in heads))


def _head_to_json(decision: HeadDecision) -> dict[str, Any]:
    document = asdict(decision)
    if decision.triage is not None:
        document["triage"]["thresholds"] = list(decision.triage.thresholds)
    return document


def _head_decision(data: Mapping[str, Any]) -> HeadDecision:
    given = dict(data)
    triage, interval = given.pop("triage"), given.pop("interval")
    if triage is not None:
        triage = Triage(**{**triage, "thresholds": tuple(map(_number, triage["thresholds"]))})
    decision = HeadDecision(
        temperature=_number(given.pop("temperature")),
        operating_point=OperatingPoint(**given.pop("operating_point")),
        triage=triage,
        interval=None if interval is None else Margin(**interval),
    )
    if given:
        raise ValueError(f"unknown fields of a head: {', '.join(sorted(given))}")
    return decision


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _novelty(data: Any) -> NoveltyCutoffs | None:
    return None if data is None else NoveltyCutoffs(**data)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def _check_count(images: object) -> None:
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise UsageError(f"fitted on {images} images; expected 1 or more")


def _check_head(decision: HeadDecision, head: Head) -> None:
    _check_point(decision.operating_point, head)
    if not 0 < decision.temperature < math.inf:
        raise UsageError(f"temperature is {decision.temperature}; expected more than 0")
    if head.kind == "regression":
        if decision.temperature != 1 or decision.triage is not None:
            raise UsageError(f"head {head.name}: a regression has no temperature and no triage")
    elif decision.interval is not None:
        raise UsageError(f"head {head.name} is {head.kind}; only a regression has an interval")
    if decision.triage is not None:
        _check_triage(decision.triage, head.classes)
    if decision.interval is not None:
        _check_margin(decision.interval)


def _check_point(point: OperatingPoint, head: Head) -> None:
    allowed = _RULES[head.kind]
    if point.rule not in allowed:
        expected = f"{' or '.join(allowed)} for {head.kind}"
        raise UsageError(f"operating point rule is {point.rule}; expected {expected}")
    if not isinstance(point.chosen, str):
        raise UsageError(f"operating point chosen is {point.chosen}; expected words")
    if point.positive is not None and point.positive not in head.classes:
        raise UsageError(f"operating point positive is {point.positive}; expected a class")
    if point.rule != "threshold" and point.threshold is not None:
        raise UsageError(f"operating point with a threshold {point.threshold} for {point.rule}")
    if point.rule == "threshold" and (
        len(head.classes) != 2 or point.positive is None or not _is_share(point.threshold)
    ):
        raise UsageError("operating point with a threshold that fits no class")


def _check_triage(triage: Triage, classes: Sequence[str]) -> None:
    if not _is_share(triage.error_rate):
        raise UsageError(f"triage error_rate is {triage.error_rate}; expected 0 to 1")
    _check_count(triage.images)
    if len(triage.thresholds) != len(classes) or not all(map(_is_share, triage.thresholds)):
        raise UsageError(f"triage thresholds are {triage.thresholds}; expected one of 0 to 1 each")


def _check_margin(interval: Margin) -> None:
    if not _is_share(interval.coverage):
        raise UsageError(f"interval coverage is {interval.coverage}; expected 0 to 1")
    if not _is_finite(interval.half_width) or interval.half_width < 0:
        raise UsageError(f"interval half_width is {interval.half_width}; expected 0 or more")
    _check_count(interval.images)


def _check_novelty(cutoffs: NoveltyCutoffs, heads: Sequence[Head]) -> None:
    scored = any(head.kind != "regression" for head in heads)
    if not scored and cutoffs.energy is not None:
        raise UsageError(f"novelty energy is {cutoffs.energy}, and no head has classes")
    for field in ("energy", "mahalanobis") if scored else ("mahalanobis",):
        value = getattr(cutoffs, field)
        if not _is_finite(value):
            raise UsageError(f"novelty {field} is {value}; expected a number")
    if not _is_share(cutoffs.false_refusal_rate):
        found = cutoffs.false_refusal_rate
        raise UsageError(f"novelty false_refusal_rate is {found}; expected 0 to 1")
    _check_count(cutoffs.images)


def probabilities(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Return softmax(logits / temperature) over the last axis, in double precision."""
    scaled = np.asarray(logits, np.float64) / temperature
    shifted = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
