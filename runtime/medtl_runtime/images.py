"""PNG, JPEG and NPY to frames."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medtl_runtime.errors import ScanUnfit, ScanUnreadable
from medtl_runtime.scan import MOST_DISPLAY_BITS, Frame, Scan


def read_picture(file: str | Path | BinaryIO, source: str) -> Scan:
    """Read a PNG or JPEG file: grey or RGB, 8 or 16 bits, turned upright by its EXIF tag.

    Raises
    ------
    ScanUnreadable
        Corrupt, cut short or absurdly large.
    ScanUnfit
        Partly transparent: there is no right background to put behind it.
    """
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            upright = ImageOps.exif_transpose(image)
            upright.load()
    except Exception as cause:  # Pillow lets many kinds through on damaged files
        raise ScanUnreadable(source, "damaged PNG or JPEG file") from cause
    frame = _picture_frame(upright, source)
    return Scan(source=source, frame_count=1, decode=lambda: iter([frame]))


def _picture_frame(image: Image.Image, source: str) -> Frame:
    if image.has_transparency_data and _is_transparent(image):
        raise ScanUnfit(source, "partly transparent image; save it without an alpha channel")
    if image.mode.startswith("I"):
        return _display(np.asarray(image), 65535.0)
    if image.mode in ("1", "L", "LA"):
        return _display(np.asarray(image.convert("L")), 255.0)
    return _display(np.asarray(image.convert("RGB")), 255.0)


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8 before it compares
        return bool((np.asarray(image) == image.info["transparency"]).any())
    return bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)


def _display(values: NDArray, highest: float) -> Frame:
    return Frame(values=values.astype(np.float32), quantity="display", value_range=(0.0, highest))


def read_npy(file: str | Path | BinaryIO, source: str) -> Scan:
    """Read an NPY file (NumPy's format 1.0 to 3.0), without pickled objects."""
    try:
        array = np.load(file, allow_pickle=False)
    except Exception as cause:  # a damaged header can also claim more memory than there is
        raise ScanUnreadable(source, "damaged NPY file") from cause
    return scan_of_array(array, source)


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
    if array.dtype.kind not in "uifb":
        raise ScanUnfit(source, f"array of {array.dtype}; expected numbers")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        shape = " x ".join(map(str, array.shape)) or "scalar"
        raise ScanUnfit(source, f"array of shape {shape}; expected H x W or H x W x 3")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ScanUnreadable(source, "the pixels hold NaN or infinity")
    telling = array.dtype.kind in "ui" and array.dtype.itemsize * 8 <= MOST_DISPLAY_BITS
    limits = np.iinfo(array.dtype) if telling else None
    frame = Frame(
        values=values,
        quantity="display" if array.dtype == np.uint8 else "modality",
        value_range=(float(limits.min), float(limits.max)) if limits else None,
    )
    return Scan(source=source, frame_count=1, decode=lambda: iter([frame]))
