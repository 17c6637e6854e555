"""The page of a comparison of runs: tables and forest plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medtl_runtime.files import write_text
from medtl_train import pages
from medtl_train.scoring.bootstrap import Estimate

Row = Mapping[str, Any]


def write_comparison(path: Path, found: Mapping[str, Any]) -> None:
    """Write what `comparison.compare` returned as one HTML file without network or script.

    Raises
    ------
    OutputNotWritten
        The disk is full, or ``path`` cannot be written to.
    """
    with pages.drawing():
        plots = {
            name: forest(head["runs"], head["primary"], name)
            for name, head in found["heads"].items()
        }
        page = pages.render("medtl_train", template="compare.html.j2", c=found, plots=plots)
    write_text(path, page)


def forest(rows: Sequence[Row], metric: str, head: str) -> Markup:
    """Return a metric of each run, and its difference from the first, with 95 % intervals."""
    figure = Figure(figsize=(9.2, 1.3 + 0.42 * len(rows)))
    values, changes = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    _draw(values, [row["metrics"][metric] for row in rows])
    _draw(changes, [(row["differences"] or {}).get(metric) for row in rows])
    words = metric.upper() if metric in ("auroc", "mae") else metric.replace("_", " ")
    names = [_short(row["run"]) for row in rows]
    values.set(xlabel=f"{words}, 95 % interval", yticks=range(len(rows)), yticklabels=names)
    values.set_ylim(len(rows) - 0.5, -0.5)
    changes.set(xlabel="Difference from the first run, 95 % interval")
    changes.axvline(0, **pages.REFERENCE)
    changes.tick_params(axis="y", length=0)
    return pages.plot(figure, f"{words} of {head} by run, and its difference from the first run")


def _draw(axes: Axes, estimates: Sequence[Estimate | None]) -> None:
    for k, found in enumerate(estimates):
        if found is None or found["value"] is None:
            continue
        look = pages.COLOURS[0]
        ends = np.array([found["low"], found["high"]], float)  # NaN, and no line, for None
        axes.plot(ends, [k, k], color=look, linewidth=2)
        axes.plot(found["value"], k, "s", color=look, markersize=6)


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"…{name[-27:]}"
