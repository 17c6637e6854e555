"""What the HTML reports share: pages without network or script, with pictures as inline SVG.

A page is a template of its package, ``report.html.j2`` if no other is named. It extends
``page.html.j2``, which has the style, and imports from ``macros.html.j2``.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Vector = NDArray[np.floating]

# Okabe and Ito's colours; dashes as well, for print without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ((), (6, 2), (1.5, 1.5), (6, 2, 1.5, 2))
REFERENCE: dict[str, Any] = {"color": "#767676", "linewidth": 1, "linestyle": (0, (2, 3))}
"""The look of a line to compare with."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "lines.scale_dashes": False,
    "lines.linewidth": 1.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e5e8",
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}
_NEAR = 11.0
"""How far a text is from its point, in points of 1/72 inch, where there is room."""
_ROOM = (11.0, 7.5)
"""What a text takes, across and up."""


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the style of the reports, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def render(package: str, *, template: str = "report.html.j2", **values: Any) -> str:
    """Return a page of a package, with every value escaped that is not `Markup`."""
    # The package's own template comes before that of the training run.
    packages = dict.fromkeys((package, "medtl_train"))
    loader = ChoiceLoader([PackageLoader(name) for name in packages])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(values)


def plot(figure: Figure, alt: str) -> Markup:
    """Return a figure as SVG to stand inside HTML: no namespaces, no styles, the page's font."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # The salt makes the identifiers of clip paths and markers the plot's own on the page.
    with matplotlib.rc_context({"svg.hashsalt": alt}):
        figure.savefig(file, format="svg", metadata=nothing)
    svg = re.sub(
        r"<!.*?>\s*|<\?.*?>\s*|<defs>\s*<style.*?</defs>\s*"
        r'| (?:xmlns(?::xlink)?|version)="[^"]*"| id="[A-Za-z.0-9]+_\d+"|font-family: [^;"]*;? ?',
        "",
        file.getvalue(),
        flags=re.DOTALL,
    )
    # Matplotlib escapes the texts in it.
    return Markup('<div class="plot" role="img" aria-label="{}">{}</div>').format(alt, Markup(svg))


def line(k: int) -> dict[str, Any]:
    """Return the look of the ``k``-th line of a plot."""
    dashes = DASHES[k % len(DASHES)]
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": (0, dashes) if dashes else "-"}


def label(axes: Axes, texts: Sequence[tuple[str, float, float]]) -> None:
    """Write short texts beside points, where no other point or text is.

    The limits of the axes, and all else that moves them, have to be set before.

    Parameters
    ----------
    texts
        Each with its point's x and y, in data units.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # pyright: ignore[reportAttributeAccessIssue]
    scale = 72 / figure.dpi  # from pixels to points
    taken = [tuple(at) for at in axes.transData.transform([t[1:] for t in texts]) * scale]
    box = axes.get_window_extent()
    for text, x, y in texts:
        here = axes.transData.transform((x, y)) * scale
        offset = _free(here, taken, np.array(box.extents) * scale)
        taken.append(tuple(here + offset))
        arrow = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            text,
            (x, y),
            tuple(offset),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            arrowprops=arrow if np.hypot(*offset) > _NEAR + 1 else None,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        )


def _free(here: Vector, taken: Sequence[tuple[float, ...]], box: Vector) -> Vector:
    """Return the shortest way from a point to where nothing is; all in points of 1/72 inch."""
    turns = np.pi / 4 * np.array([1, 7, 3, 5, 0, 2, 4, 6])
    ways = [r * np.array([np.cos(a), np.sin(a)]) for r in _NEAR * np.arange(1, 6) for a in turns]
    for way in ways:
        there = here + way
        is_inside = (there > box[:2] + 6).all() and (there < box[2:] - 6).all()
        if is_inside and not (np.abs(np.array(taken) - there) < _ROOM).all(axis=1).any():
            return way
    return ways[0]
