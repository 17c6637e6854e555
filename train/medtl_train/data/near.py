"""Finds images that are nearly the same: saved again, scaled, cropped or written on.

Two thumbnails are compared twice: as a whole, and by their detail alone, what is left without the
coarse brightness. Anatomy makes the whole of two patients alike; only the same picture has the same
texture.

All pairs are compared without keeping them. By Cauchy and Schwarz the correlation of two images is
at most that of their low frequencies plus the product of what is left of each, so that a product of
short vectors tells which pairs are worth the full comparison, and misses none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

WHOLE = 0.95
"""Least correlation of two thumbnails."""
DETAIL = 0.6
"""Least correlation of their detail. Chosen on pictures of breast ultrasound, hands, chests and
slices, see docs/data.md: hands of two patients come up to 0.68, chests to 0.52."""

_COARSE = 32
"""Side of the pictures that are compared as a whole, in pixels."""
_FREQUENCIES = 12
"""Of these, in each direction, make the short vectors."""
_BLUR = 1.5
"""Standard deviation of the Gaussian that detail is left by, in pixels of a thumbnail."""
_AROUND = 4.5
"""Of the Gaussian by which detail is scaled to that around it, so that a caliper counts no more
than texture does."""
_QUIET = 2.0
"""Grey levels of detail that are noise; they are not scaled up."""
_BLOCK = 4096
"""Rows and columns of the table of correlations that is in memory at a time."""
_MANY = 20
"""Pairs for each image: more, and the images are alike by their nature."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of images by their indices, each pair once."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float32]
    """Correlation of the detail."""
    too_many: bool
    """The search was given up: so many are alike that it says nothing of copies."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.first)

    def where(self, mask: NDArray[np.bool_]) -> "Pairs":
        """Return some of the pairs."""
        return Pairs(
            first=self.first[mask],
            second=self.second[mask],
            similarity=self.similarity[mask],
            too_many=self.too_many,
        )

    def closest(self, most: int = 2000) -> Iterator[tuple[int, int, float]]:
        """Yield the most similar pairs, the closest first."""
        for k in np.argsort(-self.similarity, kind="stable")[:most]:
            yield int(self.first[k]), int(self.second[k]), float(self.similarity[k])


def near_pairs(thumbnails: Sequence[NDArray[np.uint8]]) -> Pairs:
    """Return all pairs of images that are nearly the same.

    Parameters
    ----------
    thumbnails
        N pictures, all of one side. One without any contrast is like no other.
    """
    if len(thumbnails) < 2:
        return _pairs([], too_many=False)
    pictures = np.stack(thumbnails)
    coarse = _coarse(pictures)
    detail = _Detail(pictures)
    found = []
    limit = _MANY * len(pictures)
    count = 0
    for first, second in _candidates(coarse):
        similarity = detail.similarity(first, second)
        near = similarity >= DETAIL
        found.append((first[near], second[near], similarity[near]))
        count += int(near.sum())
        if count > limit:
            return _pairs(found, too_many=True)
    return _pairs(found, too_many=False)


def _pairs(found: Sequence[tuple[NDArray, NDArray, NDArray]], *, too_many: bool) -> Pairs:
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    first, second, similarity = columns or (np.empty(0, int), np.empty(0, int), np.empty(0))
    return Pairs(
        first=first.astype(np.int64),
        second=second.astype(np.int64),
        similarity=similarity.astype(np.float32),
        too_many=too_many,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Coarse:
    """Pictures of `_COARSE` pixels as unit vectors, in an orthonormal basis of frequencies."""

    whole: NDArray[np.float32]
    """N x `_COARSE` squared."""
    short: NDArray[np.float32]
    """N x k + 1: the low frequencies, and the length of what is left. The product of two is no
    less than that of their ``whole``."""


def _coarse(pictures: NDArray[np.uint8]) -> _Coarse:
    count, side = len(pictures), pictures.shape[1]
    cells = pictures.reshape(count, _COARSE, side // _COARSE, _COARSE, side // _COARSE)
    small = cells.mean(axis=(2, 4), dtype=np.float32)
    frequencies = np.asarray(dctn(small, axes=(1, 2), norm="ortho"))
    frequencies[:, 0, 0] = 0  # the mean brightness
    norms = np.sqrt((frequencies**2).sum(axis=(1, 2), keepdims=True))
    # Less than a grey level of contrast is no picture; a vector of zeros is like nothing.
    unit = np.where(norms >= _COARSE, frequencies / np.maximum(norms, 1), 0)
    is_low = np.zeros((_COARSE, _COARSE), bool)
    is_low[:_FREQUENCIES, :_FREQUENCIES] = True
    left = np.sqrt((unit[:, ~is_low] ** 2).sum(axis=1, keepdims=True))
    short = np.concatenate([unit[:, is_low], left], axis=1)
    return _Coarse(whole=unit.reshape(count, -1), short=short)


def _candidates(coarse: _Coarse) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs that correlate as a whole, block by block; the first index is the smaller."""
    starts = range(0, len(coarse.short), _BLOCK)
    for top in starts:
        rows = slice(top, top + _BLOCK)
        for left in starts[top // _BLOCK :]:
            columns = slice(left, left + _BLOCK)
            bound = coarse.short[rows] @ coarse.short[columns].T
            i, j = np.nonzero(bound >= WHOLE)
            i, j = i + top, j + left
            i, j = i[i < j], j[i < j]
            for part in range(0, len(i), _BLOCK):
                a, b = i[part : part + _BLOCK], j[part : part + _BLOCK]
                alike = np.einsum("ik,ik->i", coarse.whole[a], coarse.whole[b]) >= WHOLE
                yield a[alike], b[alike]


class _Detail:
    """Pictures without their coarse brightness, as unit vectors; made when they are asked for."""

    def __init__(self, pictures: NDArray[np.uint8]) -> None:
        self._pictures = pictures

    def similarity(
        self, first: NDArray[np.int64], second: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the correlation of the detail of pairs."""
        if not len(first):
            return np.empty(0, np.float32)
        which, of = np.unique(np.concatenate([first, second]), return_inverse=True)
        vectors = self._vectors(which)
        return np.einsum("ik,ik->i", vectors[of[: len(first)]], vectors[of[len(first) :]])

    def _vectors(self, which: NDArray[np.int64]) -> NDArray[np.float32]:
        pictures = self._pictures[which].astype(np.float32)
        detail = pictures - gaussian_filter(pictures, (0, _BLUR, _BLUR))
        around = gaussian_filter(detail**2, (0, _AROUND, _AROUND))
        flat = (detail / np.sqrt(around + _QUIET**2)).reshape(len(which), -1)
        flat -= flat.mean(axis=1, keepdims=True)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
