"""Fits what abstains and how far a value may be off, by order statistics (split conformal).

How low a rate can be follows from how many images there are: n of them hold 1 / (n + 1).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.decision import Margin
from medtl_runtime.errors import UsageError

_LEAST_RATE = 1e-6


def images_for(rate: float, *, option: str, scores: int = 1) -> int:
    """Return how many images it takes to hold a rate: n of them hold ``scores / (n + 1)``.

    Parameters
    ----------
    rate
        Below 1.
    option
        Where the rate was given, for the error.
    scores
        Between how many the rate is divided.

    Raises
    ------
    UsageError
        The rate is so low that no collection of images holds it.
    """
    if not rate >= _LEAST_RATE:  # not a number is refused, too
        raise UsageError(f"{option} is {rate}; expected {_LEAST_RATE:g} or more")
    return math.ceil(scores / rate - 1e-9) - 1  # an exact 1 / 0.1 must not become 11


def require_for_refusals(rate: float, images: int, *, unit: str, scores: int = 2) -> None:
    """Raise `UsageError` if so few images, called ``unit``, cannot hold a false-refusal rate.

    ``scores`` is by how many an image is judged: 1 without energies, see `novelty`.
    """
    least = images_for(rate, option="--false-refusal-rate", scores=scores)
    if images < least:
        found = f"takes {least} {unit}; there are {images}"
        raise UsageError(f"--false-refusal-rate {rate:g} {found}")


def require_for_interval(rate: float, images: int, *, unit: str) -> None:
    """Raise `UsageError` if so few images cannot hold an interval that misses at such a rate."""
    least = images_for(rate, option="--error-rate")
    if images < least:
        raise UsageError(f"--error-rate {rate:g} takes {least} {unit}; there are {images}")


def require_for_triage(
    rate: float, counts: Mapping[int, int], classes: Sequence[str], *, unit: str
) -> None:
    """Raise `UsageError` if so few of a class, counted by its index, cannot hold an error rate."""
    least = images_for(rate, option="--error-rate")
    for index, name in enumerate(classes):
        if counts[index] < least:
            found = f"takes {least} {unit} of each class; {name} has {counts[index]}"
            raise UsageError(f"--error-rate {rate:g} {found}")


def conformal_thresholds(
    labels: NDArray[np.integer], chances: NDArray[np.float64], error_rate: float
) -> tuple[float, ...]:
    """Return the least probability at which each class stays in the prediction set.

    Class-wise (Mondrian) split conformal prediction (Vovk, Gammerman and Shafer, 2005; Angelopoulos
    and Bates, 2021): for a further image of a class, exchangeable with those given of it, the class
    is missing from its set with a probability of at most ``error_rate``. With n images of a class
    the threshold is the floor((n + 1) error_rate)-th smallest of their probabilities of the class;
    where that is less than the first, there are too few images to exclude the class ever, and the
    threshold is 0.

    Parameters
    ----------
    labels
        Index of the true class, (N,).
    chances
        N x K, of images that nothing was fitted on but the temperature and the operating point.
    error_rate
        Between 0 and 1.
    """
    if not 0 < error_rate < 1:
        raise UsageError(f"error rate is {error_rate}; expected more than 0 and less than 1")
    return tuple(
        _least_probability(chances[labels == k, k], error_rate) for k in range(chances.shape[1])
    )


def _least_probability(own: NDArray[np.float64], error_rate: float) -> float:
    # The product of exact decimals must not fall below a whole number by rounding.
    rank = math.floor((len(own) + 1) * error_rate + 1e-9)
    return float(np.sort(own)[min(rank, len(own)) - 1]) if rank and len(own) else 0.0


def conformal_margin(residuals: NDArray[np.floating], coverage: float) -> Margin:
    """Return the half-width that an interval about a regression's value takes.

    Split conformal prediction (Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, J. Am. Stat. Assoc.
    2018): with n residuals the half-width is the ceil((n + 1) coverage)-th smallest of their
    absolute values; a further image, exchangeable with those given, has its true value within with
    a probability of at least ``coverage``.

    Parameters
    ----------
    residuals
        True value minus the network's, (N,), of images that were not trained on.
    coverage
        Between 0 and 1.

    Returns
    -------
    Where n is too small for the coverage, the half-width is the largest residual, and the coverage
    that is stated is the one that this keeps, n / (n + 1).
    """
    if not 0 < coverage < 1:
        raise UsageError(f"coverage is {coverage}; expected more than 0 and less than 1")
    count = len(residuals)
    assert count > 0
    rank = min(math.ceil((count + 1) * coverage - 1e-9), count)
    width = float(np.sort(np.abs(residuals))[rank - 1])
    held = min(coverage, count / (count + 1))
    return Margin(coverage=held, half_width=width, images=count)
