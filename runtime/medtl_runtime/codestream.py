"""What a compressed frame says of its own size, read before a decoder takes memory for it."""

from dataclasses import dataclass
from struct import error as StructError
from struct import unpack_from

from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"
"""SOC and SIZ; before them a file of the JP2 family has boxes."""

_START_OF_TILE_PART = b"\xff\x90"
_END_OF_CODESTREAM = b"\xff\xd9"

_MOST_TILES = 65535
"""ISO/IEC 15444-1 A.4.2: tiles are counted with 16 bits."""

_HIGHEST_RATIO = {str(RLELossless): 64, "1.2.840.10008.1.2.8.1": 1032}

_NOT_A_FRAME = (0xC4, 0xC8, 0xCC)
"""DHT, JPG and DAC lie among the markers of frames, SOF0 to SOF15 and JPEG-LS's SOF55."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of an image: pixels down, pixels across, and samples per pixel."""

    rows: int
    columns: int
    samples: int


def size_of(frame: bytes, transfer_syntax: str) -> Size | None:
    """Return the size that an encoded frame claims; None where its syntax has no such place.

    Raises
    ------
    ValueError
        A JPEG, JPEG-LS or JPEG 2000 frame without a size, or with an absurd one.
    """
    try:
        if transfer_syntax in JPEG2000TransferSyntaxes:
            return _jpeg_2000_grid(frame)[0]
        if transfer_syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes):
            return _jpeg_size(frame)
    except StructError as cause:
        raise ValueError("the frame is cut short") from cause
    return None


def missing_tiles(frame: bytes, transfer_syntax: str) -> int:
    """Return how many tiles of a JPEG 2000 frame have no tile-part; 0 for other syntaxes.

    A decoder leaves them black where an end marker follows the ones that are there. The lengths of
    the tile-parts (ISO/IEC 15444-1 A.4.2) lead from one to the next.

    Raises
    ------
    ValueError
        As for `size_of`.
    """
    if transfer_syntax not in JPEG2000TransferSyntaxes:
        return 0
    try:
        _, tiles = _jpeg_2000_grid(frame)
        there = _tiles_there(frame)
        return 0 if there is None else tiles - len(there)
    except StructError as cause:
        raise ValueError("the frame is cut short") from cause


def least_bytes(size: int, transfer_syntax: str) -> int:
    """Return how many bytes a frame of ``size`` bytes takes at least, compressed.

    A run of RLE is two bytes for at most 128 (PS3.5 G.3), and deflate reaches 1032 to 1; a JPEG
    stream can stand for any number of pixels that are the same.
    """
    return size // _HIGHEST_RATIO.get(transfer_syntax, size + 1)


def _jpeg_size(frame: bytes) -> Size:
    """Return the size in the frame header (ISO/IEC 10918-1 B.2.2, ISO/IEC 14495-1 C.2.2)."""
    place = 2  # after SOI
    if not frame.startswith(b"\xff\xd8"):
        raise ValueError("no JPEG stream")
    while True:
        while frame[place : place + 2] == b"\xff\xff":  # fill bytes
            place += 1
        prefix, marker = unpack_from(">BB", frame, place)
        if prefix != 0xFF or marker == 0xD9:
            raise ValueError("no frame header in the JPEG stream")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in _NOT_A_FRAME):
            rows, columns, samples = unpack_from(">HHB", frame, place + 5)
            return Size(rows=rows, columns=columns, samples=samples)
        (length,) = unpack_from(">H", frame, place + 2)
        place += 2 + max(length, 2)


def _tiles_there(frame: bytes) -> set[int] | None:
    """Return the indices of the tiles that have a tile-part; None where the lengths are wrong."""
    place = frame.index(_START_OF_CODESTREAM) + 2
    found: set[int] = set()
    while frame[place : place + 2] not in (b"", _END_OF_CODESTREAM):
        if frame[place] != 0xFF:
            return None
        marker, length = unpack_from(">2sH", frame, place)
        if marker == _START_OF_TILE_PART:
            tile, length = unpack_from(">HL", frame, place + 4)
            found.add(tile)
            if length == 0:  # up to the end: the last one
                break
            place += max(length, 14)  # with the marker
        else:
            place += 2 + max(length, 2)
    return found


def _jpeg_2000_grid(frame: bytes) -> tuple[Size, int]:
    """Return the size in the SIZ segment, and the number of tiles (ISO/IEC 15444-1 A.5.1)."""
    start = frame.find(_START_OF_CODESTREAM)
    if start < 0:
        raise ValueError("no JPEG 2000 codestream")
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0, samples = unpack_from(
        ">8LH", frame, start + 8
    )
    if not (x1 > x0 and y1 > y0 and tile_x and tile_y and tile_x0 <= x0 and tile_y0 <= y0):
        raise ValueError("a JPEG 2000 image without pixels")
    across, down = -(-(x1 - tile_x0) // tile_x), -(-(y1 - tile_y0) // tile_y)
    if across * down > _MOST_TILES:
        raise ValueError("more tiles than JPEG 2000 can count")
    return Size(rows=y1 - y0, columns=x1 - x0, samples=samples), across * down
