"""PNG, JPEG and NPY to frames."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medtl_runtime.errors import ScanError, ScanTooLarge, ScanUnfit, ScanUnreadable
from medtl_runtime.images import read_npy, read_picture, scan_of_array
from medtl_runtime.scan import Frame

GREY = (np.add.outer(np.arange(32), np.arange(48)) * 3).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(data: bytes) -> Frame:
    (frame,) = read_picture(io.BytesIO(data), "picture").frames()
    return frame


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header_only(text: str) -> bytes:
    """Return an NPY file of format 1.0 with this header and few bytes behind it."""
    padded = text.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + bytes(128)


# --- pictures


@pytest.mark.parametrize("folder", ["brain_mri_tumour_yes_no", "busi"])
def test_real_pictures_of_every_shape_are_read_as_pillow_reads_them(
    collection: Path, folder: str
) -> None:
    paths = sorted(path for path in (collection / "images" / folder).rglob("*") if path.is_file())
    shapes = set()
    for path in paths[:: len(paths) // 24]:
        (frame,) = read_picture(path, path.name).frames()
        shapes.add(frame.values.shape)
        with Image.open(path) as image:
            expected = np.asarray(image if frame.values.ndim == 2 else image.convert("RGB"))
        np.testing.assert_array_equal(frame.values, expected)
        assert frame.quantity == "display"
        assert frame.value_range == (0, 255)
    assert shapes


def test_a_grey_png_keeps_its_8_bits() -> None:
    frame = picture(encoded(Image.fromarray(GREY), "PNG"))
    np.testing.assert_array_equal(frame.values, GREY)
    assert frame.values.dtype == np.float32
    assert (frame.quantity, frame.value_range) == ("display", (0, 255))
    assert not frame.inverted
    assert frame.padding is None


def test_a_grey_png_keeps_its_16_bits() -> None:
    deep = GREY.astype(np.uint16) * 257 + 1
    frame = picture(encoded(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(frame.values, deep)
    assert frame.value_range == (0, 65535)


def test_a_bilevel_png_is_black_and_white() -> None:
    frame = picture(encoded(Image.fromarray(GREY > 100), "PNG"))
    assert np.unique(frame.values).tolist() == [0, 255]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_colour_picture_has_three_channels_in_the_order_rgb(kind: str) -> None:
    red = Image.new("RGB", (16, 8), (250, 20, 40))
    frame = picture(encoded(red, kind))
    assert frame.values.shape == (8, 16, 3)
    assert frame.values[4, 8] == pytest.approx([250, 20, 40], abs=4)


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (16, 8), (200, 100, 50)).convert(mode)
    frame = picture(encoded(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert frame.values.shape == (8, 16, 3)
    assert frame.values[4, 8] == pytest.approx([200, 100, 50], abs=26)


def test_an_opaque_alpha_channel_is_dropped() -> None:
    frame = picture(encoded(Image.fromarray(GREY).convert("LA"), "PNG"))
    np.testing.assert_array_equal(frame.values, GREY)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_transparent_pixel_is_refused(mode: str) -> None:
    image = Image.fromarray(GREY).convert(mode)
    image.putpixel((3, 5), (0, 254) if mode == "LA" else (0, 0, 0, 254))
    with pytest.raises(ScanUnfit, match="partly transparent"):
        picture(encoded(image, "PNG"))


def with_transparent_grey(image: Image.Image, value: int) -> bytes:
    data = encoded(image, "PNG")
    chunk = b"tRNS" + struct.pack(">H", value)
    at = data.index(b"IDAT") - 4
    return (
        data[:at] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_value_that_is_declared_transparent_is_refused_where_it_occurs(dtype: type) -> None:
    grey = GREY.astype(dtype) * (dtype(257) if dtype is np.uint16 else dtype(1))
    used, unused = int(grey[3, 5]), int(grey.max()) + 1
    with pytest.raises(ScanUnfit, match="partly transparent"):
        picture(with_transparent_grey(Image.fromarray(grey), used))
    frame = picture(with_transparent_grey(Image.fromarray(grey), unused))
    np.testing.assert_array_equal(frame.values, grey)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_photograph_is_turned_upright_by_its_exif_tag(orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    frame = picture(encoded(Image.fromarray(GREY), "PNG", exif=exif))
    np.testing.assert_array_equal(frame.values, np.rot90(GREY, turns))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_picture_cut_short_is_unreadable(kind: str, share: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    picture(data)
    with pytest.raises(ScanUnreadable, match="damaged PNG or JPEG"):
        picture(data[: int(len(data) * share)])


def png_of(width: int, height: int, *, depth: int = 8, colour_type: int = 0) -> bytes:
    """Return a PNG that claims a size, with the rows of a small one."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    checked = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + checked + encoded(Image.fromarray(GREY), "PNG")[33:]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [8193, 10_000, 14_000, 60_000])
def test_a_picture_that_would_fill_the_memory_is_too_large(side: int) -> None:
    """Pillow warns of 10,000 pixels a side, and opens no 14,000."""
    with pytest.raises(ScanTooLarge) as error:
        picture(png_of(side, side))
    assert error.value.attribute == "Rows x Columns"


def test_a_colour_picture_is_too_large_with_half_the_pixels_of_a_grey_one() -> None:
    with pytest.raises(ScanTooLarge) as error:
        picture(png_of(8192, 4097, colour_type=2))
    assert error.value.attribute == "Rows x Columns x SamplesPerPixel"
    with pytest.raises(ScanUnreadable, match="damaged"):
        picture(png_of(8192, 4096, colour_type=2))


@pytest.mark.parametrize("colour_type", [2, 4, 6])
def test_16_bits_that_would_be_cut_to_8_are_refused(colour_type: int) -> None:
    with pytest.raises(ScanUnfit, match="16-bit PNG") as error:
        picture(png_of(4, 4, depth=16, colour_type=colour_type))
    assert (error.value.attribute, error.value.found) == ("bits per sample", 16)


def test_only_png_and_jpeg_are_opened_as_pictures() -> None:
    with pytest.raises(ScanUnreadable):
        picture(encoded(Image.fromarray(GREY), "BMP"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_picture_gives_a_frame_or_a_scan_error(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker" * 4, 72.0
    data = encoded(Image.fromarray(GREY), kind, exif=exif)
    random = np.random.default_rng(3)
    outcomes = set()
    for count in range(400):
        damaged = bytearray(data)
        for at in random.integers(8, min(len(data), 300), 1 + count % 5):
            damaged[at] = random.integers(256)
        try:
            outcomes.add(picture(_checksummed(damaged) if kind == "PNG" else damaged).quantity)
        except ScanError as error:
            outcomes.add(type(error).__name__)
    assert outcomes >= {"display", "ScanUnreadable"}


def _checksummed(data: bytearray) -> bytes:
    """Return a PNG with right checksums, so that damage reaches what is behind them."""
    out, at = bytes(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = bytes(data[at + 4 : at + 8 + length])
        out += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out


@pytest.mark.filterwarnings("ignore")
def test_an_exif_tag_that_cannot_be_written_back_is_a_scan_error() -> None:
    """Pillow's own exceptions for these are of no family that could be listed."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    data = encoded(Image.fromarray(GREY), "JPEG", exif=exif)
    at = data.index(b"\x01\x1a")  # XResolution, a rational
    for kind in range(20):
        damaged = bytearray(data)
        damaged[at + 3] = kind
        try:
            assert picture(bytes(damaged)).values.shape in (GREY.shape, GREY.T.shape)
        except ScanUnreadable:
            continue


# --- arrays


def frame_of(array: np.ndarray) -> Frame:
    (frame,) = scan_of_array(array).frames()
    return frame


def test_only_8_bit_arrays_are_made_for_display() -> None:
    assert frame_of(GREY).quantity == "display"
    for dtype in (np.int8, np.uint16, np.int16, np.int32, np.float16, np.float32, np.float64, bool):
        assert frame_of(np.ones((4, 5), dtype)).quantity == "modality"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.uint8, (0, 255)),
        (np.int16, (-32768, 32767)),
        (np.uint16, (0, 65535)),
        (np.float32, None),
    ],
)
def test_the_range_of_an_array_is_that_of_its_integers(dtype: type, expected: Any) -> None:
    assert frame_of(np.zeros((4, 5), dtype)).value_range == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 5), (4, 5)), ((4, 5, 1), (4, 5)), ((4, 5, 3), (4, 5, 3)), ((1, 1), (1, 1))],
)
def test_arrays_of_an_image_s_shape_are_taken(shape: tuple, expected: tuple) -> None:
    assert frame_of(np.zeros(shape, np.int16)).values.shape == expected


@pytest.mark.parametrize("shape", [(), (5,), (4, 5, 2), (4, 5, 4), (3, 4, 5, 3), (0, 5), (4, 0, 3)])
def test_an_array_of_another_shape_is_refused_by_its_shape(shape: tuple) -> None:
    words = " x ".join(map(str, shape)) or "scalar"
    with pytest.raises(ScanUnfit, match=f"shape {words}; expected H x W"):
        scan_of_array(np.zeros(shape, np.int16))


@pytest.mark.parametrize("dtype", ["complex64", "U3", "datetime64[s]", "object", "f4,f4"])
def test_an_array_of_something_else_than_numbers_is_refused(dtype: str) -> None:
    with pytest.raises(ScanUnfit, match="expected numbers"):
        scan_of_array(np.zeros((4, 5), dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.filterwarnings("error")
def test_nan_and_what_float32_cannot_hold_are_refused(value: float) -> None:
    array = np.zeros((4, 5))
    array[2, 3] = value
    with pytest.raises(ScanUnreadable, match="NaN or infinity"):
        scan_of_array(array)


def test_an_array_is_neither_changed_nor_shared() -> None:
    array = np.ones((4, 5), np.float32)
    frame = frame_of(array)
    array[:] = 7
    assert (frame.values == 1).all()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f8", ">f4", "u1"])
def test_npy_of_every_byte_order_and_memory_order_is_read(dtype: str, order: Any) -> None:
    array = np.asarray(GREY, dtype, order=order)
    (frame,) = read_npy(io.BytesIO(npy(array)), "npy").frames()
    np.testing.assert_array_equal(frame.values, GREY)


def test_npy_with_pickled_objects_is_refused_without_unpickling() -> None:
    array = np.array([[object()]])
    with pytest.raises(ScanUnfit, match="array of object"):
        read_npy(io.BytesIO(npy(array)), "npy")


@pytest.mark.parametrize(
    "data",
    [
        npy(GREY)[:6],
        npy(GREY)[:60],
        npy(GREY)[:-1],
        header_only("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"),
        header_only(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999, 4), }"
        ),
        header_only("{'descr': '<f8', 'fortran_order': False, 'shape': (-4, 4), }"),
        header_only("{'descr': '<f8', 'fortran_order': False, 'shape': (4,"),
        header_only("{'descr': '<q9', 'fortran_order': False, 'shape': (4, 4), }"),
        header_only("no dictionary"),
        b"\x93NUMPY\x09\x00" + bytes(100),
    ],
    ids=[
        "magic only",
        "cut in the header",
        "cut in the data",
        "more than the memory",
        "more than an integer",
        "negative",
        "unclosed",
        "no such type",
        "no dictionary",
        "version 9",
    ],
)
def test_damaged_npy_is_unreadable(data: bytes) -> None:
    with pytest.raises(ScanUnreadable, match=r"damaged NPY file|NPY file is cut short"):
        read_npy(io.BytesIO(data), "npy")
