"""Where the frames of encapsulated pixel data lie (PS3.5 A.4)."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import inf
from struct import unpack
from typing import BinaryIO

from medtl_runtime.errors import ScanTooLarge, ScanUnreadable
from medtl_runtime.limits import MOST_FRAGMENTS, check_bytes

Fragment = tuple[int, int]
"""Offset in the file and length, in bytes."""

_ITEM = 0xFFFEE000
_END = 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
"""The length of a value that a delimiter ends."""

END_OF_IMAGE = b"\xff\xd9"
"""EOI of JPEG and JPEG-LS, EOC of JPEG 2000; padding may follow."""


def find_frames(
    file: BinaryIO,
    source: str,
    *,
    length: int,
    count: int,
    extended: tuple[bytes, bytes] | None = None,
) -> list[list[Fragment]]:
    """Return the fragments of each frame.

    Which fragments make a frame is told by the extended offset table, else by the basic offset
    table, else there is one fragment a frame, or one frame, or each frame ends with the marker that
    ends a JPEG stream.

    Parameters
    ----------
    file
        Positioned at the first byte of the value of Pixel Data.
    source
        How errors speak of the scan.
    length
        Of the value; `UNDEFINED` where a delimiter ends it.
    count
        The number of frames that the header claims.
    extended
        The values of ExtendedOffsetTable and ExtendedOffsetTableLengths (PS3.3 C.7.6.3.1.8).

    Returns
    -------
    list of list of Fragment
        Of each frame; there may be more or fewer than ``count``.

    Raises
    ------
    ScanUnreadable
        The file ends too early.
    ScanTooLarge
        There are more than `MOST_FRAGMENTS`.
    ValueError
        What is there is no sequence of fragments.
    """
    table, *fragments = _fragments(file, source, length)
    start = table[0] + table[1]
    if extended is not None:
        offsets, lengths = (unpack(f"<{len(one) // 8}Q", one) for one in extended)
        return [[(start + offset + 8, size)] for offset, size in zip(offsets, lengths, strict=True)]
    if table[1]:
        file.seek(table[0])
        offsets = unpack(f"<{table[1] // 4}L", file.read(table[1] // 4 * 4))
        return _by_offsets(fragments, [start + offset + 8 for offset in offsets])
    if count == 1:
        return [fragments]
    if len(fragments) <= count:
        return [[fragment] for fragment in fragments]
    return _by_markers(file, fragments)


def _fragments(file: BinaryIO, source: str, length: int) -> Iterator[Fragment]:
    """Yield all items: the basic offset table, then the fragments."""
    end = inf if length == UNDEFINED else file.tell() + length
    found = 0
    while file.tell() < end:
        start = file.read(8)
        if len(start) < 8:
            raise ScanUnreadable(source, "the pixel data is cut short")
        group, element, size = unpack("<HHL", start)
        if group << 16 | element == _END:
            return
        if group << 16 | element != _ITEM or size == UNDEFINED:
            raise ValueError("no sequence of fragments")
        yield file.tell(), size
        file.seek(size, 1)
        found += 1
        if found > MOST_FRAGMENTS:
            raise ScanTooLarge(
                source,
                f"more than {MOST_FRAGMENTS} fragments of pixel data",
                attribute="PixelData",
                expected=f"at most {MOST_FRAGMENTS} fragments",
            )
    if file.tell() > end:
        raise ScanUnreadable(source, "the pixel data is cut short")


def _by_offsets(fragments: list[Fragment], starts: list[int]) -> list[list[Fragment]]:
    offsets = [offset for offset, _ in fragments]
    places = [bisect_left(offsets, start) for start in starts]
    for place, start in zip(places, starts, strict=True):
        if place == len(offsets) or offsets[place] != start:
            raise ValueError("the basic offset table points at no fragment")
    return [
        fragments[first:last]
        for first, last in zip(places, [*places[1:], len(fragments)], strict=True)
    ]


def _by_markers(file: BinaryIO, fragments: list[Fragment]) -> list[list[Fragment]]:
    frames: list[list[Fragment]] = [[]]
    for offset, length in fragments:
        frames[-1].append((offset, length))
        tail = min(length, 10)
        file.seek(offset + length - tail)
        if END_OF_IMAGE in file.read(tail):
            frames.append([])
    return frames if frames[-1] else frames[:-1]


def read_frame(file: BinaryIO, fragments: Sequence[Fragment], source: str) -> bytes:
    """Return the bytes of an encoded frame.

    Raises
    ------
    ScanTooLarge
        More than is held in memory.
    """
    check_bytes(sum(length for _, length in fragments), source)
    pieces = []
    for offset, length in fragments:
        file.seek(offset)
        pieces.append(file.read(length))
    return b"".join(pieces)
