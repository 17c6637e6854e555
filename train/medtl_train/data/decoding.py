"""From a file to canonical images and what cleaning compares them by.

Child processes do this (see `readers`), so nothing here imports torch: only the runtime.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medtl_runtime.reading import read_scan
from medtl_runtime.recipe import FULL_SCALE, Recipe
from medtl_runtime.scan import Frame, Header, Scan

THUMBNAIL = 64
"""Side of the picture that near-duplicates are found by, in pixels."""

STATISTICS = ("mean", "spread", "black", "white", "entropy")
"""Of the grey values of a canonical image: mean and standard deviation, the shares of pixels that
are black and white, and the entropy of the 256-bin histogram in bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """What a file holds, frame by frame."""

    header: Header = field(repr=False)
    """Without the positions of the frames, which nothing asks for here."""
    pixels: NDArray[np.uint16] = field(repr=False)
    """Canonical, frames x C x H x W; it may be mapped from a file."""
    digests: tuple[str, ...]
    """Of each frame, SHA-256 of the modality values and their shape: the same image has the same
    digest, whatever its header or file format says."""
    thumbnails: NDArray[np.uint8] = field(repr=False)
    """Frames x `THUMBNAIL` x `THUMBNAIL`."""
    statistics: NDArray[np.float32]
    """Frames x `STATISTICS`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Some frames of a file."""

    decoded: Decoded
    next: int | None
    """The first frame that is not in it; None where nothing is left."""


def decode_chunk(source: str, recipe: Recipe, first: int, most: int = 16) -> Chunk:
    """Read and prepare up to ``most`` frames of a file from frame ``first`` on.

    Raises
    ------
    ScanError
        As `read_scan`, `Scan.frames` and `Recipe.apply` do.
    """
    scan = read_scan(source)
    end = min(first + most, scan.frame_count)
    decoded = decode_scan(scan, recipe, range(first, end))
    return Chunk(decoded=decoded, next=end if end < scan.frame_count else None)


def decode_scan(scan: Scan, recipe: Recipe, frames: Sequence[int] | None = None) -> Decoded:
    """Prepare frames of a scan, all of them by default; raises as `decode_chunk` does."""
    pixels, digests = [], []
    for frame in scan.frames(frames):
        pixels.append(recipe.apply(frame, scan.source).pixels)
        digests.append(_digest(frame))
    planes = [image.mean(axis=0, dtype=np.float32) for image in pixels]
    return Decoded(
        header=replace(scan.header, positions=()),
        pixels=np.stack(pixels),
        digests=tuple(digests),
        thumbnails=np.stack([_thumbnail(plane) for plane in planes]),
        statistics=np.stack([_statistics(plane) for plane in planes]),
    )


def joined(parts: Iterable[Decoded]) -> Decoded:
    """Return the frames of one file that was decoded in parts."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    return Decoded(
        header=parts[0].header,
        pixels=np.concatenate([part.pixels for part in parts]),
        digests=tuple(digest for part in parts for digest in part.digests),
        thumbnails=np.concatenate([part.thumbnails for part in parts]),
        statistics=np.concatenate([part.statistics for part in parts]),
    )


def _digest(frame: Frame) -> str:
    values = frame.values
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()


def _thumbnail(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the mean of each cell of a plane, H x W of 0 to 65535."""
    small = Image.fromarray(plane).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.rint(np.asarray(small) * (255 / FULL_SCALE)).astype(np.uint8)


def _statistics(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    values = plane / FULL_SCALE
    counts = np.bincount(np.minimum(values * 256, 255).astype(np.uint8).ravel(), minlength=256)
    shares = counts[counts > 0] / values.size
    return np.array(
        [
            values.mean(),
            values.std(),
            (values <= 1 / 255).mean(),
            (values >= 254 / 255).mean(),
            -(shares * np.log2(shares)).sum(),
        ],
        np.float32,
    )
