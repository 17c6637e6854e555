"""The report of an export: one HTML page that needs neither a network nor a script."""

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medtl_export.card import card_json
from medtl_export.cutoffs import DEFAULT_MISSES
from medtl_export.gate import Difference
from medtl_export.targets import TARGETS
from medtl_runtime.files import write_text
from medtl_runtime.modelfile import Description
from medtl_train import pages

Kind = Literal["float", "chosen", "passing", "failing", "not judged"]

# Shapes as well as colours, for print without colour.
_LOOKS: dict[Kind, dict[str, Any]] = {
    "float": {"marker": "s", "color": "black", "markersize": 7},
    "chosen": {
        "marker": "D",
        "color": pages.COLOURS[2],
        "markersize": 10,
        "mec": "black",
        "zorder": 3,
    },
    "passing": {"marker": "o", "color": pages.COLOURS[0], "markersize": 7, "mfc": "white"},
    "failing": {"marker": "X", "color": pages.COLOURS[1], "markersize": 7, "mec": "white"},
    "not judged": {"marker": "|", "color": "#565c64", "markersize": 9},
}
_WORDS: dict[Kind, str] = {
    "float": "float network",
    "chosen": "in the file",
    "passing": "no worse than allowed",
    "failing": "worse than allowed",
    "not judged": "not judged",
}
_DEEPEST = 0.05
"""A loss that the picture has room for; in allowed drops, `_DEEPEST_DROPS`, where that is more."""
_DEEPEST_DROPS = 5


@dataclass(frozen=True, kw_only=True)
class Point:
    """A candidate that was timed, or the float network."""

    number: int
    """In the table of the page; 0 is the float network."""
    kind: Kind
    milliseconds: float
    fastest: float
    slowest: float
    """The 95 % interval of the time."""
    difference: Difference | None
    """None where the validation images were not asked, or cannot tell."""


def write_report(
    path: Path, *, description: Description, size_bytes: int, float_bytes: int, digest: str
) -> None:
    """Write the report as one HTML file; the same input gives the same bytes.

    Parameters
    ----------
    description
        As the exporter writes it, with the whole ``provenance``.
    size_bytes, float_bytes
        Of the model file, and of the float network's graph.
    digest
        ``sha256:`` and the SHA-256 of the model file.

    Raises
    ------
    OutputNotWritten
        The disk is full, or ``path`` cannot be written to.
    """
    account = description.quantisation
    timed = points(description)
    with pages.drawing():
        page = pages.render(
            "medtl_export",
            d=description,
            facts=description.provenance,
            account=account,
            wanted=TARGETS[account["target"]].precision if account else None,
            metric=_metric(description) if account else None,
            worst=_metric(description, account.get("head")) if account else None,
            reference=_reference(account) if account else None,
            candidates=candidates(description),
            timed=timed,
            optimal=[point.number for point in frontier(timed)],
            picture=_picture(timed, description) if account and len(timed) > 1 else None,
            kept=_kept(account) if account else [],
            card=card_json(description, subgroups=(), digest=digest, size_bytes=size_bytes),
            size_bytes=size_bytes,
            float_bytes=float_bytes,
            command=_command(description),
        )
    write_text(path, page)


def candidates(description: Description) -> list[Mapping[str, Any]]:
    """Return the rows of the search; what the file holds is one of them, if it is not float."""
    account = description.quantisation
    if account is None:
        return []
    rows = list(account["search"])
    if description.precision == "fp32" or any(row["verdict"] == "chosen" for row in rows):
        return rows
    measured = {name: account[name] for name in ("latency", "difference", "head", "flips")}
    name = {"fp16": "float16"}.get(description.precision, description.precision)
    return [*rows, {"name": name, **measured, "error": None, "verdict": "chosen"}]


def points(description: Description) -> tuple[Point, ...]:
    """Return the float network and the candidates whose time was measured.

    Times of different comparisons are made comparable: a candidate's is its share of the float
    network's in the same comparison, times the median of the float network's times.
    """
    account, rows = description.quantisation, candidates(description)
    references = [row["latency"]["reference_ms"] for row in rows if row["latency"]]
    if account is None or not references:
        return ()
    float_ms = median(references)
    found = [
        Point(
            number=0,
            kind="float",
            milliseconds=float_ms,
            fastest=float_ms,
            slowest=float_ms,
            difference=_of_float(description, account),
        )
    ]
    for number, row in enumerate(rows, start=1):
        if (latency := row["latency"]) is None:
            continue
        difference = Difference(**row["difference"]) if row["difference"] else None
        found.append(
            Point(
                number=number,
                kind=_kind(row, difference, account, description.precision),
                milliseconds=float_ms / latency["speed_up"],
                fastest=float_ms / latency["high"],
                slowest=float_ms / latency["low"],
                difference=difference,
            )
        )
    return tuple(found)


def _of_float(description: Description, account: Mapping[str, Any]) -> Difference | None:
    """Return the float network's difference: none from itself, but some from a teacher."""
    if description.precision == "fp32" and account["difference"]:
        return Difference(**account["difference"])
    return None if account.get("distillation") else Difference(value=0, low=0, high=0)


def _kind(
    row: Mapping[str, Any],
    difference: Difference | None,
    account: Mapping[str, Any],
    precision: str,
) -> Kind:
    if row["verdict"] == "chosen" and precision != "fp32":
        return "chosen"
    if difference is None:
        return "not judged"
    drop = account["max_drop"]
    return "passing" if drop is None or difference.low > -drop else "failing"


def frontier(timed: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in time or difference without losing in the other.

    They come in the order of their times. Points that are equal in both are all kept; a point
    without a difference never counts.
    """
    judged = [(p, p.milliseconds, p.difference.value) for p in timed if p.difference]
    best = [
        p
        for p, ms, value in judged
        if not any(t <= ms and v >= value and (t, v) != (ms, value) for _, t, v in judged)
    ]
    return sorted(best, key=lambda p: (p.milliseconds, p.number))


def _picture(timed: Sequence[Point], description: Description) -> Markup:
    """Return the difference of the metric against the time, as SVG."""
    account, metric = description.quantisation, _metric(description)
    assert account is not None
    judged, span = [p for p in timed if p.difference], _span(timed)
    lanes = _lanes([p for p in timed if not p.difference], 0.035 * (span[1] - span[0]))
    heights = [5.0, 0.2 + 0.16 * len(lanes)] if lanes else [5.0]
    figure = Figure(figsize=(9.4, sum(heights)))
    rows = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
    axes, lowest = rows[0, 0], rows[-1, 0]
    size = account["conditions"]["batch_size"]
    what = "one image" if size == 1 else f"a batch of {size} images"
    lowest.set_xlabel(f"Milliseconds for {what} (left is faster)")
    axes.set(xlim=span, ylim=_limits(judged, account["max_drop"]))
    axes.set_ylabel(f"Change of {metric} against {_reference(account)} (up is better)")
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    _draw(axes, timed, account["max_drop"])
    if lanes:
        _draw_strip(lowest, lanes)
    figure.legend(loc="outside upper left", ncols=4)
    bottom = axes.get_ylim()[0]
    numbered = [(str(p.number), p.milliseconds, max(_value(p), bottom)) for p in judged]
    pages.label(axes, [one for one in numbered if one[0] != "0"])
    words = f"Change of validation {metric} against time, {len(timed) - 1} candidates and float"
    return pages.plot(figure, words)


def _metric(description: Description, of: str | None = None) -> str:
    """Return what the gate compares, by all heads or by the one ``of`` a name, in words."""
    assert description.quantisation is not None
    kinds = {head.kind for head in description.heads if of in (None, head.name)}
    if kinds == {"regression"}:
        return "R²"
    metric: str = description.quantisation["metric"]
    name = "AUROC" if metric == "auroc" else metric.replace("_", " ")
    return f"{name} or R²" if "regression" in kinds else name


def _reference(account: Mapping[str, Any]) -> str:
    """Return what accuracy is compared with; time is always compared with the float network."""
    return "the teacher" if account.get("distillation") else "the float network"


def _span(timed: Sequence[Point]) -> tuple[float, float]:
    low, high = min(p.fastest for p in timed), max(p.slowest for p in timed)
    margin = 0.06 * (high - low) or 0.1 * high
    return low - margin, high + margin


def _limits(judged: Sequence[Point], max_drop: float | None) -> tuple[float, float]:
    """Return the picture's lower and upper end; one bad candidate must not flatten the others."""
    deepest = -max(_DEEPEST, _DEEPEST_DROPS * (max_drop or 0))
    near = [p.difference for p in judged if p.difference and p.difference.value >= deepest]
    low = max(1.5 * deepest, min([-(max_drop or 0), -0.001, *(d.low for d in near)]))
    high = min(-1.5 * deepest, max([0.001, *(d.high for d in near)]))
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def _value(point: Point) -> float:
    assert point.difference is not None
    return point.difference.value


def _draw(axes: Axes, timed: Sequence[Point], max_drop: float | None) -> None:
    """Draw what is compared with, the frontier, the intervals and the points."""
    judged = [p for p in timed if p.difference]
    axes.axhline(0, color="#767676", linewidth=0.8)
    if max_drop is not None:
        axes.axhline(-max_drop, label=f"allowed drop, {max_drop:g}", **pages.REFERENCE)
    if best := [(p.milliseconds, _value(p)) for p in frontier(judged)]:
        x, y = zip(*best, (axes.get_xlim()[1], best[-1][1]), strict=True)
        look = pages.line(1) | {"color": pages.COLOURS[0], "linewidth": 1.2}
        axes.plot(x, y, drawstyle="steps-post", label="Pareto frontier", **look)
    for point in judged:
        assert point.difference is not None
        color, d = _LOOKS[point.kind]["color"], point.difference
        axes.vlines(point.milliseconds, d.low, d.high, color=color, linewidth=0.8)
        axes.hlines(d.value, point.fastest, point.slowest, color=color, linewidth=0.8)
    bottom = axes.get_ylim()[0]
    is_float = all(p.kind != "chosen" for p in timed)
    for kind, look in _LOOKS.items():
        at = [(p.milliseconds, _value(p)) for p in judged if p.kind == kind]
        shown, deeper = [xy for xy in at if xy[1] >= bottom], [x for x, y in at if y < bottom]
        if shown:
            words = _WORDS[kind] + (", in the file" if kind == "float" and is_float else "")
            axes.plot(*zip(*shown, strict=True), linestyle="", label=words, **look)
        if deeper:
            arrow = {**look, "marker": "v", "markersize": 9, "linestyle": "", "clip_on": False}
            axes.plot(deeper, [bottom] * len(deeper), label="lower than the picture", **arrow)


def _lanes(points: Sequence[Point], gap: float) -> list[list[Point]]:
    """Return points in lines, so that those of one line are at least ``gap`` apart."""
    lanes: list[list[Point]] = []
    for point in sorted(points, key=lambda p: (p.milliseconds, p.number)):
        for lane in lanes:
            if point.milliseconds - lane[-1].milliseconds >= gap:
                lane.append(point)
                break
        else:
            lanes.append([point])
    return lanes


def _draw_strip(axes: Axes, lanes: Sequence[Sequence[Point]]) -> None:
    """Draw the times of points without a difference."""
    axes.set(yticks=[], ylim=(len(lanes) - 0.4, -0.6))
    axes.set_ylabel("not\njudged", rotation=0, ha="right", va="center")
    axes.grid(visible=False, axis="y")
    for row, lane in enumerate(lanes):
        for point in lane:
            look = _LOOKS[point.kind]
            axes.plot(point.milliseconds, row, linestyle="", clip_on=False, **look)
            near = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            text = str(point.number or "float")
            axes.annotate(text, (point.milliseconds, row), fontsize=8, **near)


def _kept(account: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what runs in float, by reason and operator."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in account["kept_in_float"]:
        groups[one["reason"], one["operator"]].append(one["node"])
    return [
        {"reason": reason, "operator": operator, "nodes": nodes}
        for (reason, operator), nodes in sorted(groups.items())
    ]


def _error_rate(description: Description) -> float | None:
    """Return the error rate that was asked for; None for none."""
    for own in description.decision.heads:
        if own.triage is not None:
            return own.triage.error_rate
        if own.interval is not None and own.interval.coverage != 1 - DEFAULT_MISSES:
            return round(1 - own.interval.coverage, 12)
    return None


def _command(description: Description) -> str:
    """Return the command that exports the same again, as far as the description knows it."""
    facts, account = description.provenance, description.quantisation
    novelty = description.decision.novelty
    distilled = (account or {}).get("distillation")
    run = distilled["teacher"]["name"] if distilled else facts["run"]
    options: dict[str, Any] = {"--output": f"models/{description.name}.onnx"}
    options["--target"] = account["target"] if account else description.target
    if distilled:
        options["--distil"] = facts["architecture"]
    if account:
        drop = account["max_drop"]
        options |= {
            "--metric": account["metric"],
            "--max-drop": "none" if drop is None else drop,
            "--calibration-images": account["calibration_images"],
            "--batch-size": account["conditions"]["batch_size"],
            "--threads": account["conditions"]["threads"],
        }
    options["--false-refusal-rate"] = novelty.false_refusal_rate if novelty else 0
    options["--error-rate"] = _error_rate(description)
    options["--aggregation"] = description.aggregation
    first = ["medtl-export", f"runs/{run}", *(["--quantize"] if account else [])]
    first += ["--qat"] if account and account.get("qat") else []
    lines = [first, *([name, str(v)] for name, v in options.items() if v is not None)]
    return " \\\n  ".join(shlex.join(line) for line in lines)
