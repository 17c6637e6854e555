"""The pictures of answers with classes: ROC, precision against recall, reliability."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sklearn.metrics as skm
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest

from medtl_train import pages
from medtl_train.scoring.reliability import BINS, claims
from medtl_train.scoring.scored import Event, Scored

Metrics = Mapping[str, Mapping[str, float | None]]


def discrimination(scored: Scored, metrics: Metrics, words: str) -> dict[str, Any]:
    """Return ROC and precision-recall curves, and their areas, for each event to find.

    Parameters
    ----------
    metrics
        The figures at the operating point, for the dot.
    words
        Which images they are, for those who cannot see the pictures.
    """
    events = scored.events
    roc, roc_axes = _unit_square("1 − specificity", "Sensitivity (recall)")
    pr, pr_axes = _unit_square("Recall (sensitivity)", "Precision")
    roc_axes.plot([0, 1], [0, 1], label="chance", **pages.REFERENCE)
    rows = [_draw_event(k, event, [roc_axes, pr_axes]) for k, event in enumerate(events)]
    if scored.positive is not None:
        # A value that is not defined is NaN here, and nothing is drawn.
        recall, specificity, precision = np.array(
            [metrics[key]["value"] for key in ("recall", "specificity", "precision")], float
        )
        roc_axes.plot(1 - specificity, recall, "ko", label="operating point")
        pr_axes.plot(recall, precision, "ko", label="operating point")
        share = rows[0]["images"] / max(1, len(scored.labels))
        pr_axes.axhline(share, label="chance", **pages.REFERENCE)
        pr_axes.legend(loc="lower left")
    roc_axes.legend(loc="lower right")
    of = events[0].name if len(events) == 1 else "each of several"
    plots = [
        pages.plot(roc, f"Receiver operating characteristic of {of} on {words}"),
        pages.plot(pr, f"Precision against recall of {of} on {words}"),
    ]
    return {"plots": plots, "rows": rows, "images": len(scored.labels)}


def _unit_square(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, 4.2))
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return figure, axes


def _draw_event(k: int, event: Event, axes: Sequence[Axes]) -> dict[str, Any]:
    """Draw an event's ROC and precision-recall; areas are None where a side has no images."""
    line = pages.line(k)
    row = {
        "name": event.name,
        "colour": line["color"],
        "dashes": pages.DASHES[k % len(pages.DASHES)],
        "images": int(event.happened.sum()),
        "auroc": None,
        "average_precision": None,
    }
    if len(np.unique(event.happened)) < 2:
        return row
    false_positive, sensitivity, _ = skm.roc_curve(event.happened, event.probability)
    axes[0].plot(false_positive, sensitivity, **line)
    precision, recall, _ = skm.precision_recall_curve(
        event.happened, event.probability, drop_intermediate=True
    )
    axes[1].plot(recall, precision, drawstyle="steps-post", **line)
    return {
        **row,
        "auroc": skm.roc_auc_score(event.happened, event.probability),
        "average_precision": skm.average_precision_score(event.happened, event.probability),
    }


def calibration(scored: Scored, words: str) -> dict[str, Any]:
    """Return the reliability diagram, and the squared error if every image got the shares."""
    found = claims(scored)
    counts = np.bincount(found.bins(), minlength=BINS)
    filled = counts > 0
    means, shares = (
        np.bincount(found.bins(), of, minlength=BINS)[filled] / counts[filled]
        for of in (found.probability, found.happened)
    )
    figure = _reliability(means, shares, counts, _axes_of(scored))
    plot = pages.plot(figure, f"Reliability diagram of {words}, with counts")
    rates = [event.happened.mean() if len(event.happened) else np.nan for event in scored.events]
    return {"plot": plot, "constant": float(np.sum([rate * (1 - rate) for rate in rates]))}


def _axes_of(scored: Scored) -> list[str]:
    """Return the names of the axes of a reliability diagram."""
    if scored.is_graded:
        words = ["Probability of lying above a grade", "Share that lies above it"]
    elif scored.positive is None:
        words = ["Probability of the most probable class", "Share of images where it is right"]
    else:
        name = scored.classes[scored.positive]
        words = [f"Probability of {name}", f"Share with {name}"]
    return [textwrap.shorten(one, 46) for one in words]


def _reliability(
    means: NDArray[np.float64],
    shares: NDArray[np.float64],
    counts: NDArray[np.integer],
    words: Sequence[str],
) -> Figure:
    """Draw observed shares against probabilities, over a histogram of the probabilities."""
    figure = Figure(figsize=(4.2, 5.4))
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    axes.plot([0, 1], [0, 1], label="calibrated", **pages.REFERENCE)
    for mean, share, n in zip(means, shares, counts[counts > 0], strict=True):
        interval = binomtest(round(share * n), int(n)).proportion_ci(method="wilson")
        axes.vlines(mean, interval.low, interval.high, color=pages.COLOURS[0], linewidth=1)
    axes.plot(means, shares, marker="o", label="found, 95 % intervals", **pages.line(0))
    axes.set(ylabel=words[1], xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    figure.legend(loc="outside upper left", ncols=2)
    bars = below.bar((np.arange(BINS) + 0.5) / BINS, counts, width=0.09, color=pages.COLOURS[5])
    below.bar_label(bars, fontsize=8)
    below.set(xlabel=words[0], ylabel="Count")
    below.margins(y=0.25)
    return figure
