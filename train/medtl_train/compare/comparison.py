"""Whether one run is better than another on the same images: paired differences and tests.

The first run is what the others are compared with. Only images count that all runs have predictions
of, by the digest of their pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from medtl_runtime.decision import OperatingPoint
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head
from medtl_train.evaluation import predictions
from medtl_train.finished import read_summary
from medtl_train.scoring import paired
from medtl_train.scoring.assessment import one_image_a_patient
from medtl_train.scoring.bootstrap import Estimate, estimate, p_value
from medtl_train.scoring.metrics import measure_with_intervals, resampled_differences
from medtl_train.scoring.scored import Answers, Scored, ScoredValues, default_point

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a finished run said of the images of a split."""

    name: str
    heads: tuple[Head, ...]
    points: dict[str, OperatingPoint]
    """By the name of the head."""
    rows: pl.DataFrame
    """See `predictions`."""
    patients_known: bool
    """Else each image counts as a patient of its own."""


def read_run(folder: Path, split: str) -> Run:
    """Read a run's predictions.

    Raises
    ------
    UsageError
        The run is not finished, damaged, of another version, or has no images of the split.
    """
    summary = read_summary(folder)
    fields = ("kind", "classes", "unit", "mean", "std")
    try:
        heads = tuple(
            Head.from_json({"name": name, **{field: described[field] for field in fields}})
            for name, described in summary["heads"].items()
        )
        points = {head.name: _point(head, summary["heads"][head.name]) for head in heads}
    except (LookupError, TypeError, AttributeError) as cause:
        raise UsageError(f"{folder / 'metrics.json'} is damaged: its heads are none") from cause
    rows = predictions.read(folder, split, heads)
    known = bool(summary["data"]["patients_known"])
    return Run(name=str(folder), heads=heads, points=points, rows=rows, patients_known=known)


def _point(head: Head, described: Mapping[str, Any]) -> OperatingPoint:
    """Return the operating point; folds together have none of their own."""
    if described["operating_point"] is None:
        return default_point(head, described["positive"])
    return OperatingPoint(**described["operating_point"])


def compare(runs: Sequence[Run], split: str, *, seed: int = 0) -> dict[str, Any]:
    """Return how runs differ from the first, as JSON values.

    Returns
    -------
    ``split``, ``runs`` (their names), ``images`` and ``patients`` that all have, ``left_out`` (by
    run: images that not all have), ``patients_known``, ``one_image_a_patient``, ``resamples``, and
    ``heads``: by the name of each head that all have, ``kind``, ``classes``, ``unit``, ``primary``
    (the metric of the pictures) and ``runs``, a row for each:

    - ``run``, ``images``, and ``metrics`` with 95 % intervals;
    - ``differences`` from the first run, of each metric, with 95 % interval and ``p``;
    - ``tests``: of the primary metric and of the decisions, each with ``name``, ``method``, ``p``
      and ``p_holm``, adjusted for all comparisons of its name on the page.

    The first row has neither differences nor tests.

    Raises
    ------
    UsageError
        The runs have no head or no image in common, or do not agree on the truth.
    """
    assert len(runs) > 1
    heads = _common_heads(runs)
    aligned = _aligned(runs)
    first = aligned[0].rows
    patients = first["patient"].to_numpy().astype(str)
    by_head = {}
    for head in heads:
        answers = [_answers(run, head) for run in aligned]
        _require_same_truth(aligned, answers, head)
        by_head[head.name] = {
            "kind": head.kind,
            "classes": list(head.classes),
            "unit": head.unit,
            "primary": primary(head),
            "runs": _rows(aligned, answers, head, seed),
        }
    _adjust([row for found in by_head.values() for row in found["runs"]])
    return {
        "split": split,
        "runs": [run.name for run in runs],
        "images": len(first),
        "patients": len(np.unique(patients)),
        "left_out": {run.name: run.rows["digest"].n_unique() - len(first) for run in runs},
        "patients_known": all(run.patients_known for run in runs),
        "one_image_a_patient": one_image_a_patient(patients),
        "resamples": RESAMPLES,
        "heads": by_head,
    }


def primary(head: Head) -> str:
    """Return the metric that a head is compared by first."""
    return "mae" if head.kind == "regression" else "auroc"


def _common_heads(runs: Sequence[Run]) -> list[Head]:
    """Return the heads that all runs have with the same classes, or in the same unit."""

    def asked(head: Head) -> tuple[object, ...]:
        return head.name, head.kind, head.classes, head.unit

    others = [{asked(head) for head in run.heads} for run in runs[1:]]
    found = [head for head in runs[0].heads if all(asked(head) in other for other in others)]
    if not found:
        labels = "; ".join(f"{run.name}: {', '.join(h.name for h in run.heads)}" for run in runs)
        raise UsageError(f"the runs have no label with the same classes in common ({labels})")
    return found


def _aligned(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with the rows of the images that all have, in the order of the first."""
    common = set.intersection(*(set(run.rows["digest"]) for run in runs))
    order = [digest for digest in runs[0].rows["digest"].unique(maintain_order=True)
             if digest in common]  # fmt: skip
    if not order:
        raise UsageError("the runs have no image in common: they were tested on other data")
    wanted = pl.DataFrame({"digest": order})
    return [
        replace(
            run,
            rows=wanted.join(
                run.rows.unique("digest", keep="first"), on="digest", maintain_order="left"
            ),
        )
        for run in runs
    ]


def _answers(run: Run, head: Head) -> Answers:
    own = next(one for one in run.heads if one.name == head.name)
    return predictions.answers_of(run.rows, own, run.points[own.name])


def _truth(answers: Answers) -> NDArray[Any]:
    return answers.values if isinstance(answers, ScoredValues) else answers.labels


def _require_same_truth(runs: Sequence[Run], answers: Sequence[Answers], head: Head) -> None:
    for run, one in zip(runs[1:], answers[1:], strict=True):
        if not np.array_equal(_truth(one), _truth(answers[0])):
            raise UsageError(
                f"{run.name} and {runs[0].name} do not agree on the true {head.name} of the images "
                "that both have; runs of different labels cannot be compared"
            )
        positives = [a.point.positive for a in (one, answers[0]) if isinstance(a, Scored)]
        if len(set(positives)) > 1:
            found = f"{run.name} looks for {positives[0]} and {runs[0].name} for {positives[1]}"
            raise UsageError(f"{found} in {head.name}; train them with the same --positive")


def _rows(
    runs: Sequence[Run], answers: Sequence[Answers], head: Head, seed: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for run, one in zip(runs, answers, strict=True):
        row = {
            "run": run.name,
            "images": len(one.patients),
            "metrics": measure_with_intervals(one, seed=seed, resamples=RESAMPLES),
            "differences": None,
            "tests": None,
        }
        if rows:
            changes = _differences(answers[0], one, seed)
            row |= {"differences": changes, "tests": _tests(answers[0], one, head, changes)}
        rows.append(row)
    return rows


def _differences(before: Answers, after: Answers, seed: int) -> dict[str, Estimate]:
    found = resampled_differences(before, after, seed=seed, resamples=RESAMPLES)
    return {
        name: {**estimate(value, drawn), "p": _finite(p_value(drawn))}
        for name, (value, drawn) in found.items()
    }


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def _tests(
    before: Answers, after: Answers, head: Head, changes: dict[str, Estimate]
) -> list[dict[str, Any]]:
    """Return the tests of the primary metric and, with classes, of the decisions."""
    name = primary(head)
    by_bootstrap = {
        "name": name,
        "method": "paired bootstrap over patients",
        "p": changes[name]["p"],
    }
    if isinstance(before, ScoredValues) or isinstance(after, ScoredValues):
        return [by_bootstrap]
    area = paired.areas(before, after)
    decisions = paired.decisions(before, after)
    first = by_bootstrap if area is None else {"name": name, **area}
    return [first, {"name": "decisions", **decisions}]


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Add the p-values adjusted for all tests of a name (Holm, Scand J Statist 1979)."""
    tests = [test for row in rows for test in row["tests"] or ()]
    for name in {test["name"] for test in tests}:
        same = [test for test in tests if test["name"] == name]
        for test, adjusted in zip(same, paired.holm([test["p"] for test in same]), strict=True):
            test["p_holm"] = adjusted
