"""Labelled cases of a site, and their scores: a folder for each class, or a CSV manifest.

Errors count folders and name rows, never files: in a hospital their names are patients.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import ScanError, UsageError
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
    label: int
    """Index of the class."""
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

    label: int
    """Index of the true class."""
    patient: str
    """Empty where it is not known."""
    logits: NDArray[np.float32]
    """S x K; S is 1 for an image."""
    novelty: tuple[Novelty, ...]
    """One for each slice; empty where the model scores no novelty."""


@dataclass(kw_only=True)
class Gathered:
    """What came of the labelled files."""

    cases: list[LocalCase] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Images or series without scores, by the code of the reason."""


def find_cases(data: Path, classes: Sequence[str]) -> LocalCases:
    """Return the labelled files of ``data``.

    Parameters
    ----------
    data
        A folder that holds one folder for each class, by the class's name; or a CSV file in UTF-8
        with the columns ``path`` (of a file, or of a folder whose files share the label; relative
        to the manifest), ``label`` and, if it likes, ``patient_id``. Others are not looked at.
    classes
        Of the model.

    Raises
    ------
    UsageError
        No such path, neither of the two forms, a folder or a label that is no class, a file that is
        listed twice.
    """
    if data.is_dir():
        return _from_folders(data, classes)
    if not data.is_file():
        raise UsageError(f"--data {data}: no such folder or manifest")
    if data.suffix.lower() != ".csv":
        raise UsageError(f"--data {data}: expected a folder for each class, or a .csv manifest")
    files = tuple(_from_manifest(data, classes))
    if len({one.path for one in files}) < len(files):
        raise UsageError(f"--data {data}: files are listed twice")
    return LocalCases(files=files)


def _from_folders(data: Path, classes: Sequence[str]) -> LocalCases:
    visible = [path for path in sorted(data.iterdir()) if not path.name.startswith(".")]
    folders = [path for path in visible if path.is_dir()]
    unknown = sum(folder.name not in classes for folder in folders)
    if unknown or not folders:
        found = f"{unknown} of {len(folders)} folders are no class" if folders else "no folders"
        raise UsageError(f"--data {data}: {found}; {_expected(classes)}")
    files = tuple(
        Labelled(path=path, label=classes.index(folder.name))
        for folder in folders
        for path in files_below(folder)
    )
    return LocalCases(files=files, unlabelled=len(visible) - len(folders))


def _from_manifest(data: Path, classes: Sequence[str]) -> Iterator[Labelled]:
    try:
        with data.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except OSError as cause:
        raise UsageError(f"--data {data}: {cause.strerror}") from cause
    except (csv.Error, UnicodeDecodeError) as cause:
        raise UsageError(f"--data {data} is not CSV in UTF-8: {cause}") from cause
    if not rows:
        raise UsageError(f"--data {data}: the manifest has no rows")
    for column in ("path", "label"):
        if column not in rows[0]:
            raise UsageError(f"--data {data}: there is no column {column}")
    for number, row in enumerate(rows, start=1):
        yield from _from_row(row, f"--data {data}, row {number}", data.parent, classes)


def _from_row(
    row: dict[str, str | None], place: str, folder: Path, classes: Sequence[str]
) -> Iterator[Labelled]:
    path, label, patient = ((row.get(key) or "").strip() for key in ("path", "label", "patient_id"))
    if not path:
        raise UsageError(f"{place}: path is missing")
    if label not in classes:
        raise UsageError(f"{place}: its label is no class; {_expected(classes)}")
    found = folder / path  # an absolute path stays as it is
    for one in files_below(found) if found.is_dir() else [found]:
        yield Labelled(path=one, label=classes.index(label), patient=patient)


def _expected(classes: Sequence[str]) -> str:
    return f"the classes of the model are {', '.join(classes)}"


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
        Files of one series have several labels.
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
    mixed = sum(len({labelled[one.scan.source].label for one in case.slices}) > 1 for case in found)
    if mixed:
        raise UsageError(f"--data: {mixed} of {len(found)} series have files of several classes")


def _local_case(results: Sequence[Result], labelled: Labelled) -> LocalCase:
    return LocalCase(
        label=labelled.label,
        patient=labelled.patient or results[0].header.patient_id,
        logits=np.stack([one.logits for one in results]),
        novelty=tuple(one.novelty for one in results if one.novelty is not None),
    )
