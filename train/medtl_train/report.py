"""The report of a training run: one HTML page that needs neither a network nor a script."""

import base64
import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.metrics as skm
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from medtl_runtime.files import write_text
from medtl_runtime.heatmap import evidence, overlay
from medtl_train import pages

Array = NDArray[Any]

# The splits of the evaluation, the one that counts most first.
_SPLITS = {"test": "test", "val": "validation"}
_BINS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What the model says of one split."""

    labels: NDArray[np.int64]
    """Index of the true class, (N,)."""
    probabilities: NDArray[np.float64]
    """(N, K)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One image to show with its class activation map."""

    pixels: NDArray[np.uint16]
    """Canonical, C x H x W, 0 to 65535."""
    cam: NDArray[np.float32]
    """K x h x w, in logits."""
    truth: int
    predicted: int
    probability: float
    """Of the predicted class."""
    source: str


def write_report(
    path: Path,
    *,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, Predictions],
    examples: Sequence[Example],
) -> None:
    """Write the report as one HTML file; the same input gives the same bytes.

    Parameters
    ----------
    metrics
        The document that goes to ``metrics.json``. ``positive`` is None for three classes or more,
        ``test`` where there is no test split, and a value or bound where it is not defined.
    history
        A row for each epoch.
    predictions
        By split: ``val``, and ``test`` where there is one.

    Raises
    ------
    OutputNotWritten
        The disk is full, or ``path`` cannot be written to.
    """
    splits = [(s, predictions[s]) for s in _SPLITS if s in predictions]
    with pages.drawing():
        page = pages.render(
            "medtl_train",
            m=metrics,
            history=history,
            learning=_learning(history, metrics["training"]),
            discrimination={s: _discrimination(s, found, metrics) for s, found in splits},
            calibration={s: _calibration(s, found, metrics) for s, found in splits},
            examples=[_example(example) for example in examples],
            seconds=timedelta(seconds=round(metrics["training"]["seconds"])),
        )
    write_text(path, page)


def _learning(history: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> list[Markup]:
    """Return the losses and the monitored metric by epoch."""
    best, monitor = training["best_epoch"], training["monitor"]
    metric = "auroc" if monitor == "loss" else monitor
    name = metric.upper() if metric in ("auroc", "f1") else metric.replace("_", " ").capitalize()
    losses = _by_epoch(history, best, "Loss", {"validation": "val_loss", "training": "train_loss"})
    monitored = _by_epoch(history, best, name, {"validation": metric})
    monitored.axes[0].set_ylim(min(0.48, monitored.axes[0].dataLim.y0 - 0.02), 1.02)
    words = f"over {len(history)} epochs; epoch {best} is the best"
    return [
        pages.plot(losses, f"Training and validation loss {words}"),
        pages.plot(monitored, f"Validation {name} {words}"),
    ]


def _by_epoch(
    history: Sequence[Mapping[str, Any]], best: int, name: str, columns: Mapping[str, str]
) -> Figure:
    """Draw columns of the history; mark the best epoch and the change of phase."""
    figure = Figure(figsize=(4.9, 3.4))
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    for k, (label, key) in enumerate(columns.items()):
        values = np.array([row[key] for row in history], float)
        axes.plot(epochs, values, marker=".", label=label, **pages.line(k))
    axes.set(xlabel="Epoch", ylabel=name, xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.axvline(best, color="black", linewidth=1, label=f"best epoch: {best}")
    for before, after in itertools.pairwise(history):
        if before["phase"] != after["phase"]:
            axes.axvline(after["epoch"] - 0.5, label="all layers from here", **pages.REFERENCE)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _unit_square(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, 4.2))
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return figure, axes


def _discrimination(split: str, found: Predictions, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return ROC and precision-recall curves, and their areas, for each class to find."""
    positive = metrics["positive"]
    roc, roc_axes = _unit_square("1 − specificity", "Sensitivity (recall)")
    pr, pr_axes = _unit_square("Recall (sensitivity)", "Precision")
    roc_axes.plot([0, 1], [0, 1], label="chance", **pages.REFERENCE)
    rows = []
    for k, name in enumerate(metrics["classes"]):
        if positive in (None, name):
            truth, scores, line = (
                found.labels == k,
                found.probabilities[:, k],
                pages.line(len(rows)),
            )
            areas = _one_against_rest(truth, scores, line, [roc_axes, pr_axes])
            dashes = pages.DASHES[len(rows) % len(pages.DASHES)]
            rows.append({"name": name, "colour": line["color"], "dashes": dashes, **areas})
    if positive is not None:
        measured = metrics[_SPLITS[split]]["metrics"]
        # A value that is not defined is NaN here, and nothing is drawn.
        recall, specificity, precision = np.array(
            [measured[key]["value"] for key in ("recall", "specificity", "precision")], float
        )
        roc_axes.plot(1 - specificity, recall, "ko", label="operating point")
        pr_axes.plot(recall, precision, "ko", label="operating point")
        pr_axes.axhline(rows[0]["images"] / len(found.labels), label="chance", **pages.REFERENCE)
        pr_axes.legend(loc="lower left")
    roc_axes.legend(loc="lower right")
    words = f"of {positive or 'each class against the rest'} on {_SPLITS[split]} images"
    alts = (f"Receiver operating characteristic {words}", f"Precision against recall {words}")
    plots = [pages.plot(figure, alt) for figure, alt in zip((roc, pr), alts, strict=True)]
    return {"plots": plots, "rows": rows, "images": len(found.labels)}


def _one_against_rest(
    truth: Array, scores: Array, line: dict[str, Any], axes: Sequence[Axes]
) -> dict[str, Any]:
    """Draw one class's ROC and precision-recall; areas are None where a side has no images."""
    if len(np.unique(truth)) < 2:
        return {"images": int(truth.sum()), "auroc": None, "average_precision": None}
    false_positive, sensitivity, _ = skm.roc_curve(truth, scores)
    axes[0].plot(false_positive, sensitivity, **line)
    precision, recall, _ = skm.precision_recall_curve(truth, scores, drop_intermediate=True)
    axes[1].plot(recall, precision, drawstyle="steps-post", **line)
    return {
        "images": int(truth.sum()),
        "auroc": skm.roc_auc_score(truth, scores),
        "average_precision": skm.average_precision_score(truth, scores),
    }


def _calibration(split: str, found: Predictions, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reliability diagram, the expected calibration error and the Brier score.

    For two classes they are of the positive class's probability. For more, diagram and error are
    of the most probable class (Guo et al., ICML 2017) and the Brier score is a sum over classes.
    """
    truth = np.eye(len(metrics["classes"]))[found.labels]
    base = truth.mean(axis=0)
    if metrics["positive"] is None:
        score = found.probabilities.max(axis=1)
        hits = (found.probabilities.argmax(axis=1) == found.labels).astype(float)
        # In scikit-learn only from 1.7 on.
        brier = np.square(found.probabilities - truth).sum(axis=1).mean()
        constant = 1 - np.square(base).sum()
        words = ("Probability of the most probable class", "Share of images where it is right")
    else:
        k = metrics["classes"].index(metrics["positive"])
        score, hits = found.probabilities[:, k], truth[:, k]
        brier = skm.brier_score_loss(hits, score, pos_label=1)
        constant = base[k] * (1 - base[k])
        words = (f"Probability of {metrics['positive']}", f"Share with {metrics['positive']}")
    shares, means = calibration_curve(hits, score, pos_label=1, n_bins=_BINS)
    # calibration_curve does not count; its bins are closed on the right.
    edges = np.linspace(0, 1, _BINS + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], score), minlength=_BINS)
    error = np.abs(shares - means) @ counts[counts > 0] / len(score)
    figure = _reliability(means, shares, counts, [textwrap.shorten(w, 46) for w in words])
    plot = pages.plot(figure, f"Reliability diagram of the {_SPLITS[split]} images, with counts")
    return {"plot": plot, "error": error, "brier": brier, "constant": constant}


def _reliability(means: Array, shares: Array, counts: Array, words: Sequence[str]) -> Figure:
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
    bars = below.bar((np.arange(_BINS) + 0.5) / _BINS, counts, width=0.09, color=pages.COLOURS[5])
    below.bar_label(bars, fontsize=8)
    below.set(xlabel=words[0], ylabel="Images")
    below.margins(y=0.25)
    return figure


def _example(example: Example) -> dict[str, Any]:
    """Return an example with its picture, plain and with the evidence for the predicted class."""
    heat = evidence(example.cam, example.predicted)
    plain, coloured = overlay(example.pixels, np.zeros_like(heat)), overlay(example.pixels, heat)
    plain = plain.convert("L") if len(example.pixels) == 1 else plain
    return {"case": example, "plain": _png(plain), "overlay": _png(coloured), "peak": heat.max()}


def _png(picture: Image.Image) -> str:
    """Return a picture as a data URI, no larger than a page needs it."""
    picture.thumbnail((384, 384))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
