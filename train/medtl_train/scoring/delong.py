"""Areas under the ROC curve with their variances, and the test of two areas on the same images.

DeLong, DeLong and Clarke-Pearson (Biometrics 1988) by the fast algorithm of Sun and Xu (IEEE Signal
Processing Letters 2014). Images are taken as independent: where patients have several, the variance
is too small, and the bootstrap over patients stands instead.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from medtl_train.scoring.bootstrap import Estimate, as_estimate


@dataclass(frozen=True, kw_only=True)
class Area:
    """An area under the ROC curve with the variance of its estimate."""

    auroc: float
    variance: float

    @property
    def estimate(self) -> Estimate:
        """The area with its 95 % interval, normal and cut to 0 to 1."""
        half_width = norm.ppf(0.975) * np.sqrt(self.variance)
        low, high = np.clip([self.auroc - half_width, self.auroc + half_width], 0, 1)
        return as_estimate(self.auroc, low, high)


def area(happened: NDArray[np.bool_], scores: NDArray[np.floating]) -> Area | None:
    """Return the area of scores, (N,); None with fewer than two images on either side."""
    found = _areas(happened, scores[None])
    if found is None:
        return None
    areas, covariance = found
    return Area(auroc=float(areas[0]), variance=float(covariance[0, 0]))


def paired_p_value(
    happened: NDArray[np.bool_], one: NDArray[np.floating], other: NDArray[np.floating]
) -> float:
    """Return the two-sided p-value of two areas on the same images being equal; NaN as `area`.

    Parameters
    ----------
    happened
        (N,).
    one, other
        Scores of two models, (N,).
    """
    found = _areas(happened, np.stack([one, other]))
    if found is None:
        return float("nan")
    areas, covariance = found
    change = areas[1] - areas[0]
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if change == 0 or variance <= 0:  # without variance no change was seen in any pair of images
        return 1.0 if change == 0 else 0.0
    return float(2 * norm.sf(abs(change) / np.sqrt(variance)))


def _areas(
    happened: NDArray[np.bool_], scores: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the areas of M x N scores, (M,), and the covariance of their estimates, M x M."""
    with_it, without = scores[:, happened], scores[:, ~happened]
    m, n = with_it.shape[1], without.shape[1]
    if min(m, n) < 2:
        return None
    among_all = rankdata(scores, axis=1)
    # For each image with the finding: the share of the others that it lies above; and the reverse.
    above = (among_all[:, happened] - rankdata(with_it, axis=1)) / n
    below = 1 - (among_all[:, ~happened] - rankdata(without, axis=1)) / m
    covariance = np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n
    return above.mean(axis=1), covariance
