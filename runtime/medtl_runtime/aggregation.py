"""From the probabilities of slices to those of their case."""

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.decision import Aggregation

LEAST_SCORED = 0.5
"""Share of a case's slices that must not be refused as novel for the case to have a finding."""


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
    slices, classes = probabilities.shape
    assert slices > 0
    count = {"max": 1, "mean": slices, "top-k-mean": aggregation.k}[aggregation.rule]
    assert count is not None
    # Sorted, so that equal sets of slices are added up in the same order.
    highest = np.sort(probabilities, axis=0)[-min(count, slices) :].mean(axis=0)
    if classes == 2 and positive is not None:
        pooled = np.empty(2)
        pooled[positive] = highest[positive]
        pooled[1 - positive] = 1 - highest[positive]
        return pooled
    return highest / highest.sum()
