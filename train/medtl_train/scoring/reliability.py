"""Whether probabilities mean what they say: calibration errors, Brier scores, slope, intercept.

What is judged depends on the head. With a class to find it is that class's probability; with more
classes whether the most probable one is right (Guo et al., ICML 2017); with grades the probability
of lying above each grade, all taken together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from medtl_train.scoring.bootstrap import Estimate, Measure, Weights, as_estimate
from medtl_train.scoring.scored import Scored

BINS = 10

_STEPS = 50
_SMALLEST = 1e-12
"""Probabilities nearer to 0 or 1 have no finite logit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Claims:
    """Probabilities, and whether what they are of was so; an image may make several."""

    probability: NDArray[np.float64]
    """(M,), 0 to 1."""
    happened: NDArray[np.float64]
    """0 or 1, (M,)."""
    image: NDArray[np.intp]
    """Which image makes the claim, (M,)."""

    def bins(self) -> NDArray[np.intp]:
        """Return which of `BINS` equal ones, closed on the right, each probability is in, (M,)."""
        return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], self.probability)

    def equal_bins(self) -> NDArray[np.intp]:
        """Return which of `BINS` bins of nearly as many claims each, (M,)."""
        if not len(self.probability):
            return np.zeros(0, np.intp)
        edges = np.quantile(self.probability, np.linspace(0, 1, BINS + 1)[1:-1])
        return np.searchsorted(edges, self.probability)


def claims(scored: Scored) -> Claims:
    """Return what the probabilities claim."""
    images = np.arange(len(scored.labels))
    if scored.positive is None and not scored.is_graded:
        right = scored.probabilities.argmax(axis=1) == scored.labels
        highest = scored.probabilities.max(axis=1, initial=0)
        return Claims(probability=highest, happened=right.astype(float), image=images)
    events = scored.events
    return Claims(
        probability=np.concatenate([event.probability for event in events]),
        happened=np.concatenate([event.happened for event in events]).astype(float),
        image=np.tile(images, len(events)),
    )


def calibration_errors(scored: Scored) -> dict[str, float]:
    """Return how far probabilities are from the shares that were so, 0 to 1; NaN without images.

    - ``ece``: the mean distance over ten equal bins, weighted by their counts (Naeini et al., AAAI
      2015);
    - ``ece_adaptive``: the same over ten bins of as many claims each (Nixon et al., CVPR Workshops
      2019), so that no bin rests on a handful.

    Both are too high in small sets, and higher still in resamples of them, so that the quantiles of
    a bootstrap are no interval: they are given without one.
    """
    found = claims(scored)
    gap = found.happened - found.probability
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            name: float(np.abs(np.bincount(bins, gap, minlength=BINS)).sum() / np.float64(len(gap)))
            for name, bins in (("ece", found.bins()), ("ece_adaptive", found.equal_bins()))
        }


def squared_errors(scored: Scored) -> Measure:
    """Return what measures the mean squared error of the probabilities, for many weights.

    - ``brier``, of classes: of the class to find (0 to 1), else summed over the classes (0 to 2;
      Brier, Monthly Weather Review 1950);
    - ``ranked_probability_score``, of grades: summed over the splits into grades up to one and
      above it (Epstein, Journal of Applied Meteorology 1969).
    """
    errors = np.sum([(e.probability - e.happened) ** 2 for e in scored.events], axis=0)
    name = "ranked_probability_score" if scored.is_graded else "brier"

    def measure_once(weights: Weights) -> Mapping[str, float]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: float(weights @ errors / weights.sum())}

    return measure_once


def slope_and_intercept(scored: Scored) -> dict[str, Estimate]:
    """Return the logistic recalibration of the class to find (Cox, Biometrika 1958).

    - ``calibration_slope``: of the truth on the logit of the probability; 1 is right, less than 1
      is too sure, and nothing where the probabilities divide the classes without error;
    - ``calibration_intercept``: with the slope held at 1; above 0 the probabilities are too low on
      the whole (Van Calster et al., BMC Medicine 2019).

    The 95 % intervals are normal, with the variance of patients as clusters (Liang and Zeger,
    Biometrika 1986).
    """
    (event,) = scored.events
    line = logit(np.clip(event.probability, _SMALLEST, 1 - _SMALLEST))
    ones = np.ones_like(line)
    _, clusters = np.unique(scored.patients, return_inverse=True)
    truth = event.happened.astype(float)
    slope = _logistic(np.stack([line, ones], axis=1), np.zeros_like(line), truth, clusters)
    intercept = _logistic(ones[:, None], line, truth, clusters)
    return {"calibration_slope": slope, "calibration_intercept": intercept}


def _logistic(
    columns: NDArray[np.float64],
    offset: NDArray[np.float64],
    truth: NDArray[np.float64],
    clusters: NDArray[np.intp],
) -> Estimate:
    """Return the first coefficient of a logistic regression by Newton's method, as an estimate."""
    nothing = as_estimate(np.nan, np.nan, np.nan)
    if len(np.unique(truth)) < 2:
        return nothing
    coefficients = np.zeros(columns.shape[1])
    for _ in range(_STEPS):
        expected = expit(columns @ coefficients + offset)
        spread = columns * (expected * (1 - expected))[:, None]
        try:
            step = np.linalg.solve(spread.T @ columns, columns.T @ (truth - expected))
        except np.linalg.LinAlgError:
            return nothing
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-9:
            break
    else:  # separated classes: the likelihood has no maximum
        return nothing
    bread = np.linalg.inv(spread.T @ columns)
    scores = columns * (truth - expected)[:, None]
    by_patient = np.stack([np.bincount(clusters, column) for column in scores.T], axis=1)
    variance = (bread @ (by_patient.T @ by_patient) @ bread)[0, 0]
    half_width = norm.ppf(0.975) * np.sqrt(variance)
    value = coefficients[0]
    return as_estimate(value, value - half_width, value + half_width)
