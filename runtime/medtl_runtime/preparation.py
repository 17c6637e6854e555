"""From a scan to canonical images: read the header, check the intended use, decode, prepare.

Needs no engine, so that other processes can do it (see `pipeline`).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from medtl_runtime.errors import ScanError, ScanUnreadable
from medtl_runtime.intended_use import IntendedUse, Mismatch
from medtl_runtime.reading import read_scan
from medtl_runtime.recipe import Canonical, Recipe
from medtl_runtime.results import Failure
from medtl_runtime.scan import Header, Scan, Source


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """One frame, ready for the network."""

    scan: str
    frame: int
    header: Header = field(repr=False)
    canonical: Canonical = field(repr=False)
    warnings: tuple[Mismatch, ...]
    milliseconds: dict[str, float]
    """Wall time of the steps: read (with decoding) and prepare."""


def prepare(
    scan: Scan,
    recipe: Recipe,
    intended_use: IntendedUse,
    *,
    frames: Sequence[int] | None = None,
    opening: float = 0.0,
) -> Iterator[Prepared | Failure]:
    """Yield each frame of a scan as the network wants it, one in memory at a time.

    The header is checked against the intended use before any pixel is decoded. A scan that cannot
    be used is a `Failure`; it is the last that is yielded.

    Parameters
    ----------
    frames
        Indices of the frames to prepare, from 0; all by default.
    opening
        Seconds that it took to open the scan before; they count as reading.
    """
    started = time.perf_counter() - opening
    source, header, index = scan.source, scan.header, None
    try:
        warnings = intended_use.check(header, source)
        wanted = range(scan.frame_count) if frames is None else frames
        decoded = scan.frames(wanted)
        for index in wanted:
            frame = next(decoded)
            read = time.perf_counter()
            canonical = recipe.apply(frame, source)
            done = time.perf_counter()
            yield Prepared(
                scan=source,
                frame=index,
                header=header,
                canonical=canonical,
                warnings=warnings,
                milliseconds={"read": 1000 * (read - started), "prepare": 1000 * (done - read)},
            )
            started = time.perf_counter()
    except ScanError as error:
        yield Failure(scan=error.source or source, error=error, frame=index, header=header)


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Some frames of a scan, prepared."""

    items: list[Prepared | Failure]
    next: int | None
    """The first frame that is not in it; None where nothing is left."""


@lru_cache(maxsize=1)
def _opened(source: Source) -> Scan:
    """Return the scan of a source; the last one is kept, because its header is large."""
    return read_scan(source)


def prepare_chunk(
    scan: Source, recipe: Recipe, intended_use: IntendedUse, first: int, most: int = 16
) -> Chunk:
    """Prepare up to ``most`` frames of a scan from frame ``first`` on; see `prepare`."""
    started = time.perf_counter()
    if not first:
        _opened.cache_clear()  # a file may have been replaced by another of its name
    try:
        opened = _opened(scan)
    except ScanError as error:
        return Chunk(items=[Failure(scan=error.source, error=error)], next=None)
    opening = time.perf_counter() - started
    end = min(first + most, opened.frame_count)
    if end <= first:
        changed = ScanUnreadable(opened.source, "it was changed while it was read")
        return Chunk(items=[Failure(scan=opened.source, error=changed, frame=first)], next=None)
    frames = range(first, end)
    items = list(prepare(opened, recipe, intended_use, frames=frames, opening=opening))
    failed = isinstance(items[-1], Failure)
    return Chunk(items=items, next=end if end < opened.frame_count and not failed else None)
