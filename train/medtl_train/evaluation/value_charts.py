"""The pictures of answers that are values: predicted against true, and errors against size."""

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from medtl_train import pages
from medtl_train.evaluation.charts import Metrics
from medtl_train.scoring.scored import ScoredValues

_MOST_POINTS = 5000
"""More are drawn as a sample, so that the page stays small."""

_DOTS = {"linestyle": "", "marker": "o", "markersize": 3.5, "alpha": 0.55, "markeredgewidth": 0}


def agreement(scored: ScoredValues, metrics: Metrics, words: str) -> list[Markup]:
    """Return predicted against true values, and a Bland-Altman plot (Lancet 1986).

    Parameters
    ----------
    metrics
        ``bias`` and the limits of agreement, for its lines.
    words
        Which images they are, for those who cannot see the pictures.
    """
    count = len(scored.values)
    if not count:
        return []
    chosen = np.random.default_rng(0).permutation(count)[:_MOST_POINTS]
    true, predicted = scored.values[chosen], scored.predicted[chosen]
    unit = f", {scored.unit}" if scored.unit else ""
    drawn = "" if count <= _MOST_POINTS else f", {_MOST_POINTS} of {count} drawn"
    first = _against_truth(true, predicted, unit)
    second = _bland_altman(true, predicted, metrics, unit)
    return [
        pages.plot(first, f"Predicted against true values of {words}{drawn}"),
        pages.plot(second, f"Errors against the mean of both values of {words}{drawn}"),
    ]


def _against_truth(true: np.ndarray, predicted: np.ndarray, unit: str) -> Figure:
    figure = Figure(figsize=(4.2, 4.2))
    axes = figure.subplots()
    ends = np.array([min(true.min(), predicted.min()), max(true.max(), predicted.max())])
    axes.plot(ends, ends, label="equal", **pages.REFERENCE)
    axes.plot(true, predicted, color=pages.COLOURS[0], **_DOTS)
    axes.set(xlabel=f"True{unit}", ylabel=f"Predicted{unit}", aspect="equal")
    axes.legend(loc="upper left")
    return figure


def _bland_altman(true: np.ndarray, predicted: np.ndarray, metrics: Metrics, unit: str) -> Figure:
    figure = Figure(figsize=(4.9, 4.2))
    axes = figure.subplots()
    axes.axhline(0, **pages.REFERENCE)
    axes.plot((true + predicted) / 2, predicted - true, color=pages.COLOURS[0], **_DOTS)
    for name, label, dashes in (
        ("bias", "bias", ()),
        ("agreement_low", "95 % limits of agreement", (6, 2)),
        ("agreement_high", None, (6, 2)),
    ):
        found = metrics[name]
        if found["value"] is None:
            continue
        axes.axhline(found["value"], color="black", linewidth=1, label=label,
                     linestyle=(0, dashes) if dashes else "-")  # fmt: skip
        if found["low"] is not None and found["high"] is not None:
            axes.axhspan(found["low"], found["high"], color=pages.COLOURS[5], alpha=0.25, lw=0)
    axes.set(xlabel=f"Mean of true and predicted{unit}", ylabel=f"Predicted − true{unit}")
    figure.legend(loc="outside upper left", ncols=2)
    return figure
