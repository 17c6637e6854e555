"""Which fragments make a frame."""

import io
from collections.abc import Callable
from pathlib import Path
from struct import pack

import pydicom
import pytest
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames

from medtl_runtime import fragments
from medtl_runtime.errors import ScanTooLarge, ScanUnreadable
from medtl_runtime.fragments import UNDEFINED, find_frames, read_frame

FRAMES = [text * 6 + b"\xff\xd9" for text in (b"first!", b"2nd.", b"the third!")]
END = b"\xfe\xff\xdd\xe0" + bytes(4)


def item(data: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + pack("<L", len(data)) + data


def found(
    data: bytes, count: int, *, length: int = UNDEFINED, extended: tuple[bytes, bytes] | None = None
) -> list[bytes]:
    file = io.BytesIO(b"header" + data)
    file.seek(6)
    frames = find_frames(file, "scan", length=length, count=count, extended=extended)
    return [read_frame(file, frame, "scan") for frame in frames]


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_frames_of_several_fragments_are_found_with_and_without_a_table(
    table: bool, pieces: int
) -> None:
    data = encapsulate(FRAMES, fragments_per_frame=pieces, has_bot=table) + END
    assert found(data, 3) == FRAMES


def test_frames_are_found_by_the_extended_offset_table() -> None:
    data, *tables = encapsulate_extended(FRAMES)
    assert found(data + END, 3, extended=(tables[0], tables[1])) == FRAMES


def test_all_fragments_are_the_frame_where_there_is_one() -> None:
    data = item(b"") + item(b"ab") + item(b"cd") + item(b"ef") + END
    assert found(data, 1) == [b"abcdef"]


def test_a_value_of_known_length_needs_no_delimiter() -> None:
    data = encapsulate(FRAMES)
    assert found(data + b"other attributes", 3, length=len(data)) == FRAMES


@pytest.mark.parametrize("missing", [1, 8, 9, 12, 30])
def test_a_value_that_is_cut_short_is_unreadable(missing: int) -> None:
    data = encapsulate(FRAMES) + END
    with pytest.raises(ScanUnreadable, match="cut short"):
        found(data[:-missing], 3)
    whole = encapsulate(FRAMES)
    with pytest.raises(ScanUnreadable, match="cut short"):
        found(whole[: len(whole) - min(missing, 12)], 3, length=len(whole) + 4)


@pytest.mark.parametrize(
    "data",
    [
        b"native pixels",
        item(b"") + b"native pixels",
        item(pack("<2L", 0, 5)) + item(b"ab") + item(b"cd") + END,
        item(b"") + b"\xfe\xff\x00\xe0" + b"\xff" * 4 + END,
    ],
)
def test_what_is_no_sequence_of_fragments_is_damaged(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no sequence|points at no fragment"):
        found(data, 2)


def test_too_many_fragments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragments, "MOST_FRAGMENTS", 3)
    with pytest.raises(ScanTooLarge):
        found(encapsulate(FRAMES) + END, 3)


@pytest.mark.parametrize(
    "name",
    [
        "emri_small_RLE.dcm",
        "emri_small_jpeg_2k_lossless.dcm",
        "SC_rgb_rle_2frame.dcm",
        "examples_ybr_color.dcm",
        "liver_j2k.dcm",
    ],
)
def test_real_files_have_the_frames_that_pydicom_finds(
    real: Callable[[str], Path], name: str
) -> None:
    dataset = pydicom.dcmread(real(name))
    if not dataset.file_meta.TransferSyntaxUID.is_compressed:
        pytest.skip("not compressed")
    data, count = dataset.PixelData, dataset.NumberOfFrames
    expected = list(generate_frames(data, number_of_frames=count))
    assert found(data, count, length=len(data)) == expected
