"""Fits what stands between logits and a finding: temperature and operating point.

Training fits on validation images, and ``medtl-infer calibrate`` on local cases, by the same
functions; so it is with `medtl_runtime.conformal`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.decision import OperatingPoint, plain_point, probabilities
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0
"""Labels that the logits separate would ask for a temperature of 0."""

_BISECTIONS = 60


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


def head_temperature(
    head: Head,
    logits: NDArray[np.floating],
    targets: NDArray[np.floating],
    *,
    otherwise: float = 1.0,
) -> float:
    """Return the temperature of a head; see `choose_temperature`.

    Each column of a binary or an ordinal head is a choice between the logit 0 and its own; a grade
    counts in those columns whose condition it meets (CORN).

    Parameters
    ----------
    logits
        The head's columns, N x ``columns``.
    targets
        What it should answer, (N,): index of the class or grade; NaN where it is not known.

    Returns
    -------
    float
        1 for a regression; ``otherwise`` where no target is known.
    """
    known = ~np.isnan(targets)
    if head.kind == "regression":
        return 1.0
    if not known.any():
        return otherwise
    values, labels = np.asarray(logits, np.float64)[known], targets[known].astype(np.int64)
    if head.kind != "multiclass":
        met = labels[:, None] >= np.arange(head.columns)
        labels = (labels[:, None] > np.arange(head.columns))[met].astype(np.int64)
        values = np.stack([np.zeros(len(labels)), values[met]], axis=1)
    return choose_temperature(values, labels, otherwise=otherwise)


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

    name: Literal["youden", "sensitivity", "specificity", "cost"] = "youden"
    least: float | None = None
    """For sensitivity and specificity, the share that must be reached, 0 to 1."""
    costs: tuple[float, float] = (1.0, 1.0)
    """For cost, what a missed case and a false alarm cost, in any unit; both more than 0."""
    prevalence: float | None = None
    """For cost, the share of positive cases to come, 0 to 1; None: that of the cases given."""

    @staticmethod
    def parse(text: str) -> "Criterion":
        """Read ``youden``, ``sensitivity=0.95``, ``specificity=0.9`` or ``cost=5:1``.

        A cost may be followed by ``,prevalence=0.1``.
        """
        expected = (
            "expected youden, sensitivity=0.95, specificity=0.9, cost=5:1 "
            "or cost=5:1,prevalence=0.1"
        )
        if text == "youden":
            return Criterion()
        name, equals, value = text.partition("=")
        try:
            if name == "cost":
                return _parse_cost(value)
            if not equals or name not in ("sensitivity", "specificity"):
                raise ValueError(name)
            least = float(value)
        except ValueError as cause:
            raise UsageError(f"criterion is {text}; {expected}") from cause
        if not 0 < least <= 1:
            raise UsageError(f"criterion is {text}; the share must be above 0 and at most 1")
        return Criterion(name=name, least=least)

    def __str__(self) -> str:
        if self.name == "youden":
            return "Youden's J"
        if self.name != "cost":
            return f"{self.name} of at least {self.least:g}"
        missed, alarm = self.costs
        beside = "" if self.prevalence is None else f" at a prevalence of {self.prevalence:g}"
        return f"least cost, {missed:g} for a missed case to {alarm:g} for a false alarm{beside}"


def _parse_cost(value: str) -> Criterion:
    """Read what stands behind ``cost=``; raises ValueError on anything else."""
    costs, comma, rest = value.partition(",")
    missed, alarm = map(float, costs.split(":"))
    name, _, share = rest.partition("=")
    if not (0 < missed < math.inf and 0 < alarm < math.inf) or (comma and name != "prevalence"):
        raise ValueError(value)
    prevalence = float(share) if comma else None
    if prevalence is not None and not 0 < prevalence < 1:
        raise ValueError(value)
    return Criterion(name="cost", costs=(missed, alarm), prevalence=prevalence)


def choose_point(
    head: Head,
    targets: NDArray[np.floating],
    chances: NDArray[np.float64] | None,
    *,
    positive: str | None = None,
    criterion: Criterion = Criterion(),
    cases: str = "validation images",
) -> OperatingPoint:
    """Return how the answer of a head is chosen; only two classes leave a choice.

    Parameters
    ----------
    targets
        (N,), NaN where one is not known.
    chances
        N x K; None for a regression.
    positive
        Of a multiclass head with two classes, the one to find; None leaves it at the most probable
        class. A binary head looks for its second.
    criterion, cases
        See `choose_operating_point`.
    """
    if head.kind == "binary":
        positive = positive or head.classes[1]
    known = ~np.isnan(targets)
    if len(head.classes) != 2 or head.kind == "ordinal" or positive is None or not known.any():
        return plain_point(head)
    assert chances is not None
    labels = targets[known].astype(np.int64)
    return choose_operating_point(
        labels, chances[known], head.classes, positive, criterion=criterion, cases=cases
    )


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
    - ``specificity``: the lowest threshold that reaches it, hence the most sensitivity;
    - ``cost``: the least expected cost of errors, prevalence x (1 - sensitivity) x cost of a missed
      case + (1 - prevalence) x (1 - specificity) x cost of a false alarm (Metz, Semin Nucl Med
      1978; Zweig and Campbell, Clin Chem 1993).

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
    if criterion.name == "cost":
        share = len(positives) / (len(positives) + len(negatives))
        alarm_rate = alarms / max(1, len(negatives))
        return _cheapest(levels, sensitivity, alarm_rate, share, criterion)
    if criterion.least is None:
        return int(np.argmax(sensitivity - alarms / max(1, len(negatives))))
    if criterion.name == "sensitivity":
        return int(np.argmax(sensitivity >= criterion.least))
    specificity = (len(negatives) - alarms) / max(1, len(negatives))
    enough = np.flatnonzero((specificity >= criterion.least) & (levels <= 1))
    return int(enough[-1]) if len(enough) else _above_all(levels, criterion)


def _cheapest(
    levels: NDArray[np.float64],
    sensitivity: NDArray[np.float64],
    alarm_rate: NDArray[np.float64],
    share: float,
    criterion: Criterion,
) -> int:
    """Return the index of the level with the least expected cost; of equals, the fewest alarms."""
    missed, alarm = criterion.costs
    prevalence = share if criterion.prevalence is None else criterion.prevalence
    cost = prevalence * missed * (1 - sensitivity) + (1 - prevalence) * alarm * alarm_rate
    first = int(levels[1] >= 1)  # a probability of 1 is positive at every threshold
    return first + int(np.argmin(np.round(cost[first:], 12)))  # equal but for rounding is equal


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
