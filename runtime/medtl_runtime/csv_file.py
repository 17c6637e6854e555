"""Outcomes as CSV; `docs/result.md` names the columns."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtl_runtime.answers import label_of
from medtl_runtime.files import refuse_existing, written_whole
from medtl_runtime.heads import Head
from medtl_runtime.outputs import Files, Sink, not_written, pooled
from medtl_runtime.results import CaseResult, Failure, Outcome


class CsvFile(Sink):
    """A CSV file with a row for each image; it appears whole, at the end."""

    def __init__(self, path: Path, heads: Sequence[Head], *, overwrite: bool) -> None:
        refuse_existing(path, overwrite=overwrite)
        self._path, self._heads = path, heads
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow([*_CSV_COLUMNS, *_head_columns(heads)])

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
        row["not_written"] = "; ".join(not_written(files))
        row |= {kind: one for kind, one in files.items() if not isinstance(one, dict)}
        found = {} if isinstance(outcome, Failure) else _head_cells(self._heads, row["answers"])
        self._writer.writerow(
            [*(_cell(row.get(name)) for name in _CSV_COLUMNS)]
            + [_cell(found.get(name)) for name in _head_columns(self._heads)]
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


def _head_columns(heads: Sequence[Head]) -> list[str]:
    """Return the columns of CSV that depend on the model.

    That is ``p(CLASS)`` where there is one head, with the finding among `_CSV_COLUMNS`; of several
    ``HEAD.finding``, ``HEAD.prediction_set`` and ``p(HEAD=CLASS)``. A regression has
    ``HEAD.value``, ``HEAD.low`` and ``HEAD.high``.
    """
    columns = []
    for head in heads:
        if head.kind == "regression":
            columns += [f"{head.name}.{part}" for part in ("value", "low", "high")]
            continue
        if len(heads) > 1:
            columns += [f"{head.name}.finding", f"{head.name}.prediction_set"]
        columns += [f"p({label_of(heads, head, name)})" for name in head.classes]
    return columns


def _head_cells(heads: Sequence[Head], answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `_head_columns`, from the ``answers`` of a row of JSON."""
    cells: dict[str, Any] = {}
    for head in heads:
        answer = answers[head.name]
        for part in ("finding", "prediction_set", "value"):
            cells[f"{head.name}.{part}"] = answer[part]
        for part in ("low", "high"):
            cells[f"{head.name}.{part}"] = (answer["interval"] or {}).get(part)
        for name, chance in (answer["probabilities"] or {}).items():
            cells[f"p({label_of(heads, head, name)})"] = chance
    return cells


def _flat(outcome: Outcome) -> dict[str, Any]:
    """Return the columns that rows of JSON have in another form."""
    if isinstance(outcome, Failure):
        return {}
    model = (outcome.scored[0] if isinstance(outcome, CaseResult) else outcome).model
    flat: dict[str, Any] = {"model_digest": model["digest"], "site_digest": model["site"]}
    if isinstance(outcome, CaseResult):
        return {**flat, "message": pooled(outcome)}
    novelty = {} if outcome.novelty is None else outcome.novelty.to_json()
    return {**flat, **novelty, "warnings": "; ".join(one.reason for one in outcome.warnings)}


def _cell(value: object) -> str:
    """Return text as it is, nothing for None, and other values as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)
