"""What compressed frames say of their own size."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from struct import pack

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from medtl_runtime.codestream import Size, least_bytes, missing_tiles, size_of
from medtl_runtime.dicom import scan_of
from medtl_runtime.errors import ScanUnreadable

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
        "JPGExtended.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "JPGLosslessP14SV1_1s_1f_8b.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "JPEGLSNearLossless_16.dcm",
        "MR_small_jp2klossless.dcm",
        "JPEG2000.dcm",
        "HTJ2KLossless_08_RGB.dcm",
        "examples_jpeg2k.dcm",
    ],
)
def test_real_frames_have_the_size_that_their_header_says(
    real: Callable[[str], Path], name: str
) -> None:
    dataset = pydicom.dcmread(real(name))
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    expected = Size(rows=dataset.Rows, columns=dataset.Columns, samples=dataset.SamplesPerPixel)
    assert size_of(frame, dataset.file_meta.TransferSyntaxUID) == expected


def test_rle_has_no_place_for_a_size() -> None:
    assert size_of(bytes(64), RLELossless) is None


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLSLossless, JPEG2000])
@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\xff\xd8" + b"\xff" * 100,
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xe0\x00\x00\xff\xe0\x00\x00",
        b"\xff\xd8\xff\xe0\xff\xff",
        b"\xff\xd8\xff\xc0\x00\x11\x08\x00",
        b"\xff\x4f\xff\x51",
        b"\xff\x4f\xff\x51" + bytes(20),
        bytes(1000),
    ],
)
def test_a_stream_without_a_size_is_damaged(frame: bytes, syntax: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        size_of(frame, syntax)


def siz(x1: int, y1: int, tile_x: int, tile_y: int, samples: int = 1) -> bytes:
    fields = pack(">HHLLLLLLLLH", 41, 0, x1, y1, 0, 0, tile_x, tile_y, 0, 0, samples)
    return b"\xff\x4f\xff\x51" + fields


def test_jpeg_2000_with_too_many_tiles_or_none_is_damaged() -> None:
    assert size_of(siz(300, 200, 100, 100), JPEG2000) == Size(rows=200, columns=300, samples=1)
    for tile in ((1, 1), (0, 100), (100, 0)):
        with pytest.raises(ValueError, match=r"tiles|without pixels"):
            size_of(siz(300, 300, *tile), JPEG2000)


@pytest.fixture(scope="module")
def tiled() -> bytes:
    """A JPEG 2000 codestream of 16 tiles."""
    image = Image.fromarray((np.add.outer(np.arange(256), np.arange(256)) // 2).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG2000", tile_size=(64, 64), no_jp2=True)
    return file.getvalue()


def tile_starts(codestream: bytes) -> list[int]:
    return [match.start() for match in re.finditer(b"\xff\x90\x00\x0a", codestream)]


def test_tiles_without_a_tile_part_are_counted(tiled: bytes) -> None:
    starts = tile_starts(tiled)
    assert len(starts) == 16
    assert missing_tiles(tiled, JPEG2000) == 0
    assert missing_tiles(tiled[: starts[9]] + b"\xff\xd9", JPEG2000) == 7
    assert missing_tiles(tiled[: starts[9]], JPEG2000) == 7
    assert missing_tiles(tiled, JPEGBaseline8Bit) == 0
    open_end = tiled[: starts[15] + 6] + bytes(4) + tiled[starts[15] + 10 :]
    assert missing_tiles(open_end, JPEG2000) == 0
    wrong = tiled[: starts[3] + 6] + b"\0\0\0\x20" + tiled[starts[3] + 10 :]
    assert missing_tiles(wrong, JPEG2000) == 0  # it cannot be told
    assert missing_tiles(tiled[:-2] + b"\0", JPEG2000) == 0  # padding in place of the end marker


def test_a_frame_with_an_end_marker_in_place_of_its_last_tiles_is_unreadable(
    tiled: bytes, changed: Callable[..., pydicom.Dataset]
) -> None:
    dataset = changed("MR_small_jp2klossless.dcm", Rows=256, Columns=256, PixelRepresentation=0)
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = encapsulate([tiled + bytes(len(tiled) % 2)])
    assert len(list(scan_of(dataset).frames())) == 1
    cut = tiled[: tile_starts(tiled)[9]] + b"\xff\xd9"
    dataset.PixelData = encapsulate([cut + bytes(len(cut) % 2)])
    with pytest.raises(ScanUnreadable, match="lacks 7 of its tiles"):
        list(scan_of(dataset).frames())


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "HTJ2KLossless_08_RGB.dcm"])
def test_real_frames_lack_no_tiles(real: Callable[[str], Path], name: str) -> None:
    dataset = pydicom.dcmread(real(name))
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    assert missing_tiles(frame, dataset.file_meta.TransferSyntaxUID) == 0


def test_a_size_behind_other_segments_and_fill_bytes_is_found() -> None:
    segments = b"\xff\xe0\x00\x04ab" + b"\xff\xff\xff\xdb\x00\x03x"
    frame = b"\xff\xd8" + segments + b"\xff\xc2\x00\x11\x08\x00\x10\x00\x20\x03"
    assert size_of(frame, JPEGBaseline8Bit) == Size(rows=16, columns=32, samples=3)


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "SC_rgb_rle_32bit.dcm", "liver_deflate.dcm"])
def test_real_frames_are_not_smaller_than_possible(real: Callable[[str], Path], name: str) -> None:
    dataset = pydicom.dcmread(real(name))
    count = int(dataset.get("NumberOfFrames", 1))
    size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
    syntax = dataset.file_meta.TransferSyntaxUID
    for frame in generate_frames(dataset.PixelData, number_of_frames=count):
        assert len(frame) >= least_bytes(size, syntax) > 0


def test_a_frame_of_one_value_is_not_smaller_than_possible() -> None:
    import zlib

    deflate = zlib.compressobj(9, wbits=-15)
    packed = deflate.compress(bytes(8192 * 8192)) + deflate.flush()
    assert len(packed) >= least_bytes(8192 * 8192, DEFLATED_FRAMES)
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small.dcm"))
    dataset.Rows = dataset.Columns = 512
    dataset.PixelData = bytes(512 * 512 * 2)
    dataset.compress(RLELossless)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    assert len(frame) >= least_bytes(512 * 512 * 2, RLELossless)
