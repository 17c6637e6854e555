"""How good a classifier is, with 95 % intervals from a bootstrap over patients."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from medtl_runtime.decision import OperatingPoint

RESAMPLES = 1000

NAMES = (
    "auroc",
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "recall",
    "precision",
    "specificity",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Images of one split with what the model says of them."""

    labels: NDArray[np.int64]
    """Index of the true class, (N,)."""
    probabilities: NDArray[np.float64]
    """(N, K)."""
    patients: NDArray[np.str_]
    """(N,)."""
    classes: tuple[str, ...]
    point: OperatingPoint

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Index of the class at the operating point, (N,)."""
        decided = [self.point.decide(self.classes, row) for row in self.probabilities]
        return np.array([self.classes.index(name) for name in decided], np.int64)

    @property
    def positive(self) -> int | None:
        """Index of the class to find, of two; None for more classes."""
        return None if self.point.positive is None else self.classes.index(self.point.positive)


def measure(scored: Scored, weights: NDArray[np.floating] | None = None) -> dict[str, float]:
    """Return the metrics named in `NAMES`; NaN where one is not defined.

    For two classes, recall (sensitivity), precision, F1, specificity and average precision are
    those of the positive class. For more, they are means over the classes, one against the rest
    (macro). ``weights`` counts each image so many times, (N,).
    """
    if weights is None:
        weights = np.ones(len(scored.labels))
    ranking = _ranking(_rankings(scored), weights)
    return {**ranking, **_decisions(scored, scored.predicted, weights)}


class _Ranking:
    """The images in falling order of one class's probability: that class against the rest.

    Sorted once, it gives the metrics for many weights; a thousand of scikit-learn's take minutes.
    """

    def __init__(self, is_positive: NDArray[np.bool_], scores: NDArray[np.floating]) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._is_positive = is_positive[self._order]
        # Equal scores share one threshold: what counts is the last of each run of them.
        self._last = np.append(ordered[1:] != ordered[:-1], True)

    def measure(self, weights: NDArray[np.floating]) -> tuple[float, float]:
        """Return AUROC and average precision; NaN without images on both sides."""
        ordered = weights[self._order]
        hits = np.cumsum(ordered * self._is_positive)[self._last]
        alarms = np.cumsum(ordered * ~self._is_positive)[self._last]
        if hits[-1] == 0 or alarms[-1] == 0:
            return float("nan"), float("nan")
        recall, fall_out = hits / hits[-1], alarms / alarms[-1]
        gained = np.diff(recall, prepend=0)
        auroc = (np.diff(fall_out, prepend=0) * (recall - gained / 2)).sum()
        precision = hits / np.maximum(hits + alarms, np.finfo(float).tiny)
        return float(auroc), float((gained * precision).sum())


def _rankings(scored: Scored) -> list[_Ranking]:
    """Return a ranking for the positive class, or for each of several."""
    positives = range(len(scored.classes)) if scored.positive is None else [scored.positive]
    return [_Ranking(scored.labels == k, scored.probabilities[:, k]) for k in positives]


def _ranking(rankings: list[_Ranking], weights: NDArray[np.floating]) -> dict[str, float]:
    """Return AUROC and average precision, which need no operating point."""
    auroc, precision = np.mean([ranking.measure(weights) for ranking in rankings], axis=0)
    return {"auroc": float(auroc), "average_precision": float(precision)}


def _confusion(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    classes: int,
    weights: NDArray[np.floating] | None = None,
) -> NDArray[Any]:
    """Return the images of each true class (row) by what they were called (column), K x K."""
    cells = np.bincount(labels * classes + predicted, weights, minlength=classes**2)
    return cells.reshape(classes, classes)


def _decisions(
    scored: Scored, predicted: NDArray[np.int64], weights: NDArray[np.floating]
) -> dict[str, float]:
    k = len(scored.classes)
    table = _confusion(scored.labels, predicted, k, weights)
    chosen = range(k) if scored.positive is None else [scored.positive]
    with np.errstate(invalid="ignore", divide="ignore"):
        hits = np.diag(table)
        actual, called, total = table.sum(1), table.sum(0), table.sum()
        recalls, precisions = hits / actual, hits / called
        specificities = (total - actual - called + hits) / (total - actual)
        f1s = 2 * hits / (actual + called)
        shares = {
            "accuracy": hits.sum() / total,
            "balanced_accuracy": recalls.mean(),
            "f1": f1s[chosen].mean(),
            "recall": recalls[chosen].mean(),
            # A class that is never called has no precision; it counts as 0, as in scikit-learn.
            "precision": np.nan_to_num(precisions[chosen]).mean(),
            "specificity": specificities[chosen].mean(),
        }
    return {name: float(share) for name, share in shares.items()}


def measure_with_intervals(
    scored: Scored, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, dict[str, float | None]]:
    """Return each metric's value and its 95 % percentile interval.

    Patients are drawn with replacement, each with all images, because images of one patient are
    not independent. Resamples in which a metric is not defined are left out of its interval.
    """
    rows = list(_resampled(scored, _drawn(scored.patients, seed, resamples)))
    values = measure(scored)
    return {name: _with_interval(values[name], [row[name] for row in rows]) for name in NAMES}


def differences(
    before: Scored, after: Scored, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, dict[str, float | None]]:
    """Return how much each metric of ``after`` is above that of ``before``, with 95 % intervals.

    Both are of the same images in the same order. Each resample of patients counts for both, so
    that what both have in common cancels out (paired bootstrap).
    """
    assert np.array_equal(before.labels, after.labels)
    weights = list(_drawn(before.patients, seed, resamples))
    pairs = list(zip(_resampled(before, weights), _resampled(after, weights), strict=True))
    first, second = measure(before), measure(after)
    return {
        name: _with_interval(second[name] - first[name], [b[name] - a[name] for a, b in pairs])
        for name in NAMES
    }


def _drawn(patients: NDArray[np.str_], seed: int, resamples: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each image counts in each resample of the patients, (N,)."""
    names, index = np.unique(patients, return_inverse=True)
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = generator.integers(len(names), size=len(names))
        counts = np.bincount(drawn, minlength=len(names))[index].astype(float)
        if counts.sum() > 0:
            yield counts


def _resampled(
    scored: Scored, weights: Iterable[NDArray[np.float64]]
) -> Iterator[dict[str, float]]:
    rankings, predicted = _rankings(scored), scored.predicted
    for counts in weights:
        yield {**_ranking(rankings, counts), **_decisions(scored, predicted, counts)}


def _with_interval(value: float, resampled: list[float]) -> dict[str, float | None]:
    defined = [one for one in resampled if np.isfinite(one)]
    low, high = np.quantile(defined, [0.025, 0.975]) if defined else (np.nan, np.nan)
    named = {"value": value, "low": float(low), "high": float(high)}
    return {key: number if np.isfinite(number) else None for key, number in named.items()}


def cross_entropy(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Return the mean negative log likelihood."""
    return float(log_loss(labels, probabilities, labels=range(probabilities.shape[1])))


def evaluate(scored: Scored, *, seed: int) -> dict[str, Any]:
    """Return the evaluation of a split as JSON values; see `measure_with_intervals`."""
    table = _confusion(scored.labels, scored.predicted, len(scored.classes))
    return {
        "images": len(scored.labels),
        "patients": len(np.unique(scored.patients)),
        "resamples": RESAMPLES,
        "metrics": measure_with_intervals(scored, seed=seed),
        "confusion": table.tolist(),
    }
