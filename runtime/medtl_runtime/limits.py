"""What reading takes in at most, and files that keep to it.

Scanners send what they send, and mistakes and malice send more. Every size that a file claims is
held against a limit, and against the bytes that are really there, before memory is taken for it.
With these limits a frame that is not compressed takes at most 1.4 GiB while it is read and prepared
(measured: the largest of 64-bit floats 1.4, of 16-bit colour 1.3, of 16-bit grey 1.1); that of an
ordinary image is a few MiB.
"""

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from medtl_runtime.errors import ScanTooLarge, ScanUnreadable

MOST_FRAME_PIXELS = 8192 * 8192
"""The largest detectors in use, of mammography, have less than a quarter of it. Whole-slide
microscopy comes in tiles that are far smaller."""

MOST_FRAME_SAMPLES = 3 * 2**25
"""Of all pixels together: colour frames have at most half the pixels of grey ones."""

MOST_SAMPLES = 3
"""Samples per pixel: grey or colour; CMYK and ARGB had 4, and are long retired."""

MOST_FRAMES = 500_000
"""Four hours of video, or all tiles of the largest slides."""

MOST_FRAGMENTS = 4 * MOST_FRAMES
"""Pieces of compressed pixel data, each found in about a microsecond."""

MOST_HEADER_BYTES = 64 * 2**20
"""Read of the header, pixels apart. The functional groups of 10,000 frames take about 20 MiB."""

MOST_HEADER_CALLS = 800_000
"""Reads that parsing a header may take, at 3 to 6 µs each on a slow core: less than 5 s. An
enhanced multi-frame file takes some 150 a frame, or 410 with sequences of undefined length; an
index of a disc takes some 25 a record."""

_CALLS_PER_ITEM = 8
"""Reads that take as long as pydicom takes to make an item of a sequence, about 40 µs."""

_ITEM = b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"
"""An item's tag, in little and big endian."""

MOST_BYTES = 2**30
"""Held in memory of one file that cannot be read piece by piece: a member of an archive, standard
input, a frame of compressed pixel data."""

MOST_INFLATED = 256 * 2**20
"""Bytes of a deflated data set. It is inflated whole, in less than a second, and held while it is
used; what such files are written for, structured reports and small images, is far smaller."""

MOST_MEMBERS = 100_000
"""Files that an archive lists; a 4D study of thin slices has some 10,000."""

MOST_DIRECTORY_BYTES = 16 * 2**20
"""Of an archive's list of files: 160 for each of the most; with the shortest names 3 s of work."""

File = str | Path | bytes | BinaryIO


def open_file(file: Path | bytes, source: str) -> BinaryIO:
    """Open a regular file, or bytes as one.

    Raises
    ------
    ScanUnreadable
        A folder, or a pipe, a device or a socket, which could keep us waiting for ever.
    OSError
        The file system's own.
    """
    if isinstance(file, bytes):
        return io.BytesIO(file)
    mode = os.stat(file).st_mode  # noqa: PTH116 - a third of the time of Path.stat
    if stat.S_ISDIR(mode):
        raise ScanUnreadable(source, "is a directory")
    if not stat.S_ISREG(mode):
        raise ScanUnreadable(source, "not a regular file, but a pipe, a device or a socket")
    return file.open("rb")


def held(file: File, source: str) -> Path | bytes:
    """Return what can be opened again and again: a path, or the bytes of a stream.

    Raises
    ------
    ScanTooLarge
        The stream holds more than `MOST_BYTES`.
    """
    if isinstance(file, str | Path):
        return Path(file)
    return file if isinstance(file, bytes) else read_all(file, source)


def read_all(stream: BinaryIO, source: str) -> bytes:
    """Return what is left of a stream.

    Raises
    ------
    ScanTooLarge
        That is more than `MOST_BYTES`.
    """
    data = stream.read(MOST_BYTES + 1)
    check_bytes(len(data), source)
    return data


def inflate(data: bytes, most: int, source: str) -> bytes:
    """Return what a raw deflate stream (RFC 1951) holds, up to ``most`` bytes and one.

    Raises
    ------
    ScanUnreadable
        The stream is damaged or cut short.
    """
    import zlib

    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = stream.decompress(data, most + 1)
    except zlib.error as cause:
        raise ScanUnreadable(source, "damaged deflate stream") from cause
    if len(inflated) <= most and not stream.eof:
        raise ScanUnreadable(source, "the deflate stream is cut short")
    return inflated


def check_bytes(size: int, source: str, *, what: str = "bytes", most: int | None = None) -> None:
    """Raise `ScanTooLarge` if ``size`` bytes are more than ``most``, by default `MOST_BYTES`."""
    most = MOST_BYTES if most is None else most
    if size > most:
        raise ScanTooLarge(
            source,
            f"more than {most >> 20} MiB of {what}",
            attribute=what,
            expected=f"at most {most}",
        )


def check_frame(rows: int, columns: int, source: str, *, samples: int = 1, frames: int = 1) -> None:
    """Check the size that a header claims.

    Raises
    ------
    ScanUnreadable
        A size below 1.
    ScanTooLarge
        More than `MOST_FRAME_PIXELS`, `MOST_SAMPLES`, `MOST_FRAME_SAMPLES` or `MOST_FRAMES`.
    """
    if min(rows, columns, samples, frames) < 1:
        raise ScanUnreadable(
            source, f"{rows} x {columns} pixels of {samples} samples in {frames} frames"
        )
    if rows * columns > MOST_FRAME_PIXELS:
        raise ScanTooLarge(
            source,
            f"{rows} x {columns} pixels; at most {MOST_FRAME_PIXELS:,} are taken in",
            attribute="Rows x Columns",
            found=rows * columns,
            expected=f"at most {MOST_FRAME_PIXELS}",
        )
    for attribute, found, most in (
        ("SamplesPerPixel", samples, MOST_SAMPLES),
        ("Rows x Columns x SamplesPerPixel", rows * columns * samples, MOST_FRAME_SAMPLES),
        ("NumberOfFrames", frames, MOST_FRAMES),
    ):
        if found > most:
            raise ScanTooLarge(
                source,
                f"{attribute} is {found}; at most {most} are taken in",
                attribute=attribute,
                found=found,
                expected=f"at most {most}",
            )


class Budget:
    """What parsing a header may still take.

    pydicom reads an element's tag, then its value, each with a call, and what follows takes it some
    microseconds: a limit to the calls is one to the time, and a limit to the bytes is one to the
    memory.
    """

    def __init__(self, source: str, *, what: str = "header", most_bytes: int | None = None) -> None:
        self._source = source
        self._what = what
        self._most_bytes = MOST_HEADER_BYTES if most_bytes is None else most_bytes
        self._calls = MOST_HEADER_CALLS
        self.size = self._most_bytes
        """How many bytes may still be read."""

    def spend(self, size: int, *, calls: int = 1) -> None:
        """Take off a call that read ``size`` bytes, or the time of several.

        Raises
        ------
        ScanTooLarge
            The budget is spent.
        """
        self.size -= size
        self._calls -= calls
        if self.size < 0 or self._calls < 0:
            raise ScanTooLarge(
                self._source,
                f"the {self._what} holds more than is taken in",
                attribute=self._what,
                expected=f"at most {self._most_bytes} bytes in {MOST_HEADER_CALLS} pieces",
            )

    def spend_item(self) -> None:
        """Take off what an item of a sequence costs beside the reads: it becomes a data set."""
        self.spend(0, calls=_CALLS_PER_ITEM)


def raise_if_spent(error: Exception) -> None:
    """Raise the `ScanTooLarge` behind an error: pydicom hides what ends the reading of an item."""
    if isinstance(error.__context__, ScanTooLarge):
        raise error.__context__


class ReadToTheEnd(Exception):
    """A file was to be read to its end, however long it is."""


class BudgetedFile:
    """A binary file of which only so much is read; what is skipped does not count."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self._read = file.read
        self._budget = budget
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        """Read ``size`` bytes, or what there is.

        Raises
        ------
        ScanTooLarge
            The budget is spent.
        ReadToTheEnd
            No size was given.
        """
        if size < 0:
            raise ReadToTheEnd
        most = self._budget.size + 1
        data = self._read(min(size, most))
        self._budget.spend(len(data))
        if data.startswith(_ITEM):
            self._budget.spend_item()
        return data
