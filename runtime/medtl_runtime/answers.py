"""What each head of a model answers; the one place where logits become findings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.aggregation import Aggregation, aggregate, aggregate_grades, aggregate_values
from medtl_runtime.decision import Decision, HeadDecision
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head, Kind, columns_of


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where the true value of a regression lies, in the head's unit."""

    low: float
    high: float
    coverage: float
    """Share of images for which that holds, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one head says of an image, or of a series."""

    kind: Kind
    finding: str | None = None
    """The class at the operating point; None where the head abstains, and for a regression."""
    probabilities: dict[str, float] | None = None
    """Calibrated probability of each class, adding up to 1; None for a regression."""
    prediction_set: tuple[str, ...] | None = None
    """The classes that triage cannot exclude; None without triage."""
    value: float | None = None
    """Of a regression, in its unit; None for other heads."""
    interval: Interval | None = None
    """Of the value; None where none was fitted."""
    unit: str | None = None
    """Of the value, in UCUM; None where there is none."""

    @property
    def is_abstained(self) -> bool:
        """Whether there is neither a finding nor a value."""
        return self.finding is None and self.value is None

    @property
    def why_abstained(self) -> str:
        """Why there is no finding, as half a sentence."""
        if not self.prediction_set:
            return "every class is excluded, as it resembles none"
        return f"it cannot exclude {' or '.join(self.prediction_set)}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; see `docs/result.md`."""
        chances, possible = self.probabilities, self.prediction_set
        rounded = None if chances is None else {k: round(p, 6) for k, p in chances.items()}
        return {
            **asdict(self),
            "probabilities": rounded,
            "prediction_set": None if possible is None else list(possible),
        }


Answers = Mapping[str, Answer]
"""By the names of the heads, in the order of the model."""


def answers_of(heads: Sequence[Head], decision: Decision, logits: NDArray[np.floating]) -> Answers:
    """Return what each head says of one image; ``logits`` holds the columns of all, (K,)."""
    answers = {}
    for head, own, columns in zip(heads, decision.heads, columns_of(heads), strict=True):
        if head.kind == "regression":
            answers[head.name] = _of_value(head, own, float(head.values(logits[columns])))
        else:
            chances = head.probabilities(logits[columns], own.temperature)
            answers[head.name] = _of_chances(head, own, chances)
    return answers


def combined(
    heads: Sequence[Head],
    decision: Decision,
    slices: Sequence[Answers],
    aggregation: Aggregation,
) -> Answers:
    """Return what each head says of a series, from its slices, at least one."""
    answers = {}
    for head, own in zip(heads, decision.heads, strict=True):
        some = [one[head.name] for one in slices]
        if head.kind == "regression":
            values = np.array([one.value for one in some], np.float64)
            answers[head.name] = _of_value(head, own, aggregate_values(values, aggregation))
        else:
            chances = np.array([list((one.probabilities or {}).values()) for one in some])
            pooled = case_probabilities(head, own, chances, aggregation)
            answers[head.name] = _of_chances(head, own, pooled)
    return answers


def case_probabilities(
    head: Head, decision: HeadDecision, slices: NDArray[np.float64], aggregation: Aggregation
) -> NDArray[np.float64]:
    """Return the class probabilities of a case, (K,), from those of its slices, S x K."""
    if head.kind == "ordinal":
        return aggregate_grades(slices, aggregation)
    return aggregate(slices, aggregation, positive_of(head, decision))


def positive_of(head: Head, decision: HeadDecision) -> int | None:
    """Return the index of the class that a head looks for; a binary head always has one."""
    name = decision.operating_point.positive
    if name is not None:
        return head.classes.index(name)
    return 1 if head.kind == "binary" else None


def _of_chances(head: Head, decision: HeadDecision, chances: NDArray[np.float64]) -> Answer:
    finding, possible = decision.finding(head.classes, chances)
    return Answer(
        kind=head.kind,
        finding=finding,
        probabilities=dict(zip(head.classes, map(float, chances), strict=True)),
        prediction_set=possible,
    )


def _of_value(head: Head, decision: HeadDecision, value: float) -> Answer:
    margin = decision.interval
    interval = None
    if margin is not None:
        low, high = value - margin.half_width, value + margin.half_width
        interval = Interval(low=low, high=high, coverage=margin.coverage)
    return Answer(kind=head.kind, value=value, interval=interval, unit=head.unit or None)


def only(answers: Answers) -> Answer | None:
    """Return the answer of the only head; None where there are several."""
    return next(iter(answers.values())) if len(answers) == 1 else None


def require_only(answers: Answers, field: str) -> Answer:
    """Return the answer of the only head, which has to have classes.

    Raises
    ------
    UsageError
        There are several heads, or it is a regression; the message says what to use.
    """
    answer = only(answers)
    if answer is None:
        names = ", ".join(answers)
        first = next(iter(answers))
        found = f"the model has {len(answers)} heads ({names}), and no single {field}"
        raise UsageError(f'{found}; use answers["{first}"]')
    if answer.kind == "regression":
        (name,) = answers
        raise UsageError(f'head {name} is a regression and has no {field}; use answers["{name}"]')
    return answer


def label_of(heads: Sequence[Head], head: Head, name: str) -> str:
    """Return a class's name among all heads: by itself where there is one head, else HEAD=CLASS."""
    return name if len(heads) == 1 else f"{head.name}={name}"
