"""Figures of decisions: of a table of the images by true class and by what they were called."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Table = NDArray[Any]
"""Images of each true class (row) by what they were called (column), K x K."""


def confusion(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    classes: int,
    weights: NDArray[np.floating] | None = None,
) -> Table:
    """Return the table of labels, (N,), each counted ``weights`` times."""
    cells = np.bincount(labels * classes + predicted, weights, minlength=classes**2)
    return cells.reshape(classes, classes)


def decisions(table: Table, chosen: Sequence[int]) -> dict[str, float]:
    """Return shares of right decisions; NaN where one is not defined.

    F1, recall, precision and specificity are means over the classes ``chosen``, each against the
    rest; a class of two is chosen alone.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        hits = np.diag(table)
        actual, called, total = table.sum(1), table.sum(0), table.sum()
        recalls, precisions = hits / actual, hits / called
        specificities = (total - actual - called + hits) / (total - actual)
        f1s = 2 * hits / (actual + called)
        # A class that is never called has no precision; it counts as 0, as in scikit-learn.
        precisions = np.where(called > 0, precisions, 0 if total else np.nan)
        # Sums, because `mean` takes most of the time of a bootstrap of few images.
        shares = {
            "accuracy": hits.sum() / total,
            "balanced_accuracy": recalls.sum() / len(table),
            "f1": f1s[chosen].sum() / len(chosen),
            "recall": recalls[chosen].sum() / len(chosen),
            "precision": precisions[chosen].sum() / len(chosen),
            "specificity": specificities[chosen].sum() / len(chosen),
        }
    return {name: float(share) for name, share in shares.items()}


def grades(table: Table) -> dict[str, float]:
    """Return how far grades are from the true ones; NaN where that is not defined.

    - ``quadratic_weighted_kappa``: agreement beyond chance, errors weighted by the square of their
      distance (Cohen, Psychological Bulletin 1968); 1 is full agreement and 0 that of chance;
    - ``within_one_grade``: the share that is at most one grade away;
    - ``grade_mae``: the mean distance, in grades.
    """
    index = np.arange(len(table))
    distance = np.abs(index[:, None] - index)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = table.sum()
        by_chance = np.outer(table.sum(1), table.sum(0)) / total
        found = {
            "quadratic_weighted_kappa": 1
            - (distance**2 * table).sum() / (distance**2 * by_chance).sum(),
            "within_one_grade": table[distance <= 1].sum() / total,
            "grade_mae": (distance * table).sum() / total,
        }
    return {name: float(value) for name, value in found.items()}
