"""PNG, JPEG and NPY to frames."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medtl_runtime.errors import ScanError, ScanTooLarge, ScanUnfit, ScanUnreadable
from medtl_runtime.limits import MOST_FRAME_PIXELS, File, check_frame, held, open_file
from medtl_runtime.scan import MOST_DISPLAY_BITS, Frame, Scan


def read_picture(file: File, source: str) -> Scan:
    """Read a PNG or JPEG file: grey or RGB of 8 bits, grey of 16, turned upright by its EXIF tag.

    Only its size is read now; the rest when the frame is asked for, with these errors as well.

    Raises
    ------
    ScanUnreadable
        Corrupt or cut short.
    ScanTooLarge
        More pixels than are taken in; see `limits`.
    ScanUnfit
        Partly transparent: there is no right background to put behind it. Or a PNG of 16 bits with
        colour or an alpha channel, which Pillow would cut to 8 bits.
    """
    content = held(file, source)
    with _opened_picture(content, source) as image:
        columns, rows = image.size
        samples = 1 if _is_grey(image) else 3
    _require_whole_depth(content, source)
    check_frame(rows, columns, source, samples=samples)

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        for _ in indices:
            with _opened_picture(content, source) as image:
                upright = ImageOps.exif_transpose(image)
                upright.load()
            yield _picture_frame(upright, source)

    return Scan(source=source, frame_count=1, decode=decode)


@contextmanager
def _opened_picture(content: Path | bytes, source: str) -> Iterator[Image.Image]:
    try:
        with open_file(content, source) as opened, _opened_by_pillow(opened) as image:
            yield image
    except ScanError:
        raise
    except Image.DecompressionBombError as cause:
        raise ScanTooLarge(
            source,
            f"more pixels than Pillow opens; at most {MOST_FRAME_PIXELS:,} are taken in",
            attribute="Rows x Columns",
            expected=f"at most {MOST_FRAME_PIXELS}",
        ) from cause
    except Exception as cause:  # Pillow lets many kinds through on damaged files
        if isinstance(cause, OSError) and cause.errno is not None:
            raise  # from the file system
        raise ScanUnreadable(source, "damaged PNG or JPEG file") from cause


def _opened_by_pillow(file: BinaryIO) -> Image.Image:
    with warnings.catch_warnings():  # of sizes, which are checked here
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=("PNG", "JPEG"))


def _require_whole_depth(content: Path | bytes, source: str) -> None:
    """Raise for a PNG of 16 bits that is not grey alone: Pillow would cut it to 8 bits."""
    with open_file(content, source) as opened:
        start = opened.read(26)
    depth, colour_type = start[24:25], start[25:]  # of the IHDR chunk (PNG, 11.2.1)
    if start.startswith(b"\x89PNG") and depth == b"\x10" and colour_type != b"\x00":
        raise ScanUnfit(
            source,
            "16-bit PNG with colour or an alpha channel; expected 8 bits, or grey alone",
            attribute="bits per sample",
            found=16,
            expected=8,
        )


def _picture_frame(image: Image.Image, source: str) -> Frame:
    if image.has_transparency_data and _is_transparent(image):
        raise ScanUnfit(source, "partly transparent image; save it without an alpha channel")
    if image.mode.startswith("I"):
        return _display(np.asarray(image), 65535.0)
    if _is_grey(image):
        return _display(np.asarray(image.convert("L")), 255.0)
    return _display(np.asarray(image.convert("RGB")), 255.0)


def _is_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode in ("1", "L", "LA")


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8 before it compares
        return bool((np.asarray(image) == image.info["transparency"]).any())
    return bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)


def _display(values: NDArray, highest: float) -> Frame:
    return Frame(levels=values.astype(np.float32), quantity="display", value_range=(0.0, highest))


def read_npy(file: File, source: str) -> Scan:
    """Read an NPY file (NumPy's format 1.0 to 3.0), without pickled objects.

    Only the header is read now; the values when the frame is asked for, with these errors as well.

    Raises
    ------
    ScanUnreadable
        Damaged or cut short, or NaN or infinity among the values.
    ScanTooLarge
        More pixels than are taken in; see `limits`.
    ScanUnfit
        Another shape than that of an image, or another type than a number.
    """
    content = held(file, source)
    with _opened_npy(content, source) as opened:
        shape, dtype = _npy_header(opened)
        if min(shape, default=0) < 0:
            raise ScanUnreadable(source, "damaged NPY file")
        first = opened.tell()
        if opened.seek(0, 2) - first < math.prod(shape) * dtype.itemsize:
            raise ScanUnreadable(source, "the NPY file is cut short")
    _require_image(shape, dtype, source)
    check_frame(shape[0], shape[1], source, samples=math.prod(shape[2:]))

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        for _ in indices:
            with _opened_npy(content, source) as opened:
                array = np.load(opened, allow_pickle=False)
            yield _frame_of_array(array, source)

    return Scan(source=source, frame_count=1, decode=decode)


@contextmanager
def _opened_npy(content: Path | bytes, source: str) -> Iterator[BinaryIO]:
    try:
        with open_file(content, source) as opened:
            yield opened
    except ScanError:
        raise
    except Exception as cause:
        if isinstance(cause, OSError) and cause.errno is not None:
            raise  # from the file system
        raise ScanUnreadable(source, "damaged NPY file") from cause


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type; the file then stands at the values."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def scan_of_array(array: NDArray, source: str = "array") -> Scan:
    """Return the scan that an array holds: H x W, or H x W x 3 for RGB.

    uint8 is taken as made for display (0 to 255), as in PNG. Every other type holds modality
    values, Hounsfield units for example, and needs the recipe's window.

    Raises
    ------
    ScanUnreadable
        NaN or infinity among the values.
    ScanUnfit
        Another shape, or another type than a number.
    """
    _require_image(array.shape, array.dtype, source)
    frame = _frame_of_array(array, source)
    return Scan(source=source, frame_count=1, decode=lambda indices: (frame for _ in indices))


def _require_image(shape: tuple[int, ...], dtype: np.dtype, source: str) -> None:
    if dtype.kind not in "uifb":
        raise ScanUnfit(source, f"array of {dtype}; expected numbers")
    if 0 in shape or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))):
        shown = " x ".join(map(str, shape)) or "scalar"
        raise ScanUnfit(source, f"array of shape {shown}; expected H x W or H x W x 3")


def _frame_of_array(array: NDArray, source: str) -> Frame:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ScanUnreadable(source, "the pixels hold NaN or infinity")
    telling = array.dtype.kind in "ui" and array.dtype.itemsize * 8 <= MOST_DISPLAY_BITS
    limits = np.iinfo(array.dtype) if telling else None
    return Frame(
        levels=values,
        quantity="display" if array.dtype == np.uint8 else "modality",
        value_range=(float(limits.min), float(limits.max)) if limits else None,
    )
