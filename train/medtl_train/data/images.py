"""Images with their labels: one by one, and the images of a split as arrays."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.heads import Head
from medtl_runtime.scan import Header
from medtl_train.data.decoding import Decoded
from medtl_train.data.labels import targets_of
from medtl_train.data.samples import Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """One frame of a sample, read and prepared."""

    sample: Sample
    frame: int
    decoded: Decoded = field(repr=False)
    """The file that it is a frame of."""
    patient: str
    """Of the manifest, else of the header; an image without one is its own."""
    split: str
    covariates: Mapping[str, str] = field(default_factory=dict)
    """By name; without gaps, as ``--missing-covariates`` fills them."""
    group: str = ""
    """What stays together in a split: the patient, and who has nearly the same images."""

    @property
    def pixels(self) -> NDArray[np.uint16]:
        """Canonical, C x H x W; it may be mapped from a file."""
        return self.decoded.pixels[self.frame]

    @property
    def digest(self) -> str:
        """See `Decoded.digests`."""
        return self.decoded.digests[self.frame]

    @property
    def header(self) -> Header:
        """Of the file."""
        return self.decoded.header

    @property
    def patient_known(self) -> bool:
        """Whether the data say whose it is."""
        return not self.patient.startswith(_NOBODY)


_NOBODY = "image:"


def own_patient(sample: Sample) -> str:
    """Return the patient of an image of nobody known: itself."""
    return f"{_NOBODY}{sample.source}"


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A sample that was left out, and why."""

    source: str
    label: str
    """All its labels, for people."""
    split: str
    reason: str


def left_out(image: Image, reason: str) -> Excluded:
    """Return an image as one that was left out."""
    sample = image.sample
    return Excluded(source=sample.source, label=sample.label, split=image.split, reason=reason)


class Pixels:
    """Canonical images, N x C x H x W, that stay where they are until they are indexed.

    It is indexed as an array is along its first axis: an integer gives one image, C x H x W; a
    slice, integers or a mask give a new array, n x C x H x W. ``np.asarray`` gives all.
    """

    dtype = np.dtype(np.uint16)

    def __init__(self, images: Sequence[NDArray[np.uint16]]) -> None:
        """Take one image or more, all of one shape; they are not copied."""
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Images, channels, height, width."""
        channels, height, width = self._images[0].shape
        return len(self._images), channels, height, width

    @property
    def nbytes(self) -> int:
        """What all of it takes in memory."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @overload
    def __getitem__(self, index: int | np.integer) -> NDArray[np.uint16]: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray) -> NDArray[np.uint16]: ...
    def __getitem__(
        self, index: int | np.integer | slice | Sequence[int] | NDArray
    ) -> NDArray[np.uint16]:
        if isinstance(index, int | np.integer):
            return self._images[int(index)]
        which = index if isinstance(index, slice) else np.asarray(index)
        rows = np.arange(len(self._images))[which]
        found = np.empty((len(rows), *self.shape[1:]), np.uint16)
        for into, row in zip(found, rows.tolist(), strict=True):
            into[...] = self._images[row]
        return found

    def __iter__(self) -> Iterator[NDArray[np.uint16]]:
        return iter(self._images)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> NDArray:
        if copy is False:
            raise ValueError("the images of several files are no array without a copy")
        return self[:] if dtype is None else self[:].astype(dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """The images of one split."""

    pixels: Pixels | NDArray[np.uint16]
    """Canonical, N x C x H x W."""
    targets: NDArray[np.float64]
    """What each head should answer, N x heads; NaN where it is not known. Index of the class, 0 or
    1 of a binary head, index of the grade, or the value of a regression in its unit."""
    patients: NDArray[np.str_]
    """Shape (N,); an image without a known patient is its own."""
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Index of the class, shape (N,), of the only head, multiclass."""
        assert self.targets.shape[1] == 1
        return self.targets[:, 0].astype(np.int64)


def image_set(images: Sequence[Image], heads: Sequence[Head]) -> ImageSet:
    """Return images, one or more, as arrays.

    Raises
    ------
    DataUnfit
        A label is none of its head's.
    """
    return ImageSet(
        pixels=Pixels([image.pixels for image in images]),
        targets=targets_array(images, heads),
        patients=np.array([image.patient for image in images]),
        sources=tuple(image.sample.source for image in images),
    )


def targets_array(images: Sequence[Image], heads: Sequence[Head]) -> NDArray[np.float64]:
    """Return `ImageSet.targets` of images."""
    rows = [targets_of(heads, image.sample.labels) for image in images]
    return np.array(rows, np.float64).reshape(len(images), len(heads))


def count_targets(head: Head, targets: NDArray[np.float64]) -> dict[str, Any]:
    """Return how many images each class of a head has, or between which values they lie.

    Parameters
    ----------
    targets
        The head's column of `targets_array`, (N,).
    """
    known = targets[~np.isnan(targets)]
    unknown = len(targets) - len(known)
    if head.kind == "regression":
        low, median, high = np.quantile(known, [0, 0.5, 1]).tolist() if len(known) else [None] * 3
        return {"low": low, "median": median, "high": high, "unknown": unknown}
    counts = np.bincount(known.astype(np.int64), minlength=len(head.classes)).tolist()
    return {"counts": dict(zip(head.classes, counts, strict=True)), "unknown": unknown}


def spread(labels: Sequence[Hashable], at_most: int) -> list[int]:
    """Return the indices of ``at_most`` of the labels, rising and always the same.

    They are drawn from each label in turn, so that a rare one is not missed.
    """
    by_label: dict[Hashable, list[int]] = defaultdict(list)
    for index in np.random.default_rng(0).permutation(len(labels)):
        by_label[labels[index]].append(int(index))
    turns = zip_longest(*by_label.values())
    drawn = [index for turn in turns for index in turn if index is not None]
    return sorted(drawn[:at_most])


CanonicalImages = Pixels | NDArray[np.uint16]
"""N x C x H x W, on disk or in memory."""
