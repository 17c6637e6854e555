"""Where outcomes go: JSON lines, a table; see `csv_file` for CSV.

A `Sink` takes every outcome. It is a context manager that closes whatever happens, so that what was
found is shown even if something stops the rest.
"""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from medtl_runtime import commands
from medtl_runtime.answers import Answer, Answers
from medtl_runtime.heads import Head
from medtl_runtime.results import CaseResult, Failure, Outcome

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
    status: str
    answers: Answers | None = None
    milliseconds: float | None = None
    note: str = ""


def _row(outcome: Outcome, files: Files) -> _Row:
    if isinstance(outcome, Failure):
        note = "; ".join([outcome.error.reason, *not_written(files)])
        return _Row(scan=outcome.scan, frame=outcome.frame, status=outcome.status, note=note)
    if isinstance(outcome, CaseResult):
        warned = (warning.reason for one in outcome.scored for warning in one.warnings)
        notes = [pooled(outcome), *outcome.notes, *dict.fromkeys(warned)]
        times = [one.milliseconds for one in outcome.scored]
    else:
        notes = [warning.reason for warning in outcome.warnings]
        times = [outcome.milliseconds]
    unsure = {name: one for name, one in outcome.answers.items() if one.is_abstained}
    whose = {name: f"{name}: " if len(outcome.answers) > 1 else "" for name in unsure}
    notes = [*(f"{whose[name]}{one.why_abstained}" for name, one in unsure.items()), *notes]
    return _Row(
        scan=outcome.scan,
        frame=None if isinstance(outcome, CaseResult) else outcome.frame,
        status=outcome.status,
        answers=outcome.answers,
        milliseconds=sum(sum(steps.values()) for steps in times),
        note="; ".join([*notes, *not_written(files)]),
    )


def not_written(files: Files) -> list[str]:
    """Return why files are missing."""
    return [f"no {kind}: {one['message']}" for kind, one in files.items() if isinstance(one, dict)]


def pooled(case: CaseResult) -> str:
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
        scored = any(row.answers for row in self._rows)
        heads = self._predictor.description.heads if scored else ()
        noted = any(row.note for row in self._rows)
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("scan", overflow="fold")
        for name, justify in _answer_columns(heads, scored=scored):
            table.add_column(name, justify=justify)
        table.add_column("ms", justify="right")
        if noted:
            table.add_column("note", overflow="fold")
        several = {row.scan for row in self._rows if row.frame}
        for row in self._rows:
            shown = _answer_cells(row, heads, scored=scored)
            table.add_row(*_cells(row, shown, numbered=row.scan in several, noted=noted))
        console.print(table)
        lines = printed.getvalue().rstrip("\n").splitlines()
        commands.show("\n".join(line.rstrip() for line in lines))
        if scored:
            commands.show(_footer(self._predictor.model))


def _answer_columns(
    heads: Sequence[Head], *, scored: bool
) -> list[tuple[str, Literal["left", "right"]]]:
    """Return the columns for what was found: by class for one head, by head for several."""
    if not scored:
        return [("finding", "left")]
    if _has_classes_only(heads):
        return [("finding", "left"), *((f"p({name})", "right") for name in heads[0].classes)]
    return [("status", "left"), *((commands.printable(head.name), "left") for head in heads)]


def _answer_cells(row: _Row, heads: Sequence[Head], *, scored: bool) -> list[str]:
    """Return the cells of `_answer_columns`."""
    if not scored:
        return [row.status]
    if not _has_classes_only(heads):
        if row.answers is None:
            return [row.status, *("" for _ in heads)]
        return [row.status, *(_in_short(row.answers[head.name]) for head in heads)]
    if row.answers is None:
        return [row.status, *("" for _ in heads[0].classes)]
    answer = row.answers[heads[0].name]
    assert answer.probabilities is not None
    return [answer.finding or row.status, *(f"{p:.3f}" for p in answer.probabilities.values())]


def _has_classes_only(heads: Sequence[Head]) -> bool:
    """Whether there is a single head, and it has classes."""
    return len(heads) == 1 and heads[0].kind != "regression"


def _in_short(answer: Answer) -> str:
    """Return an answer in one cell: the finding with its probability, or the value."""
    if answer.value is None:
        chances = answer.probabilities or {}
        return f"{answer.finding} {chances[answer.finding]:.3f}" if answer.finding else "abstained"
    value = f"{answer.value:.4g} {answer.unit or ''}".strip()
    if answer.interval is None:
        return value
    return f"{value} ({answer.interval.low:.4g} to {answer.interval.high:.4g})"


def _cells(row: _Row, shown: Sequence[str], *, numbered: bool, noted: bool) -> list[str]:
    scan = commands.printable(row.scan)
    if numbered and row.frame is not None:
        scan += f" [{row.frame}]"
    spent = "" if row.milliseconds is None else f"{row.milliseconds:.1f}"
    note = [commands.printable(row.note)] if noted else []
    return [scan, *shown, spent, *note]


def _footer(model: dict[str, str | None]) -> str:
    digest = f", {model['digest'][:19]}…" if model["digest"] else ""
    site = ", fitted on site" if model["site"] else ""
    return (
        f"model {model['name']} {model['version']} ({model['precision']}{site}){digest}"
        "  Research use only; not a medical device."
    )
