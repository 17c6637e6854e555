"""From the slices of a series to their case."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import UsageError

AggregationRule = Literal["max", "mean", "top-k-mean"]

LEAST_SCORED = 0.5
"""Share of a case's slices that must not be refused as novel for the case to have a finding."""


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """How what the slices of a series say becomes what is said of the case."""

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


def too_few(scored: int, slices: int) -> bool:
    """Whether a case is refused, because so many of its slices are refused as novel."""
    return scored < max(1, LEAST_SCORED * slices)


def aggregate(
    probabilities: NDArray[np.float64], aggregation: Aggregation, positive: int | None
) -> NDArray[np.float64]:
    """Return the class probabilities of a case, (K,), which add up to 1.

    All three rules are a mean of the highest values over the slices: of one (``max``), of k
    (``top-k-mean``; of all where there are fewer) or of all (``mean``). The order of the slices
    does not change a bit of the outcome.

    With two classes and a ``positive`` one, the rule applies to the probability p of the positive
    class, and the other gets 1 - p: one suspicious slice makes a suspicious case. Otherwise it
    applies to each class by itself, and the values are divided by their sum, which is at least 1;
    no class is then preferred, and the probabilities are no longer calibrated save with ``mean``.

    Parameters
    ----------
    probabilities
        Shape (S, K), at least one slice; each row adds up to 1.
    positive
        Index of the class that is looked for; used with two classes only.
    """
    highest = _highest(probabilities, aggregation)
    if len(highest) == 2 and positive is not None:
        pooled = np.empty(2)
        pooled[positive] = highest[positive]
        pooled[1 - positive] = 1 - highest[positive]
        return pooled
    return highest / highest.sum()


def aggregate_grades(
    probabilities: NDArray[np.float64], aggregation: Aggregation
) -> NDArray[np.float64]:
    """Return the probabilities of a case's grades, (K,): severe slices make a severe case.

    The rule applies to the probability of lying above each grade. Slices' falls along the grades,
    and so does every mean of the highest: what comes out are probabilities again.

    Parameters
    ----------
    probabilities
        Shape (S, K), the lowest grade first.
    """
    above = 1 - np.cumsum(probabilities, axis=1)[:, :-1]
    pooled = np.clip(_highest(above, aggregation), 0, 1)
    return -np.diff(pooled, prepend=1, append=0)


def aggregate_values(values: NDArray[np.float64], aggregation: Aggregation) -> float:
    """Return the value of a case from those of its slices, (S,), S > 0.

    The mean with the rule ``mean``, else the median: of a quantity the largest slice says no more
    than the others, and a single odd one must not move the case.
    """
    ordered = np.sort(values)  # so that the order of the slices does not change a bit
    return float(ordered.mean() if aggregation.rule == "mean" else np.median(ordered))


def _highest(values: NDArray[np.float64], aggregation: Aggregation) -> NDArray[np.float64]:
    """Return the mean over the highest slices, by columns, of values (S, K)."""
    slices = len(values)
    assert slices > 0
    count = {"max": 1, "mean": slices, "top-k-mean": aggregation.k}[aggregation.rule]
    assert count is not None
    # Sorted, so that equal sets of slices are added up in the same order.
    return np.sort(values, axis=0)[-min(count, slices) :].mean(axis=0)
