"""Finds the images and labels in the three forms of data that medtl-train takes.

- a folder per class, with or without ``train/``, ``val/`` and ``test/`` above;
- a manifest, CSV or Parquet, with a path and a label in each row;
- an ``.npz`` with ``train_images``, ``train_labels`` and so on (the MedMNIST layout).
"""

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from medtl_runtime.reading import files_below, read_scan
from medtl_runtime.scan import Scan
from medtl_train.config import DataConfig
from medtl_train.errors import DataUnfit

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image file, or one image of an array, before it is read."""

    source: str
    """A path, or ``file.npz#train_images/12``."""
    label: str
    patient: str = ""
    """Empty where the form of data does not say; DICOM headers may."""
    split: str = ""
    """train, val or test, where the data say."""

    def read(self) -> Scan:
        """Read the image; raises `ScanError` as `read_scan` does."""
        file, mark, place = self.source.rpartition("#")
        if not mark or not file.endswith(".npz"):
            return read_scan(self.source)
        name, _, index = place.rpartition("/")
        return read_scan(_npz_images(file, name)[int(index)], name=self.source)


def find_samples(data: Path, config: DataConfig) -> list[Sample]:
    """Return all samples of ``data``, in a fixed order.

    Raises
    ------
    DataUnfit
        No such path, an empty class, or not one of the three forms.
    """
    if data.is_dir():
        return _from_folders(data)
    if not data.exists():
        raise DataUnfit(f"{data}: no such folder, manifest or .npz file")
    if data.suffix == ".npz":
        return list(_from_npz(data))
    if data.suffix in (".csv", ".parquet"):
        return _from_manifest(data, config)
    raise DataUnfit(f"{data}: expected a folder, a .csv or .parquet manifest, or an .npz file")


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
        samples += [Sample(source=str(file), label=folder.name, split=split) for file in files]
    return samples


def _from_manifest(data: Path, config: DataConfig) -> list[Sample]:
    import polars

    try:
        if data.suffix == ".csv":
            table = polars.read_csv(data, infer_schema=False)
        else:
            table = polars.read_parquet(data)
    except (OSError, polars.exceptions.PolarsError) as cause:
        raise DataUnfit(f"{data} cannot be read: {cause}") from cause
    optional = {DataConfig.patient_column, DataConfig.split_column}  # unless named by the user
    named = {config.patient_column, config.split_column} - optional
    for column in (config.path_column, config.label_column, *sorted(named)):
        if column not in table.columns:
            found = ", ".join(table.columns)
            raise DataUnfit(f"{data}: no column {column}; its columns are {found}")
    if table.is_empty():
        raise DataUnfit(f"{data}: the manifest has no rows")
    return [
        _from_row(row, number, data, config)
        for number, row in enumerate(table.iter_rows(named=True), start=1)
    ]


def _from_row(row: dict, number: int, data: Path, config: DataConfig) -> Sample:
    path, label = _text(row[config.path_column]), _text(row[config.label_column])
    if not path or not label:
        raise DataUnfit(f"{data}, row {number}: path or label is missing")
    split = _text(row.get(config.split_column)).lower()
    if split and split not in _SPLIT_NAMES:
        raise DataUnfit(f"{data}, row {number}: split is {split}; expected train, val or test")
    return Sample(
        source=str(data.parent / path),  # an absolute path stays as it is
        label=label,
        patient=_text(row.get(config.patient_column)),
        split=_SPLIT_NAMES.get(split, ""),
    )


def _text(value: object) -> str:
    """Return a cell as text, empty where it has no value; a patient 0 is one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()


def _from_npz(data: Path) -> Iterator[Sample]:
    _npz_images.cache_clear()  # the file may be another than last time
    with _npz(data) as arrays:
        found = arrays.files
    names = [split for split in SPLITS if f"{split}_images" in found]
    if "train" not in names:
        raise DataUnfit(f"{data}: no train_images; its arrays are {', '.join(found)}")
    for split in names:
        if f"{split}_labels" not in found:
            raise DataUnfit(f"{data}: {split}_images without {split}_labels")
        labels = _npz_labels(data, split)
        images = _npz_images(str(data), f"{split}_images")
        if images.ndim < 3 or len(images) != len(labels):
            shape = " x ".join(map(str, images.shape))
            raise DataUnfit(f"{data}: {split}_images is {shape}, for {len(labels)} labels")
        for index, label in enumerate(labels):
            yield Sample(source=f"{data}#{split}_images/{index}", label=label, split=split)


def _npz_labels(data: Path, split: str) -> list[str]:
    """Return the label of each image, by name where the file has ``label_names``."""
    labels = _npz_array(data, f"{split}_labels")
    if labels.ndim != 1 and labels.shape[1:] != (1,):
        raise DataUnfit(f"{data}: {split}_labels of shape {labels.shape}; expected one an image")
    with _npz(data) as arrays:
        named = "label_names" in arrays.files
    if not named:
        return [str(label) for label in labels.ravel()]
    words = dict(enumerate(_npz_array(data, "label_names").tolist()))
    try:
        return [str(words[label]) for label in labels.ravel().tolist()]
    except KeyError as cause:
        raise DataUnfit(f"{data}: label {cause} has no name in label_names") from cause


# What numpy raises on a damaged file, or on one of pickled objects.
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def _npz(data: Path) -> NpzFile:
    try:
        arrays = np.load(data, allow_pickle=False)
    except _DAMAGED as cause:
        raise DataUnfit(f"{data} cannot be read as an .npz file of arrays") from cause
    if not isinstance(arrays, NpzFile):
        raise DataUnfit(f"{data} is an .npy file; expected an .npz file of arrays")
    return arrays


def _npz_array(data: Path, name: str) -> NDArray:
    with _npz(data) as arrays:
        try:
            return arrays[name]
        except _DAMAGED as cause:
            raise DataUnfit(f"{data}: the array {name} cannot be read") from cause


@lru_cache(maxsize=len(SPLITS))
def _npz_images(file: str, name: str) -> NDArray:
    """Return an array of images; it stays in memory for the next image."""
    return _npz_array(Path(file), name)


def class_names(samples: Iterable[Sample]) -> tuple[str, ...]:
    """Return the classes in order: by number where all names are integers, else by name."""
    names = {sample.label for sample in samples}
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(sorted(names), key=int if numeric else str))
