"""Labelled cases of a site, and their scores: a folder for each class, or a CSV manifest.

A case says what each head should answer, as `medtl_train` does: index of the class or grade, 0 or 1
of a binary head, or the value of a regression in its unit; NaN where it is not known.

Errors count folders and name rows, never files: in a hospital their names are patients.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import ScanError, UsageError
from medtl_runtime.heads import Head
from medtl_runtime.novelty import Novelty
from medtl_runtime.pipeline import run_sources
from medtl_runtime.progress import Progress
from medtl_runtime.reading import files_below, read_scan, source_of
from medtl_runtime.results import Failure, Result
from medtl_runtime.series import Case, group

if TYPE_CHECKING:
    from medtl_runtime.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A file and what it shows."""

    path: Path
    targets: tuple[float, ...]
    """One for each head."""
    patient: str = ""
    """As the manifest says; empty where it does not."""


@dataclass(frozen=True, kw_only=True)
class LocalCases:
    """What was found, in a fixed order."""

    files: tuple[Labelled, ...]
    unlabelled: int = 0
    """Files beside the folders of the classes; they are not used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalCase:
    """A labelled image, or the slices of a labelled series, as the network saw them."""

    targets: tuple[float, ...]
    """One for each head."""
    patient: str
    """Empty where it is not known."""
    logits: NDArray[np.float32]
    """S x K, the columns of all heads; S is 1 for an image."""
    novelty: tuple[Novelty, ...]
    """One for each slice; empty where the model scores no novelty."""


@dataclass(kw_only=True)
class Gathered:
    """What came of the labelled files."""

    cases: list[LocalCase] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Images or series without scores, by the code of the reason."""


def find_cases(data: Path, heads: Sequence[Head]) -> LocalCases:
    """Return the labelled files of ``data``.

    Parameters
    ----------
    data
        For a model of one head with classes, a folder that holds one folder for each class, by the
        class's name. Or a CSV file in UTF-8 with the column ``path`` (of a file, or of a folder
        whose files share the labels; relative to the manifest), a column for each head by its name
        (for a single head ``label`` will do; names of classes, or values; empty where it is not
        known) and, if it likes, ``patient_id``. Others are not looked at.
    heads
        Of the model.

    Raises
    ------
    UsageError
        No such path, neither of the two forms, a folder or a label that is no class, a value that
        is no number, a file that is listed twice.
    """
    if data.is_dir():
        return _from_folders(data, heads)
    if not data.is_file():
        raise UsageError(f"--data {data}: no such folder or manifest")
    if data.suffix.lower() != ".csv":
        raise UsageError(f"--data {data}: expected a folder for each class, or a .csv manifest")
    files = tuple(_from_manifest(data, heads))
    if len({one.path for one in files}) < len(files):
        raise UsageError(f"--data {data}: files are listed twice")
    return LocalCases(files=files)


def _from_folders(data: Path, heads: Sequence[Head]) -> LocalCases:
    if len(heads) > 1 or not heads[0].classes:
        names = ", ".join(head.name for head in heads)
        expected = f"expected a .csv manifest with the columns path, {names}"
        raise UsageError(f"--data {data}: folders cannot say what every head answers; {expected}")
    classes = heads[0].classes
    visible = [path for path in sorted(data.iterdir()) if not path.name.startswith(".")]
    folders = [path for path in visible if path.is_dir()]
    unknown = sum(folder.name not in classes for folder in folders)
    if unknown or not folders:
        found = f"{unknown} of {len(folders)} folders are no class" if folders else "no folders"
        raise UsageError(f"--data {data}: {found}; {_expected(heads[0])}")
    files = tuple(
        Labelled(path=path, targets=(float(classes.index(folder.name)),))
        for folder in folders
        for path in files_below(folder)
    )
    return LocalCases(files=files, unlabelled=len(visible) - len(folders))


def _from_manifest(data: Path, heads: Sequence[Head]) -> Iterator[Labelled]:
    try:
        with data.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except OSError as cause:
        raise UsageError(f"--data {data}: {cause.strerror}") from cause
    except (csv.Error, UnicodeDecodeError) as cause:
        raise UsageError(f"--data {data} is not CSV in UTF-8: {cause}") from cause
    if not rows:
        raise UsageError(f"--data {data}: the manifest has no rows")
    if "path" not in rows[0]:
        raise UsageError(f"--data {data}: there is no column path")
    columns = _label_columns(heads, rows[0], data)
    for number, row in enumerate(rows, start=1):
        yield from _from_row(row, f"--data {data}, row {number}", data.parent, heads, columns)


def _label_columns(
    heads: Sequence[Head], row: Mapping[str, str | None], data: Path
) -> list[str | None]:
    """Return the column of each head; None for a head that the manifest says nothing of."""
    columns = [head.name if head.name in row else None for head in heads]
    if len(heads) == 1 and columns == [None] and "label" in row:
        return ["label"]
    if not any(columns):
        names = "label" if len(heads) == 1 else " or ".join(head.name for head in heads)
        raise UsageError(f"--data {data}: there is no column {names}")
    return columns


def _from_row(
    row: dict[str, str | None],
    place: str,
    folder: Path,
    heads: Sequence[Head],
    columns: Sequence[str | None],
) -> Iterator[Labelled]:
    path, patient = ((row.get(key) or "").strip() for key in ("path", "patient_id"))
    if not path:
        raise UsageError(f"{place}: path is missing")
    targets = tuple(
        math.nan if column is None else _target(head, (row.get(column) or "").strip(), place, heads)
        for head, column in zip(heads, columns, strict=True)
    )
    found = folder / path  # an absolute path stays as it is
    for one in files_below(found) if found.is_dir() else [found]:
        yield Labelled(path=one, targets=targets, patient=patient)


def _target(head: Head, text: str, place: str, heads: Sequence[Head]) -> float:
    """Return what a cell of the manifest says; it may be empty where there are several heads."""
    if not text and len(heads) > 1:
        return math.nan
    whose = "its label" if len(heads) == 1 else head.name
    if head.kind == "binary" and text not in head.classes and text in ("0", "1"):
        return float(text)
    if head.kind != "regression":
        if text not in head.classes:
            raise UsageError(f"{place}: {whose} is no class; {_expected(head)}")
        return float(head.classes.index(text))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(
            f"{place}: {whose} is no number; expected one in {head.unit or 'its unit'}"
        )
    return value


def _expected(head: Head) -> str:
    return f"the classes of the model are {', '.join(head.classes)}"


def score_images(
    predictor: "Predictor", files: Sequence[Labelled], quiet: bool, workers: int | None
) -> Gathered:
    """Score each image; of a file with several frames each is one, with the file's label."""
    gathered = Gathered()
    labelled = {str(one.path): one for one in files}
    sources = [source_of(one.path) for one in files]
    with Progress(len(sources), quiet=quiet) as progress:
        for source, outcome in progress.count(run_sources(predictor, sources, workers=workers)):
            if isinstance(outcome, Failure):
                gathered.left_out[outcome.error.code] += 1
            else:
                gathered.cases.append(_local_case([outcome], labelled[str(source)]))
    return gathered


def score_series(predictor: "Predictor", files: Sequence[Labelled], quiet: bool) -> Gathered:
    """Score each series.

    Raises
    ------
    UsageError
        Files of one series have different labels.
    """
    gathered = Gathered()
    labelled = {str(one.path): one for one in files}
    scans = []
    for one in files:
        try:
            scans.append(read_scan(source_of(one.path)))
        except ScanError as error:
            gathered.left_out[error.code] += 1
    grouped = group(scans)
    found = [case for case in grouped if isinstance(case, Case)]
    gathered.left_out += Counter(case.code for case in grouped if not isinstance(case, Case))
    _require_one_label(found, labelled)
    with Progress(len(found), quiet=quiet) as progress:
        for case in found:
            outcome = predictor.case(case, keep=False)
            if isinstance(outcome, Failure):
                gathered.left_out[outcome.error.code] += 1
            else:
                first = labelled[case.slices[0].scan.source]
                gathered.cases.append(_local_case(outcome.scored, first))
            progress.advance()
    return gathered


def _require_one_label(found: Sequence[Case], labelled: Mapping[str, Labelled]) -> None:
    # As text, because NaN is not equal to itself.
    told = [{str(labelled[one.scan.source].targets) for one in case.slices} for case in found]
    mixed = sum(len(some) > 1 for some in told)
    if mixed:
        raise UsageError(f"--data: {mixed} of {len(found)} series have files of several labels")


def _local_case(results: Sequence[Result], labelled: Labelled) -> LocalCase:
    return LocalCase(
        targets=labelled.targets,
        patient=labelled.patient or results[0].header.patient_id,
        logits=np.stack([one.logits for one in results]),
        novelty=tuple(one.novelty for one in results if one.novelty is not None),
    )
