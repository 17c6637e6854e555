"""How well scores rank the images with a finding above those without, for many weightings."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtl_train.scoring.bootstrap import Weights

_ROUNDING = 1e-9


class Ranking:
    """Images in falling order of a score.

    Sorted once, it gives the figures for many weights; a thousand of scikit-learn's take minutes.
    """

    def __init__(self, is_positive: NDArray[np.bool_], scores: NDArray[np.floating]) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._is_positive = is_positive[self._order]
        # Equal scores share one threshold: what counts is the last of each run of them.
        changes = ordered[1:] != ordered[:-1]
        self._last = np.flatnonzero(np.append(changes, [True] * bool(len(ordered))))

    def curve(self, weights: Weights) -> "Curve | None":
        """Return sensitivity and fall-out at all thresholds; None without images on both sides.

        ``weights`` counts each image so many times, (N,).
        """
        ordered = weights[self._order]
        found = ordered * self._is_positive
        hits, alarms = np.cumsum(found)[self._last], np.cumsum(ordered - found)[self._last]
        if not len(hits) or hits[-1] == 0 or alarms[-1] == 0:
            return None
        return Curve(hits=hits, alarms=alarms)


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """What is called positive at falling thresholds, (L,) each; both end with all images."""

    hits: NDArray[np.floating]
    """Images with the finding at or above each threshold."""
    alarms: NDArray[np.floating]
    """Images without it."""

    @property
    def auroc(self) -> float:
        """Area under the receiver operating characteristic, by trapezia."""
        recall = self.hits - _steps(self.hits) / 2
        return float(_steps(self.alarms) @ recall / (self.hits[-1] * self.alarms[-1]))

    @property
    def average_precision(self) -> float:
        """Mean of the precision at each threshold, weighted by the recall gained there."""
        called = np.maximum(self.hits + self.alarms, np.finfo(float).tiny)
        return float(_steps(self.hits) @ (self.hits / called) / self.hits[-1])

    def sensitivity_at(self, specificity: float) -> float:
        """Return the highest sensitivity of a threshold with at least that specificity."""
        allowed = (1 - specificity + _ROUNDING) * self.alarms[-1]
        index = np.searchsorted(self.alarms, allowed, side="right")
        return float(self.hits[index - 1] / self.hits[-1]) if index else 0.0

    def specificity_at(self, sensitivity: float) -> float:
        """Return the highest specificity of a threshold with at least that sensitivity."""
        needed = (sensitivity - _ROUNDING) * self.hits[-1]
        index = np.searchsorted(self.hits, needed)
        return float(1 - self.alarms[index] / self.alarms[-1])


def _steps(cumulative: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return what was summed up; several times faster than `numpy.diff` with ``prepend``."""
    steps = cumulative.copy()
    steps[1:] -= cumulative[:-1]
    return steps
