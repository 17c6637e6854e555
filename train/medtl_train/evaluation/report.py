"""The report of a training run: one HTML page that needs neither a network nor a script."""

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from medtl_runtime.files import write_text
from medtl_runtime.heatmap import overlay
from medtl_train import pages
from medtl_train.evaluation import charts, value_charts
from medtl_train.scoring.metrics import NAMES
from medtl_train.scoring.scored import Answers, ScoredValues

# The splits of the evaluation, the one that counts most first.
_SPLITS = ("test", "external", "validation")

# Of the history, what is shown for every epoch.
_IN_TABLE = (
    "auroc",
    "balanced_accuracy",
    "accuracy",
    "f1",
    "quadratic_weighted_kappa",
    "r2",
    "mae",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One image to show with where the network sees its answer."""

    pixels: NDArray[np.uint16]
    """Canonical, C x H x W, 0 to 65535."""
    heat: NDArray[np.float64]
    """h x w, in logits; above 0 what speaks for ``evidence``."""
    evidence: str
    truth: str
    predicted: str
    """With its probability, where it has one."""
    is_wrong: bool | None
    """None of a value, which is neither right nor wrong."""
    source: str


def write_report(
    path: Path,
    *,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Mapping[str, Answers]],
    examples: Sequence[Example],
) -> None:
    """Write the report as one HTML file; the same input gives the same bytes.

    Parameters
    ----------
    metrics
        The document that goes to ``metrics.json`` (docs/evaluation.md).
    history
        A row for each epoch; none of several networks that were trained apart.
    answers
        By split (``validation``, ``test``, ``external``), those that ``metrics`` has, and head.

    Raises
    ------
    OutputNotWritten
        The disk is full, or ``path`` cannot be written to.
    """
    with pages.drawing():
        page = pages.render(
            "medtl_train",
            m=metrics,
            history=history,
            learning=_learning(history, metrics["training"]) if history else [],
            columns=[name for name in _IN_TABLE if history and name in history[0]],
            monitor=in_words(metrics["training"]["monitor"]) if history else "",
            heads=[_head(name, metrics, answers) for name in metrics["heads"]],
            others=_others(metrics),
            examples=[_example(example) for example in examples],
            seconds=timedelta(seconds=round(metrics["training"]["seconds"])) if history else None,
        )
    write_text(path, page)


def _learning(history: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> list[Markup]:
    """Return the losses and the monitored metric by epoch."""
    best, monitor = training["best_epoch"], training["monitor"]
    losses = _by_epoch(history, best, "Loss", {"validation": "val_loss", "training": "train_loss"})
    name, column = ("AUROC", "auroc") if monitor == "loss" else (in_words(monitor), "monitored")
    monitored = _by_epoch(history, best, name, {"validation": column})
    if column == "auroc" or monitor in NAMES:
        monitored.axes[0].set_ylim(min(0.48, monitored.axes[0].dataLim.y0 - 0.02), 1.02)
    words = f"over {len(history)} epochs; epoch {best} is the best"
    return [
        pages.plot(losses, f"Training and validation loss {words}"),
        pages.plot(monitored, f"Validation {name} {words}"),
    ]


def in_words(monitor: str) -> str:
    """Return the name of what is monitored, as a text has it."""
    names = {"auroc": "AUROC", "f1": "F1", "r2": "R²", "mae": "MAE", "rmse": "RMSE"}
    return " and ".join(names.get(name, name.replace("_", " ")) for name in monitor.split(" and "))


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
            text = f"{after['phase']} from here"
            axes.axvline(after["epoch"] - 0.5, label=text, **pages.REFERENCE)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _others(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the networks that this one is of, or has learnt from: a title and rows of metrics."""
    split = "test" if metrics.get("test") else "validation"
    if "distillation" in metrics:
        title, words = "Teacher and student", f"Figures of the {split} images."
        teacher = metrics["distillation"]["teacher"]
        rows = [(one["run"], one[split]) for one in teacher["members"]]
        rows += [(teacher["name"], teacher[split]), ("the student", _by_head(metrics[split]))]
    elif "members" in metrics:
        title = "The members"
        words = f"Figures of each network by itself, on the {split} images; together: the ensemble."
        rows = [(one["run"], _by_head(one[split])) for one in metrics["members"]]
        rows.append(("the ensemble", _by_head(metrics[split])))
    elif "folds" in metrics:
        title, words = "The folds", "Test figures of each network by itself."
        rows = [(one["run"], _by_head(one[split])) for one in metrics["folds"]]
    else:
        return None
    return {"title": title, "words": words, "rows": rows}


def _by_head(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found["metrics"] for name, found in evaluation["heads"].items()}


def _head(
    name: str, metrics: Mapping[str, Any], answers: Mapping[str, Mapping[str, Answers]]
) -> dict[str, Any]:
    """Return what the page shows of a head."""
    splits = [split for split in _SPLITS if metrics.get(split)]
    evaluations = {split: metrics[split]["heads"][name] for split in splits}
    pictures = {}
    # Of several heads the validation images are drawn only where there are no others.
    for split in splits if len(metrics["heads"]) == 1 else splits[:2]:
        words = f"the {split} images" + ("" if len(metrics["heads"]) == 1 else f", {name}")
        pictures[split] = _pictures(answers[split][name], evaluations[split]["metrics"], words)
    rows = {split: by_head[name] for split, by_head in metrics.get("subgroups", {}).items()}
    return {
        "name": name,
        **metrics["heads"][name],
        "evaluations": evaluations,
        "pictures": pictures,
        "subgroups": {split: some for split, some in rows.items() if some},
    }


def _pictures(
    answers: Answers, metrics: Mapping[str, Mapping[str, float | None]], words: str
) -> dict[str, Any]:
    if isinstance(answers, ScoredValues):
        return {"agreement": value_charts.agreement(answers, metrics, words)}
    return {
        "discrimination": charts.discrimination(answers, metrics, words),
        "calibration": charts.calibration(answers, words),
    }


def _example(example: Example) -> dict[str, Any]:
    """Return an example with its picture, plain and with the evidence for the answer."""
    heat = example.heat
    plain, coloured = overlay(example.pixels, np.zeros_like(heat)), overlay(example.pixels, heat)
    plain = plain.convert("L") if len(example.pixels) == 1 else plain
    return {"case": example, "plain": _png(plain), "overlay": _png(coloured), "peak": heat.max()}


def _png(picture: Image.Image) -> str:
    """Return a picture as a data URI, no larger than a page needs it."""
    picture.thumbnail((384, 384))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
