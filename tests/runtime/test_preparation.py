"""From a scan to canonical images, without an engine."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medtl_runtime import Predictor
from medtl_runtime.errors import ScanUnreadable, UsageError
from medtl_runtime.intended_use import IntendedUse, Rule
from medtl_runtime.preparation import Prepared, prepare, prepare_chunk
from medtl_runtime.reading import read_scan, source_of
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_runtime.results import Failure
from medtl_runtime.scan import Frame, Scan
from medtl_runtime.testing import FakeEngine, describe

GREY = Recipe(size=(16, 16), channels=1, window=HeaderVoi())
ANY = IntendedUse()
CT_ONLY = IntendedUse(rules=(Rule(attribute="Modality", values=("CT",)),))


def test_each_frame_is_what_the_recipe_makes_of_it(cine: Path) -> None:
    found = list(prepare(read_scan(cine), GREY, ANY))
    for index, (one, frame) in enumerate(zip(found, read_scan(cine).frames(), strict=True)):
        assert isinstance(one, Prepared)
        assert (one.scan, one.frame) == (str(cine), index)
        assert one.header.modality == "MR"
        np.testing.assert_array_equal(one.canonical.pixels, GREY.apply(frame, "").pixels)
    assert len(found) == 15


def test_frames_can_be_chosen_in_any_order(cine: Path) -> None:
    whole = list(prepare(read_scan(cine), GREY, ANY))
    some = list(prepare(read_scan(cine), GREY, ANY, frames=[7, 2]))
    assert [one.frame for one in some] == [7, 2]
    for one in some:
        assert isinstance(one, Prepared)
        there = whole[one.frame or 0]
        assert isinstance(there, Prepared)
        np.testing.assert_array_equal(one.canonical.pixels, there.canonical.pixels)


def test_the_header_is_checked_before_a_pixel_is_decoded(shipped: Path) -> None:
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    dataset.PixelData = b""
    (failure,) = prepare(read_scan(dataset), GREY, CT_ONLY)
    assert isinstance(failure, Failure)
    assert (failure.status, failure.error.code) == ("refused", "scan-out-of-scope")
    assert failure.frame is None
    assert failure.header.sop_instance_uid == dataset.SOPInstanceUID


def test_what_only_the_recipe_refuses_is_refused_by_frame(shipped: Path) -> None:
    (failure,) = prepare(read_scan(shipped / "SC_rgb_rle.dcm"), GREY, ANY)
    assert isinstance(failure, Failure)
    assert (failure.status, failure.error.code, failure.frame) == ("refused", "scan-unfit", 0)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nothing.dcm", "scan-not-found"),
        ("reportsi.dcm", "scan-without-pixels"),
        ("MR_truncated.dcm", "scan-unreadable"),
    ],
)
def test_what_cannot_be_read_is_a_failure_that_names_the_scan(
    shipped: Path, name: str, code: str
) -> None:
    path = shipped / name
    predictor = Predictor(engine=FakeEngine(describe()))
    (failure,) = predictor.prepare(path, name="scan 1")
    assert isinstance(failure, Failure)
    assert (failure.scan, failure.status, failure.error.code) == ("scan 1", "error", code)


def scan(count: int, bad: int) -> Scan:
    """Return a scan of black frames, of which one cannot be decoded."""

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            if index == bad:
                raise ScanUnreadable("s.dcm", "it cannot be decoded")
            yield Frame(levels=np.zeros((4, 4), np.float32), quantity="display", value_range=(0, 1))

    return Scan(source="s.dcm", frame_count=count, decode=decode)


def test_a_frame_that_cannot_be_decoded_is_the_last_and_is_counted() -> None:
    found = list(prepare(scan(5, bad=2), GREY, ANY))
    assert [one.frame for one in found] == [0, 1, 2]
    assert [isinstance(one, Failure) for one in found] == [False, False, True]


def test_a_frame_that_is_not_there_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(UsageError, match="no frame 5"):
        list(prepare(scan(5, bad=9), GREY, ANY, frames=[5]))


def test_chunks_make_the_whole(cine: Path) -> None:
    whole = list(prepare(read_scan(cine), GREY, ANY))
    first, found, rounds = 0, [], 0
    while first is not None:
        chunk = prepare_chunk(source_of(cine), GREY, ANY, first, most=4)
        assert len(chunk.items) <= 4
        found += chunk.items
        first = chunk.next
        rounds += 1
    assert rounds == 4
    assert [one.frame for one in found] == [one.frame for one in whole]


def test_after_a_failure_there_is_no_next_chunk(shipped: Path, cine: Path) -> None:
    chunk = prepare_chunk(source_of(cine), GREY, CT_ONLY, 0, most=4)
    assert (len(chunk.items), chunk.next) == (1, None)
    chunk = prepare_chunk(source_of(shipped / "nothing.dcm"), GREY, ANY, 0)
    assert (len(chunk.items), chunk.next) == (1, None)


def test_a_file_that_lost_frames_between_two_chunks_is_not_passed_over(shipped: Path) -> None:
    chunk = prepare_chunk(source_of(shipped / "MR_small.dcm"), GREY, ANY, first=4)
    (failure,) = chunk.items
    assert isinstance(failure, Failure)
    assert (failure.error.code, failure.frame) == ("scan-unreadable", 4)
    assert "changed while it was read" in failure.error.reason
    assert chunk.next is None


def test_the_time_to_open_a_scan_counts_as_reading_of_its_first_frame(cine: Path) -> None:
    first, second, *_ = prepare(read_scan(cine), GREY, ANY, opening=5.0)
    assert isinstance(first, Prepared)
    assert isinstance(second, Prepared)
    assert first.milliseconds["read"] >= 5000 > second.milliseconds["read"]
