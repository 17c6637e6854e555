"""What is refused before memory or time is taken for it."""

import io
import zlib
from pathlib import Path

import pytest

from medtl_runtime import limits
from medtl_runtime.errors import ScanTooLarge, ScanUnreadable
from medtl_runtime.limits import (
    MOST_FRAME_PIXELS,
    Budget,
    BudgetedFile,
    ReadToTheEnd,
    check_frame,
    held,
    inflate,
    open_file,
)


def test_the_largest_frame_is_taken_and_one_row_more_is_not() -> None:
    check_frame(8192, 8192, "scan", frames=1000)
    check_frame(8192, 4096, "scan", samples=3)
    with pytest.raises(ScanTooLarge) as error:
        check_frame(8193, 8192, "scan")
    assert error.value.status == "refused"
    assert (error.value.attribute, error.value.found) == ("Rows x Columns", 8193 * 8192)
    assert error.value.expected == f"at most {MOST_FRAME_PIXELS}"


@pytest.mark.parametrize(
    ("sizes", "attribute"),
    [({"samples": 4}, "SamplesPerPixel"), ({"frames": 10**7}, "NumberOfFrames")],
)
def test_too_many_samples_or_frames_are_refused(sizes: dict[str, int], attribute: str) -> None:
    with pytest.raises(ScanTooLarge) as error:
        check_frame(10, 10, "scan", **sizes)
    assert error.value.attribute == attribute


def test_colour_frames_have_at_most_half_the_pixels() -> None:
    with pytest.raises(ScanTooLarge) as error:
        check_frame(8192, 4097, "scan", samples=3)
    assert error.value.attribute == "Rows x Columns x SamplesPerPixel"
    assert error.value.found == 3 * 8192 * 4097


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (-1, 5)])
def test_a_size_below_one_is_unreadable(shape: tuple[int, int]) -> None:
    with pytest.raises(ScanUnreadable):
        check_frame(*shape, "scan")


def test_a_stream_is_held_up_to_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "MOST_BYTES", 100)
    assert held(io.BytesIO(bytes(100)), "scan") == bytes(100)
    assert held(str(tmp_path), "scan") == tmp_path
    with pytest.raises(ScanTooLarge):
        held(io.BytesIO(bytes(101)), "scan")


def test_bytes_and_files_are_opened_alike(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    for file in (path, b"content"):
        with open_file(file, "scan") as opened:
            assert opened.read() == b"content"
    with pytest.raises(ScanUnreadable, match="directory"):
        open_file(tmp_path, "scan")
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "nothing", "scan")


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(9, wbits=-15)
    return stream.compress(data) + stream.flush()


def test_inflating_stops_one_byte_behind_the_limit() -> None:
    assert inflate(deflated(b"abc"), 3, "scan") == b"abc"
    assert inflate(deflated(bytes(10**7)), 1000, "scan") == bytes(1001)


@pytest.mark.parametrize("data", [b"", deflated(b"abc" * 100)[:-3], b"\xff" * 50])
def test_a_deflate_stream_that_is_damaged_is_unreadable(data: bytes) -> None:
    with pytest.raises(ScanUnreadable, match="deflate"):
        inflate(data, 1000, "scan")


def test_a_budget_ends_by_bytes_and_by_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_HEADER_BYTES", 100)
    monkeypatch.setattr(limits, "MOST_HEADER_CALLS", 10)
    file = BudgetedFile(io.BytesIO(bytes(1000)), Budget("scan"))
    file.seek(500)  # what is skipped does not count
    assert len(file.read(100)) == 100
    with pytest.raises(ScanTooLarge):
        file.read(1)
    many = BudgetedFile(io.BytesIO(bytes(1000)), Budget("scan"))
    for _ in range(10):
        many.read(1)
    with pytest.raises(ScanTooLarge):
        many.read(1)


def test_a_claim_beyond_the_budget_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_HEADER_BYTES", 100)

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert 0 <= size <= 101
            return bytes(size)

    with pytest.raises(ScanTooLarge):
        BudgetedFile(Endless(), Budget("scan")).read(2**32)
    with pytest.raises(ReadToTheEnd):
        BudgetedFile(Endless(), Budget("scan")).read()
