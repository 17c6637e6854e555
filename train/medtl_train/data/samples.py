"""Finds the images and labels in the three forms of data that medtl-train takes.

- a folder per class, with or without ``train/``, ``val/`` and ``test/`` above;
- a manifest, CSV or Parquet, with a path and one label or several in each row;
- an ``.npz`` with ``train_images``, ``train_labels`` and so on (the MedMNIST layout).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.reading import files_below, read_scan
from medtl_runtime.scan import Scan
from medtl_train.config.data import DataConfig, MissingLabels
from medtl_train.data import npz
from medtl_train.data.labels import Question, parse_questions, policy_in_force, read_answer
from medtl_train.errors import DataUnfit

SPLITS = ("train", "val", "test", "external")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image file, or one image of an array, before it is read."""

    source: str
    """A path, or ``file.npz#train_images/12``."""
    labels: tuple[str, ...]
    """The answer to each question; empty where it is unknown."""
    patient: str = ""
    """Empty where the form of data does not say; DICOM headers may."""
    split: str = ""
    """train, val or test, where the data say."""
    covariates: Mapping[str, str] = field(default_factory=dict)
    """By column; empty where it is unknown."""

    @property
    def label(self) -> str:
        """All labels, for people; of one question simply its answer."""
        return "; ".join(self.labels)

    def array(self) -> NDArray | None:
        """Return the image of an array; None where the sample is a file."""
        file, mark, place = self.source.rpartition("#")
        if not mark or not file.endswith(".npz"):
            return None
        name, _, index = place.rpartition("/")
        return npz.images_of(file, name)[int(index)]

    def read(self) -> Scan:
        """Read the image; raises `ScanError` as `read_scan` does."""
        array = self.array()
        if array is None:
            return read_scan(self.source)
        return read_scan(array, name=self.source)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is at a place: images, and what they answer."""

    samples: tuple[Sample, ...]
    """In a fixed order."""
    questions: tuple[Question, ...]


def find_samples(data: Path, config: DataConfig) -> Found:
    """Return all samples of ``data`` and of ``--external``, and the questions they answer.

    Whatever splits the external data have, they are all of the split ``external``.

    Raises
    ------
    DataUnfit
        No such path, an empty class, not one of the three forms, a label that is none, or external
        data that answer other questions.
    """
    found = _find(data, config)
    if config.external is None:
        return found
    external = Path(config.external)
    if external.resolve() == data.resolve():
        raise DataUnfit(f"--external is {external}, the data that are trained on")
    other = _find(external, config)
    asked, also = ([(q.name, q.kind) for q in one.questions] for one in (found, other))
    if asked != also:
        words = ["; ".join(f"{name} ({kind})" for name, kind in one) for one in (asked, also)]
        raise DataUnfit(f"{external} answers {words[1]}; expected {words[0]}")
    samples = (replace(sample, split="external") for sample in other.samples)
    return Found(samples=(*found.samples, *samples), questions=found.questions)


def _find(data: Path, config: DataConfig) -> Found:
    questions = parse_questions(config.label_column)
    if data.is_dir():
        return _of_one_question(data, _from_folders(data), questions, config)
    if not data.exists():
        raise DataUnfit(f"{data}: no such folder, manifest or .npz file")
    if data.suffix == ".npz":
        return _from_npz(data, questions, config)
    if data.suffix in (".csv", ".parquet"):
        samples = _from_manifest(data, config, questions)
        return Found(samples=tuple(samples), questions=questions)
    raise DataUnfit(f"{data}: expected a folder, a .csv or .parquet manifest, or an .npz file")


def _of_one_question(
    data: Path, samples: list[Sample], questions: Sequence[Question], config: DataConfig
) -> Found:
    _require_no_covariates(data, config)
    if len(questions) > 1:
        raise DataUnfit(f"{data}: folders give one label; --label-column asks for {len(questions)}")
    [question] = questions
    read = [
        replace(s, labels=(read_answer(question, s.label, "refuse", str(s.source)),))
        for s in samples
    ]
    return Found(samples=tuple(read), questions=(question,))


def _require_no_covariates(data: Path, config: DataConfig) -> None:
    if config.covariate_names:
        raise DataUnfit(f"{data}: --covariates names columns of a manifest, and this is none")


def _from_folders(data: Path) -> list[Sample]:
    children = _folders(data)
    splits = {child: _SPLIT_NAMES.get(child.name.lower()) for child in children}
    if not any(splits.values()):
        return _from_classes(data, split="")
    if not all(splits.values()):
        odd = ", ".join(child.name for child, split in splits.items() if split is None)
        raise DataUnfit(f"{data}: folders of splits and others side by side: {odd}")
    return [s for child, split in splits.items() for s in _from_classes(child, split=split or "")]


def _folders(data: Path) -> list[Path]:
    return sorted(p for p in data.iterdir() if p.is_dir() and not p.name.startswith("."))


def _from_classes(data: Path, *, split: str) -> list[Sample]:
    classes = _folders(data)
    if not classes:
        raise DataUnfit(f"{data}: no folders in it; expected a folder for each class")
    samples = []
    for folder in classes:
        files = files_below(folder)
        if not files:
            raise DataUnfit(f"{folder}: the class has no images")
        samples += [Sample(source=str(file), labels=(folder.name,), split=split) for file in files]
    return samples


def _from_manifest(
    data: Path, config: DataConfig, questions: Sequence[Question]
) -> Iterator[Sample]:
    import polars

    try:
        if data.suffix == ".csv":
            table = polars.read_csv(data, infer_schema=False)
        else:
            table = polars.read_parquet(data)
    except (OSError, polars.exceptions.PolarsError) as cause:
        raise DataUnfit(f"{data} cannot be read: {cause}") from cause
    for column in _needed_columns(config, questions):
        if column not in table.columns:
            found = ", ".join(table.columns)
            raise DataUnfit(f"{data}: no column {column}; its columns are {found}")
    if table.is_empty():
        raise DataUnfit(f"{data}: the manifest has no rows")
    covariates = list(config.covariate_names)
    if config.site_column in table.columns and config.site_column not in covariates:
        covariates.append(config.site_column)
    missing = policy_in_force(config.missing_labels, questions)
    for number, row in enumerate(table.iter_rows(named=True), start=1):
        place = f"{data}, row {number}"
        yield Sample(
            source=str(data.parent / _path(row, config, place)),  # an absolute path stays
            labels=tuple(read_answer(q, _text(row[q.name]), missing, place) for q in questions),
            patient=_text(row.get(config.patient_column)),
            split=_split(row, config, place),
            covariates=_covariates(row, covariates, config, place),
        )


def _needed_columns(config: DataConfig, questions: Sequence[Question]) -> list[str]:
    """Return the columns that must be there: those without which nothing goes, or that are named.

    The default names of patient, split and site are used if they are present.
    """
    optional = [
        getattr(config, name)
        for name in ("patient_column", "split_column", "site_column")
        if getattr(config, name) != getattr(DataConfig, name)
    ]
    asked = [question.name for question in questions]
    return [config.path_column, *asked, *sorted(optional), *config.covariate_names]


def _path(row: dict[str, Any], config: DataConfig, place: str) -> str:
    path = _text(row[config.path_column])
    if not path:
        raise DataUnfit(f"{place}: the path is missing")
    return path


def _split(row: dict[str, Any], config: DataConfig, place: str) -> str:
    split = _text(row.get(config.split_column)).lower()
    if split and split not in _SPLIT_NAMES:
        raise DataUnfit(f"{place}: split is {split}; expected train, val or test")
    return _SPLIT_NAMES.get(split, "")


def _covariates(
    row: dict[str, Any], names: Sequence[str], config: DataConfig, place: str
) -> dict[str, str]:
    found = {name: _text(row[name]) for name in names}
    missing = [name for name, text in found.items() if not text]
    if missing and config.missing_covariates == "refuse":
        raise DataUnfit(f"{place}: {missing[0]} is missing; --missing-covariates says what to do")
    return found


def _text(value: object) -> str:
    """Return a cell as text, empty where it has no value; a patient 0 is one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()


def _from_npz(data: Path, questions: tuple[Question, ...], config: DataConfig) -> Found:
    npz.forget_images()
    _require_no_covariates(data, config)
    labels = npz.labels_of(data)
    questions = _npz_questions(data, questions, labels["train"], config)
    missing = policy_in_force(config.missing_labels, questions)
    samples = [
        sample
        for split, some in labels.items()
        for sample in _of_split(data, split, some, questions, missing)
    ]
    return Found(samples=tuple(samples), questions=questions)


def _npz_questions(
    data: Path, questions: tuple[Question, ...], labels: NDArray, config: DataConfig
) -> tuple[Question, ...]:
    """Return a question for each column; several columns of 0 and 1 are so many findings."""
    columns = labels.shape[1]
    names = npz.label_names(data)
    if len(questions) == columns:
        [first, *others] = questions
        if others or not names or first.kind != "ordinal" or first.order:
            return questions
        return (replace(first, order=tuple(names)),)
    if config.label_column != DataConfig.label_column:
        asked = f"--label-column asks for {len(questions)}"
        raise DataUnfit(f"{data}: {columns} labels an image; {asked}")
    if not np.isin(labels, (0, 1)).all():
        raise DataUnfit(
            f"{data}: {columns} labels an image that are not all 0 or 1; expected "
            "--label-column to say what each is, such as a:value,b:classes"
        )
    if names and len(names) != columns:
        raise DataUnfit(f"{data}: {len(names)} label_names for {columns} labels an image")
    names = names or [f"finding{k}" for k in range(columns)]
    return tuple(Question(name=name, kind="binary") for name in names)


def _of_split(
    data: Path,
    split: str,
    labels: NDArray,
    questions: Sequence[Question],
    missing: MissingLabels,
) -> Iterator[Sample]:
    words: dict[Any, str] = {}
    if len(questions) == 1 and questions[0].kind in ("multiclass", "ordinal"):
        words = dict(enumerate(npz.label_names(data)))
    for index, row in enumerate(labels.tolist()):
        source = f"{data}#{split}_images/{index}"
        if words and row[0] not in words:
            raise DataUnfit(f"{data}: label {row[0]} has no name in label_names")
        texts = [words.get(value, _text(value)) for value in row]
        answers = (
            read_answer(question, text, missing, source)
            for question, text in zip(questions, texts, strict=True)
        )
        yield Sample(source=source, labels=tuple(answers), split=split)
