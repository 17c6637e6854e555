"""Reads the ``.npz`` files of the MedMNIST layout: images and labels by split, in arrays."""

import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from medtl_train.errors import DataUnfit

SPLITS = ("train", "val", "test")

# What numpy raises on a damaged file, or on one of pickled objects.
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def _opened(data: Path) -> NpzFile:
    try:
        arrays = np.load(data, allow_pickle=False)
    except _DAMAGED as cause:
        raise DataUnfit(f"{data} cannot be read as an .npz file of arrays") from cause
    if not isinstance(arrays, NpzFile):
        raise DataUnfit(f"{data} is an .npy file; expected an .npz file of arrays")
    return arrays


def _array(data: Path, name: str) -> NDArray:
    with _opened(data) as arrays:
        try:
            return arrays[name]
        except _DAMAGED as cause:
            raise DataUnfit(f"{data}: the array {name} cannot be read") from cause


@lru_cache(maxsize=len(SPLITS))
def images_of(file: str, name: str) -> NDArray:
    """Return an array of images; it stays in memory for the next image."""
    return _array(Path(file), name)


def forget_images() -> None:
    """Read the next image from its file, which may be another than last time."""
    images_of.cache_clear()


def labels_of(data: Path) -> dict[str, NDArray]:
    """Return the labels of each split, N x questions.

    Raises
    ------
    DataUnfit
        No training images, labels that do not fit the images, or a damaged file.
    """
    with _opened(data) as arrays:
        found = arrays.files
    names = [split for split in SPLITS if f"{split}_images" in found]
    if "train" not in names:
        raise DataUnfit(f"{data}: no train_images; its arrays are {', '.join(found)}")
    labels = {}
    for split in names:
        if f"{split}_labels" not in found:
            raise DataUnfit(f"{data}: {split}_images without {split}_labels")
        array = _array(data, f"{split}_labels")
        if array.ndim not in (1, 2):
            raise DataUnfit(
                f"{data}: {split}_labels of shape {array.shape}; expected one row an image"
            )
        images = images_of(str(data), f"{split}_images")
        if images.ndim < 3 or len(images) != len(array):
            shape = " x ".join(map(str, images.shape))
            raise DataUnfit(f"{data}: {split}_images is {shape}, for {len(array)} labels")
        labels[split] = array.reshape(len(array), -1)
        if labels[split].shape[1] != labels["train"].shape[1]:
            raise DataUnfit(f"{data}: {split}_labels and train_labels differ in their columns")
    return labels


def label_names(data: Path) -> list[str]:
    """Return the names in ``label_names``, if the file has it."""
    with _opened(data) as arrays:
        named = "label_names" in arrays.files
    return list(map(str, _array(data, "label_names").tolist())) if named else []
