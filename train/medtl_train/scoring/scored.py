"""What the model says of the images of a split, head by head: what all figures are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.decision import OperatingPoint, plain_point
from medtl_runtime.heads import Head, columns_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Images of one split with what the model says of them, by a head with classes."""

    labels: NDArray[np.int64]
    """Index of the true class, (N,)."""
    probabilities: NDArray[np.float64]
    """(N, K)."""
    patients: NDArray[np.str_]
    """(N,)."""
    classes: tuple[str, ...]
    point: OperatingPoint
    """Its rule is ``median`` where the classes are grades."""

    @property
    def is_graded(self) -> bool:
        """Whether the classes are grades, the lowest first."""
        return self.point.rule == "median"

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Index of the class at the operating point, (N,); as `OperatingPoint.decide` does it."""
        if self.is_graded:
            return (np.cumsum(self.probabilities, axis=1) >= 0.5).argmax(axis=1)
        if self.positive is None or self.point.threshold is None:
            return self.probabilities.argmax(axis=1)
        called = self.probabilities[:, self.positive] >= self.point.threshold
        return np.where(called, self.positive, 1 - self.positive)

    @property
    def positive(self) -> int | None:
        """Index of the class to find, of two; None for more classes."""
        return None if self.point.positive is None else self.classes.index(self.point.positive)

    @property
    def events(self) -> "list[Event]":
        """What is ranked: the class to find; of more classes each; of grades each "above it"."""
        if self.is_graded:
            # Summed from the highest grade, so that small probabilities keep their digits.
            reached = np.cumsum(self.probabilities[:, ::-1], axis=1)[:, ::-1]
            return [
                Event(f"above {name}", self.labels > k, reached[:, k + 1])
                for k, name in enumerate(self.classes[:-1])
            ]
        chosen = range(len(self.classes)) if self.positive is None else [self.positive]
        return [Event(self.classes[k], self.labels == k, self.probabilities[:, k]) for k in chosen]


@dataclass(frozen=True, eq=False)
class Event:
    """A question that is true or false of each image."""

    name: str
    happened: NDArray[np.bool_]
    """(N,)."""
    probability: NDArray[np.float64]
    """(N,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredValues:
    """Images of one split with what the model says of them, by a regression."""

    values: NDArray[np.float64]
    """True values, (N,), in ``unit``."""
    predicted: NDArray[np.float64]
    """(N,)."""
    patients: NDArray[np.str_]
    """(N,)."""
    unit: str = ""


Answers = Scored | ScoredValues


def part(answers: Answers, mask: NDArray[np.bool_]) -> Answers:
    """Return the answers of some of the images; ``mask`` is (N,)."""
    patients = answers.patients[mask]
    if isinstance(answers, ScoredValues):
        true, predicted = answers.values[mask], answers.predicted[mask]
        return replace(answers, values=true, predicted=predicted, patients=patients)
    labels, chances = answers.labels[mask], answers.probabilities[mask]
    return replace(answers, labels=labels, probabilities=chances, patients=patients)


def positive_of(head: Head, named: str | None = None) -> str | None:
    """Return the class to find of a head with two: ``named``, or the second; None for others."""
    if head.kind == "binary" or (head.kind == "multiclass" and len(head.classes) == 2):
        return named if named in head.classes else head.classes[1]
    return None


def default_point(head: Head, positive: str | None = None) -> OperatingPoint:
    """Return the point before one is chosen: the more probable class."""
    found = positive_of(head, positive)
    if found is None:
        return plain_point(head)
    return OperatingPoint(rule="threshold", positive=found, threshold=0.5)


def score(
    heads: Sequence[Head],
    logits: NDArray[np.floating],
    targets: NDArray[np.floating],
    patients: NDArray[np.str_],
    *,
    temperatures: Mapping[str, float] | None = None,
    points: Mapping[str, OperatingPoint | None] | None = None,
    positive: str | None = None,
) -> dict[str, Answers]:
    """Return what each head says of the images whose target is known, by its name.

    Parameters
    ----------
    logits
        N x `width(heads)`.
    targets
        N x heads; NaN where it is not known. See `images.ImageSet.targets`.
    patients
        (N,).
    temperatures, points
        By head; 1 and `default_point` where there is none.
    positive
        Of a head with two alternatives, the one to find.
    """
    temperatures, points = temperatures or {}, points or {}
    found: dict[str, Answers] = {}
    for index, (head, columns) in enumerate(zip(heads, columns_of(heads), strict=True)):
        known = ~np.isnan(targets[:, index])
        truth, of_head = targets[known, index], logits[known, columns]
        if head.kind == "regression":
            found[head.name] = ScoredValues(
                values=truth.astype(np.float64),
                predicted=head.values(of_head),
                patients=patients[known],
                unit=head.unit,
            )
        else:
            found[head.name] = Scored(
                labels=truth.astype(np.int64),
                probabilities=head.probabilities(of_head, temperatures.get(head.name, 1.0)),
                patients=patients[known],
                classes=head.classes,
                point=points.get(head.name) or default_point(head, positive),
            )
    return found
