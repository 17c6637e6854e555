"""How good the answers of a head are, with 95 % intervals from a bootstrap over patients.

`Scored`, of a head with classes, and `ScoredValues`, of a regression, are measured, compared and
averaged by the same functions.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.heads import Head
from medtl_train.scoring.agreement import agreement
from medtl_train.scoring.bootstrap import (
    RESAMPLES,
    Estimate,
    Measure,
    Weights,
    draws,
    estimate,
    intervals,
)
from medtl_train.scoring.ranking import Curve, Ranking
from medtl_train.scoring.scored import (
    Answers,
    ScoredValues,
    score,
)
from medtl_train.scoring.tables import confusion, decisions, grades

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
"""Of every head with classes."""

ORDINAL = ("quadratic_weighted_kappa", "within_one_grade", "grade_mae")
"""Of grades, beside those."""

VALUES = ("mae", "rmse", "r2", "pearson", "concordance", "bias")
"""Of a regression."""

LOWER_IS_BETTER = frozenset({"grade_mae", "mae", "rmse"})

_IN_UNITS = frozenset({"mae", "rmse", "bias"})


def measure(answers: Answers, weights: Weights | None = None) -> dict[str, float]:
    """Return the metrics of `NAMES`, `ORDINAL` and `VALUES` that the head's kind has.

    NaN where one is not defined. For two classes, recall (sensitivity), precision, F1, specificity
    and average precision are those of the positive class. For more, they are means over the
    classes, one against the rest (macro). Of grades, AUROC and average precision are means over
    the splits into grades up to one and above it. ``weights`` counts each image so many times,
    (N,).
    """
    if weights is None:
        weights = np.ones(len(answers.patients))
    return dict(measurer(answers)(weights))


def measurer(answers: Answers, *, rates: Sequence[float] = ()) -> Measure:
    """Return what measures answers again and again, with other weights each time; see `measure`.

    With ``rates``, for two classes also the sensitivity at such specificities, and the reverse.
    """
    if isinstance(answers, ScoredValues):
        return lambda weights: agreement(answers.values, answers.predicted, weights)
    scored, predicted, k = answers, answers.predicted, len(answers.classes)
    rankings = [Ranking(event.happened, event.probability) for event in scored.events]
    chosen = list(range(k)) if scored.positive is None else [scored.positive]
    fixed = () if scored.positive is None else tuple(rates)

    def measure_once(weights: Weights) -> dict[str, float]:
        curves = [ranking.curve(weights) for ranking in rankings]
        table = confusion(scored.labels, predicted, k, weights)
        found = _ranked(curves) | decisions(table, chosen)
        if scored.is_graded:
            found |= grades(table)
        return found | _at_rates(curves[0], fixed)

    return measure_once


def _ranked(curves: Sequence[Curve | None]) -> dict[str, float]:
    """Return AUROC and average precision, which need no operating point."""
    areas = [(math.nan, math.nan) if c is None else (c.auroc, c.average_precision) for c in curves]
    aurocs, precisions = zip(*areas, strict=True)
    return {
        "auroc": sum(aurocs) / len(areas),
        "average_precision": sum(precisions) / len(areas),
    }


def _at_rates(curve: Curve | None, rates: Sequence[float]) -> dict[str, float]:
    found = {}
    for rate in rates:
        recall, specificity = (
            (np.nan, np.nan)
            if curve is None
            else (curve.sensitivity_at(rate), curve.specificity_at(rate))
        )
        found[f"sensitivity_at_specificity_{rate:g}"] = recall
        found[f"specificity_at_sensitivity_{rate:g}"] = specificity
    return found


def measure_with_intervals(
    answers: Answers, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Return each metric's value and its 95 % percentile interval; see `bootstrap.intervals`."""
    return intervals(measurer(answers), answers.patients, seed=seed, resamples=resamples)


def differences(
    before: Answers, after: Answers, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Return how much each metric of ``after`` is above that of ``before``, with 95 % intervals.

    Both are of the same images in the same order. Each resample of patients counts for both, so
    that what both have in common cancels out (paired bootstrap).
    """
    found = resampled_differences(before, after, seed=seed, resamples=resamples)
    return {name: estimate(value, drawn) for name, (value, drawn) in found.items()}


def resampled_differences(
    before: Answers, after: Answers, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """Return the differences of `differences`, each with those of the resamples, (resamples,)."""
    assert np.array_equal(_truth(before), _truth(after))
    one, other = measurer(before), measurer(after)
    everyone = np.ones(len(before.patients))
    weightings = [everyone, *draws(before.patients, seed=seed, resamples=resamples)]
    rows = [(one(weights), other(weights)) for weights in weightings]
    found = {name: np.array([b[name] - a[name] for a, b in rows]) for name in rows[0][0]}
    return {name: (float(changes[0]), changes[1:]) for name, changes in found.items()}


def _truth(answers: Answers) -> NDArray[np.generic]:
    return answers.values if isinstance(answers, ScoredValues) else answers.labels


def monitored(
    heads: Sequence[Head],
    logits: NDArray[np.floating],
    targets: NDArray[np.floating],
    *,
    positive: str | None = None,
) -> dict[str, float]:
    """Return each metric as its mean over the heads for which it is defined; NaN for none.

    Parameters are those of `score`. Where there are several heads, ``mae``, ``rmse`` and ``bias``
    are in standard deviations of the training values, because units do not add up.
    """
    scored = score(heads, logits, targets, np.full(len(targets), ""), positive=positive)
    rows = [_comparable(measure(scored[head.name]), head, len(heads)) for head in heads]
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        defined = [row[name] for row in rows if np.isfinite(row.get(name, np.nan))]
        found[name] = float(np.mean(defined)) if defined else float("nan")
    return found


def _comparable(measured: dict[str, float], head: Head, heads: int) -> dict[str, float]:
    scale = head.std if heads > 1 and head.kind == "regression" else 1.0
    return {name: v / scale if name in _IN_UNITS else v for name, v in measured.items()}
