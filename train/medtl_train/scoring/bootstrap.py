"""Intervals from patients drawn with replacement (Efron and Tibshirani, 1993).

Patients are drawn, each with all images, because images of one patient are not independent.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000

Weights = NDArray[np.floating]
"""How often each image counts, (N,)."""
Measure = Callable[[Weights], Mapping[str, float]]
"""Returns figures by name, NaN where one is not defined."""
Estimate = dict[str, float | None]
"""``value``, ``low`` and ``high``; None where one is not defined."""


def draws(patients: NDArray[np.str_], *, seed: int, resamples: int) -> Iterator[Weights]:
    """Yield how often each image counts in each resample of the patients, (N,)."""
    names, index = np.unique(patients, return_inverse=True)
    if not len(names):
        return
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = generator.integers(len(names), size=len(names))
        yield np.bincount(drawn, minlength=len(names))[index].astype(float)


def intervals(
    measure: Measure, patients: NDArray[np.str_], *, seed: int, resamples: int
) -> dict[str, Estimate]:
    """Return the figures of all images, each with its 95 % percentile interval.

    Resamples in which a figure is not defined are left out of its interval.
    """
    values = measure(np.ones(len(patients)))
    rows = [measure(weights) for weights in draws(patients, seed=seed, resamples=resamples)]
    return {name: estimate(value, [row[name] for row in rows]) for name, value in values.items()}


def estimate(value: float, resampled: Iterable[float]) -> Estimate:
    """Return a value with the quantiles 0.025 and 0.975 of its resamples."""
    defined = [one for one in resampled if np.isfinite(one)]
    low, high = np.quantile(defined, [0.025, 0.975]) if defined else (np.nan, np.nan)
    return as_estimate(value, low, high)


def as_estimate(value: float, low: float, high: float) -> Estimate:
    """Return numbers as an estimate; those that are not finite become None."""
    named = {"value": float(value), "low": float(low), "high": float(high)}
    return {key: number if np.isfinite(number) else None for key, number in named.items()}


def p_value(resampled: Iterable[float]) -> float:
    """Return the two-sided p-value of a difference from its resamples; NaN without any.

    It is the level at which the percentile interval just reaches 0, and never less than
    2 / (resamples + 1) (Davison and Hinkley, 1997, section 5.4).
    """
    defined = np.array([one for one in resampled if np.isfinite(one)])
    if not len(defined):
        return float("nan")
    below, above = (1 + (defined <= 0).sum()), (1 + (defined >= 0).sum())
    return float(min(1.0, 2 * min(below, above) / (len(defined) + 1)))
