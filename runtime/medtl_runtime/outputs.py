"""Where outcomes go: JSON lines, a table, CSV.

A `Sink` takes every outcome. It is a context manager that closes whatever happens, so that what was
found is shown even if something stops the rest.
"""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from medtl_runtime import commands
from medtl_runtime.files import refuse_existing, written_whole
from medtl_runtime.results import CaseResult, Failure, Outcome, why_abstained

if TYPE_CHECKING:
    from medtl_runtime.predictor import Predictor


Files = Mapping[str, Any]
"""By kind, such as ``heatmap``: the path of what was written, a list of paths, or a mapping with
the ``reason`` and the ``message`` why nothing was; as rows of JSON have it."""


class Sink:
    """Takes outcomes; a context manager that closes whatever happens."""

    def add(self, outcome: Outcome, files: Files) -> None:
        """Take one outcome, and what became of the files that were to be written for it."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class JsonLines(Sink):
    """One JSON object a line on stdout, as soon as it is known."""

    def add(self, outcome: Outcome, files: Files) -> None:
        """Print the outcome."""
        commands.show(json.dumps({**outcome.to_json(), **files}))


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What the table shows of an outcome."""

    scan: str
    frame: int | None = None
    finding: str
    chances: Mapping[str, float] | None = None
    milliseconds: float | None = None
    note: str = ""


def _row(outcome: Outcome, files: Files) -> _Row:
    if isinstance(outcome, Failure):
        note = "; ".join([outcome.error.reason, *_not_written(files)])
        return _Row(scan=outcome.scan, frame=outcome.frame, finding=outcome.status, note=note)
    if isinstance(outcome, CaseResult):
        warned = (warning.reason for one in outcome.scored for warning in one.warnings)
        notes = [_pooled(outcome), *outcome.notes, *dict.fromkeys(warned)]
        times = [one.milliseconds for one in outcome.scored]
    else:
        notes = [warning.reason for warning in outcome.warnings]
        times = [outcome.milliseconds]
    if outcome.finding is None:
        notes.insert(0, why_abstained(outcome))
    return _Row(
        scan=outcome.scan,
        frame=None if isinstance(outcome, CaseResult) else outcome.frame,
        finding=outcome.finding or outcome.status,
        chances=outcome.probabilities,
        milliseconds=sum(sum(steps.values()) for steps in times),
        note="; ".join([*notes, *_not_written(files)]),
    )


def _not_written(files: Files) -> list[str]:
    """Return why files are missing."""
    return [f"no {kind}: {one['message']}" for kind, one in files.items() if isinstance(one, dict)]


def _pooled(case: CaseResult) -> str:
    """Return how the slices make the case, and of how many: those like the training data."""
    scored, count = len(case.scored), len(case.slices)
    of = f"{count}" if scored == count else f"{scored} of {count}"
    return f"{case.aggregation} of {of} slices"


class Table(Sink):
    """A table on stdout, at the end."""

    def __init__(self, predictor: "Predictor") -> None:
        self._predictor = predictor
        self._rows: list[_Row] = []

    def add(self, outcome: Outcome, files: Files) -> None:
        """Remember the outcome's row; its pixels and maps are let go."""
        self._rows.append(_row(outcome, files))

    def close(self) -> None:
        """Print the table."""
        if not self._rows:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable

        terminal = sys.stdout.isatty()
        printed = io.StringIO()
        console = Console(
            file=printed,
            force_terminal=terminal,
            width=None if terminal else 400,  # in a log, rows stay on one line
            soft_wrap=True,
            markup=False,  # names are shown as they are: "[axial]" in a path is no markup
            emoji=False,
            highlight=False,
        )
        scored = any(row.chances for row in self._rows)
        classes = self._predictor.description.classes if scored else ()
        noted = any(row.note for row in self._rows)
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("scan", overflow="fold")
        table.add_column("finding")
        for name in classes:
            table.add_column(f"p({name})", justify="right")
        table.add_column("ms", justify="right")
        if noted:
            table.add_column("note", overflow="fold")
        several = {row.scan for row in self._rows if row.frame}
        for row in self._rows:
            table.add_row(*_cells(row, classes, numbered=row.scan in several, noted=noted))
        console.print(table)
        lines = printed.getvalue().rstrip("\n").splitlines()
        commands.show("\n".join(line.rstrip() for line in lines))
        if classes:
            commands.show(_footer(self._predictor.model))


def _cells(row: _Row, classes: Sequence[str], *, numbered: bool, noted: bool) -> list[str]:
    scan = commands.printable(row.scan)
    if numbered and row.frame is not None:
        scan += f" [{row.frame}]"
    chances = [f"{row.chances[name]:.3f}" if row.chances else "" for name in classes]
    spent = "" if row.milliseconds is None else f"{row.milliseconds:.1f}"
    note = [commands.printable(row.note)] if noted else []
    return [scan, row.finding, *chances, spent, *note]


def _footer(model: dict[str, str | None]) -> str:
    digest = f", {model['digest'][:19]}…" if model["digest"] else ""
    site = ", fitted on site" if model["site"] else ""
    return (
        f"model {model['name']} {model['version']} ({model['precision']}{site}){digest}"
        "  Research use only; not a medical device."
    )


class CsvFile(Sink):
    """A CSV file with a row for each image; it appears whole, at the end."""

    def __init__(self, path: Path, classes: Sequence[str], *, overwrite: bool) -> None:
        refuse_existing(path, overwrite=overwrite)
        self._path, self._classes = path, classes
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow([*_CSV_COLUMNS, *(f"p({name})" for name in classes)])

    def add(self, outcome: Outcome, files: Files) -> None:
        """Add the outcome's row, and those of its slices."""
        if isinstance(outcome, CaseResult):
            for one in outcome.slices:
                self._write(one, {}, outcome.series_instance_uid)
            self._write(outcome, files, outcome.series_instance_uid)
        else:
            self._write(outcome, files, outcome.header.series_instance_uid)

    def _write(self, outcome: Outcome, files: Files, series: str) -> None:
        row = {**outcome.to_json(), **_flat(outcome), "series_instance_uid": series}
        row["not_written"] = "; ".join(_not_written(files))
        row |= {kind: one for kind, one in files.items() if not isinstance(one, dict)}
        chances = row.get("probabilities", {})
        self._writer.writerow(
            [*(_cell(row.get(name)) for name in _CSV_COLUMNS)]
            + [chances.get(name, "") for name in self._classes]
        )

    def close(self) -> None:
        """Write the file."""
        text = self._text.getvalue().encode("utf-8", "backslashreplace")  # names that are no UTF-8
        with written_whole(self._path) as part:
            part.write_bytes(text)


_CSV_COLUMNS = (
    "scan",
    "frame",
    "sop_instance_uid",
    "series_instance_uid",
    "status",
    "finding",
    "reason",
    "message",
    "attribute",
    "found",
    "expected",
    "prediction_set",
    "energy",
    "mahalanobis",
    "warnings",
    "model_digest",
    "site_digest",
    "heatmap",
    "secondary_capture",
    "sr",
    "not_written",
)


def _flat(outcome: Outcome) -> dict[str, Any]:
    """Return the columns that rows of JSON have in another form."""
    if isinstance(outcome, Failure):
        return {}
    model = (outcome.scored[0] if isinstance(outcome, CaseResult) else outcome).model
    flat: dict[str, Any] = {"model_digest": model["digest"], "site_digest": model["site"]}
    if isinstance(outcome, CaseResult):
        return {**flat, "message": _pooled(outcome)}
    novelty = {} if outcome.novelty is None else outcome.novelty.to_json()
    return {**flat, **novelty, "warnings": "; ".join(one.reason for one in outcome.warnings)}


def _cell(value: object) -> str:
    """Return text as it is, nothing for None, and other values as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)
