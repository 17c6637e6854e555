"""Fits what stands between logits and a finding: temperature, operating point, triage.

The exporter's side fits on validation images, and ``medtl-infer calibrate`` on local cases, by the
same functions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.decision import OperatingPoint, probabilities
from medtl_runtime.errors import UsageError

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0
"""Labels that the logits separate would ask for a temperature of 0."""

_BISECTIONS = 60
_LEAST_RATE = 1e-6


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the temperature with the least negative log-likelihood (Guo et al., ICML 2017).

    The likelihood is log-concave in 1 / T, so that bisection on its derivative finds the maximum.

    Parameters
    ----------
    logits
        N x K
    labels
        Index of the true class, (N,).

    Returns
    -------
    float
        Between 0.05 and 20.
    """
    values = np.asarray(logits, np.float64)
    true = values[np.arange(len(values)), labels].mean()

    def too_sharp(inverse: float) -> bool:
        """Whether the likelihood falls with a larger 1 / T."""
        expected = (probabilities(values, 1 / inverse) * values).sum(1).mean()
        return bool(expected > true)

    low, high = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    if too_sharp(low):
        return MOST_TEMPERATURE
    if not too_sharp(high):
        return LEAST_TEMPERATURE
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if too_sharp(middle) else (middle, high)
    return 1 / math.sqrt(low * high)


def choose_temperature(
    logits: NDArray[np.floating], labels: NDArray[np.integer], *, otherwise: float = 1.0
) -> float:
    """Return the fitted temperature, or ``otherwise`` where every image is called right.

    There the likelihood grows as the temperature falls, without end: it says nothing of how sure
    the model may be. Parameters are those of `fit_temperature`.
    """
    if (logits.argmax(axis=1) == labels).all():
        return otherwise
    return fit_temperature(logits, labels)


def negative_log_likelihood(chances: NDArray[np.float64], labels: NDArray[np.integer]) -> float:
    """Return the mean of -log p(true class); ``chances`` is N x K, ``labels`` (N,)."""
    true = chances[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, np.finfo(float).tiny)).mean())


def brier_score(chances: NDArray[np.float64], labels: NDArray[np.integer]) -> float:
    """Return the mean squared distance from the truth (Brier, 1950), 0 to 2; as above."""
    truth = np.eye(chances.shape[1])[labels]
    return float(((chances - truth) ** 2).sum(1).mean())


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """What an operating point is chosen for."""

    name: Literal["youden", "sensitivity", "specificity"] = "youden"
    least: float | None = None
    """For sensitivity and specificity, the share that must be reached, 0 to 1."""

    @staticmethod
    def parse(text: str) -> "Criterion":
        """Read ``youden``, ``sensitivity=0.95`` or ``specificity=0.9``."""
        expected = "expected youden, sensitivity=0.95 or specificity=0.9"
        if text == "youden":
            return Criterion()
        name, equals, value = text.partition("=")
        if not equals or name not in ("sensitivity", "specificity"):
            raise UsageError(f"criterion is {text}; {expected}")
        try:
            least = float(value)
        except ValueError as cause:
            raise UsageError(f"criterion is {text}; {expected}") from cause
        if not 0 < least <= 1:
            raise UsageError(f"criterion is {text}; the share must be above 0 and at most 1")
        return Criterion(name=name, least=least)

    def __str__(self) -> str:
        if self.name == "youden":
            return "Youden's J"
        return f"{self.name} of at least {self.least:g}"


def choose_operating_point(
    labels: NDArray[np.integer],
    chances: NDArray[np.float64],
    classes: Sequence[str],
    positive: str,
    *,
    criterion: Criterion = Criterion(),
    cases: str = "validation images",
) -> OperatingPoint:
    """Return the threshold for two classes that serves a criterion best on these cases.

    - ``youden``: the most sensitivity + specificity - 1 (Youden, Cancer 1950);
    - ``sensitivity``: the highest threshold that reaches the share, hence the most specificity;
    - ``specificity``: the lowest threshold that reaches it, hence the most sensitivity.

    The threshold lies halfway between two neighbouring probabilities, so that it does not hang on
    one image's last digit.

    Parameters
    ----------
    labels
        Index of the true class, (N,).
    chances
        N x 2
    cases
        What they are, for ``OperatingPoint.chosen``; some are positive and some are not.
    """
    k = list(classes).index(positive)
    scores = chances[:, k]
    is_positive = np.asarray(labels) == k
    # A case is called positive at or above a level; at the first, none is.
    levels = np.append(np.inf, np.unique(scores)[::-1])
    index = _chosen(levels, scores[is_positive], scores[~is_positive], criterion)
    return OperatingPoint(
        rule="threshold",
        positive=positive,
        threshold=_between(levels, index),
        chosen=f"{criterion} on {len(labels)} {cases}",
    )


def _chosen(
    levels: NDArray[np.float64],
    positives: NDArray[np.float64],
    negatives: NDArray[np.float64],
    criterion: Criterion,
) -> int:
    """Return the index of the best level; levels fall, so sensitivity rises along them."""
    found, alarms = _at_or_above(levels, positives), _at_or_above(levels, negatives)
    # Shares of whole numbers, each rounded once: 1 - 4 / 5 would be less than 0.2.
    sensitivity = found / max(1, len(positives))
    if criterion.least is None:
        return int(np.argmax(sensitivity - alarms / max(1, len(negatives))))
    if criterion.name == "sensitivity":
        return int(np.argmax(sensitivity >= criterion.least))
    specificity = (len(negatives) - alarms) / max(1, len(negatives))
    enough = np.flatnonzero((specificity >= criterion.least) & (levels <= 1))
    return int(enough[-1]) if len(enough) else _above_all(levels, criterion)


def _at_or_above(levels: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many of the scores lie at or above each level, (L,)."""
    return len(scores) - np.searchsorted(np.sort(scores), levels)


def _above_all(levels: NDArray[np.float64], criterion: Criterion) -> int:
    """Return the level at which nothing is positive, if a probability can be a threshold for it."""
    if levels[1] >= 1:
        raise UsageError(f"no threshold has a {criterion}: a negative case has a probability of 1")
    return 0


def _between(levels: NDArray[np.float64], index: int) -> float:
    """Return the threshold halfway between a level and the next lower one, 0 to 1."""
    at = min(float(levels[index]), 1.0)
    if index + 1 == len(levels):
        return at
    below = float(levels[index + 1])
    middle = (at + below) / 2
    return middle if middle > below else at  # between neighbouring numbers there is none


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


def require_for_refusals(rate: float, images: int, *, unit: str) -> None:
    """Raise `UsageError` if so few images, called ``unit``, cannot hold a false-refusal rate."""
    least = images_for(rate, option="--false-refusal-rate", scores=2)
    if images < least:
        found = f"takes {least} {unit}; there are {images}"
        raise UsageError(f"--false-refusal-rate {rate:g} {found}")


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
