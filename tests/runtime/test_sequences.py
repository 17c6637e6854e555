"""Items of sequences: what is taken from them, and that they keep to a budget."""

import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from struct import pack

import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence
from pydicom.tag import Tag

from medtl_runtime import limits
from medtl_runtime.dicom import read_dicom
from medtl_runtime.errors import ScanTooLarge
from medtl_runtime.limits import Budget
from medtl_runtime.sequences import parse_items

GROUPS = 0x52009230
EMPTY_ITEM = b"\xfe\xff\x00\xe0" + bytes(4)


def raw_of(
    value: bytes, *, vr: str | None = "SQ", implicit: bool = False, little: bool = True
) -> RawDataElement:
    return RawDataElement(Tag(GROUPS), vr, len(value), value, 0, implicit, little)


def encoded(items: list[Dataset], *, implicit: bool, little: bool, undefined: bool) -> bytes:
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = implicit, little
    for item in items:
        item.is_undefined_length_sequence_item = undefined
    element = pydicom.DataElement(GROUPS, "SQ", items)
    write_sequence(file, element, ["iso8859"])
    return file.getvalue()


def items() -> list[Dataset]:
    """Return three items, each with one attribute that is asked for and two that are not."""
    made = []
    for index in range(3):
        item = Dataset()
        item.StudyDate = "20200101"
        item.RescaleSlope = index + 1
        item.WindowCenter = 40
        made.append(item)
    return made


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_each_item_holds_what_is_asked_for_and_nothing_else(
    implicit: bool, little: bool, undefined: bool
) -> None:
    value = encoded(items(), implicit=implicit, little=little, undefined=undefined)
    raw = raw_of(value, implicit=implicit, little=little)
    found = parse_items(raw, [Tag("RescaleSlope")], Budget("scan"), ["iso8859"])
    assert [item.RescaleSlope for item in found] == [1, 2, 3]
    assert [len(item) for item in found] == [1, 1, 1]


def test_a_sequence_of_unknown_vr_is_implicit_and_little_endian() -> None:
    value = encoded(items(), implicit=True, little=True, undefined=False)
    raw = raw_of(value, vr="UN", implicit=False, little=True)
    found = parse_items(raw, [Tag("RescaleSlope")], Budget("scan"), ["iso8859"])
    assert [item.RescaleSlope for item in found] == [1, 2, 3]


@pytest.mark.parametrize("value", [b"", b"\xfe\xff\xdd\xe0" + bytes(4)])
def test_an_empty_sequence_has_no_items(value: bytes) -> None:
    assert parse_items(raw_of(value), [], Budget("scan"), ["iso8859"]) == []


def test_items_cost_more_than_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_HEADER_CALLS", 1000)
    parse_items(raw_of(EMPTY_ITEM * 80), [], Budget("scan"), ["iso8859"])
    with pytest.raises(ScanTooLarge):
        parse_items(raw_of(EMPTY_ITEM * 130), [], Budget("scan"), ["iso8859"])


def with_groups(name: Path, vr: bytes, value: bytes) -> bytes:
    data = name.read_bytes()
    at = data.rindex(b"\xe0\x7f\x10\x00OW")
    return data[:at] + pack("<HH2sHL", 0x5200, 0x9230, vr, 0, len(value)) + value + data[at:]


@pytest.mark.parametrize("vr", [b"SQ", b"UN"])
def test_the_most_items_of_a_header_take_less_than_5_seconds(
    shipped: Path, vr: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of them is tried, and the best of three times counts."""
    monkeypatch.setattr(limits, "MOST_HEADER_CALLS", limits.MOST_HEADER_CALLS // 10)
    data = with_groups(shipped / "CT_small.dcm", vr, EMPTY_ITEM * 33_000)

    def seconds() -> float:
        started = time.process_time()
        with pytest.raises(ScanTooLarge, match="header"):
            read_dicom(data, "scan")
        return time.process_time() - started

    assert min(seconds() for _ in range(3)) < 0.5


def test_large_functional_groups_of_unknown_vr_are_read(shipped: Path) -> None:
    """Beyond 64 KiB pydicom leaves them as they are."""
    dataset = pydicom.dcmread(shipped / "CT_small.dcm")
    count = 900
    groups = []
    for index in range(count):
        transform, group = Dataset(), Dataset()
        transform.RescaleSlope, transform.RescaleIntercept = 2, index
        transform.RescaleType = "something that makes it longer"
        group.PixelValueTransformationSequence = [transform]
        groups.append(group)
    value = encoded(groups, implicit=True, little=True, undefined=False)
    assert len(value) > 2**16
    stored = dataset.pixel_array
    dataset.NumberOfFrames, dataset.PixelData = count, stored.tobytes() * count
    file = BytesIO()
    dataset.save_as(file)
    data = file.getvalue()
    at = data.rindex(b"\xe0\x7f\x10\x00OW")
    data = data[:at] + pack("<HH2sHL", 0x5200, 0x9230, b"UN", 0, len(value)) + value + data[at:]
    (last,) = read_dicom(data, "scan").frames([count - 1])
    assert (last.values == 2 * stored.astype("f4") + count - 1).all()


@pytest.mark.parametrize(("undefined", "most"), [(False, 180), (True, 450)])
def test_a_frame_of_a_real_enhanced_object_takes_a_few_hundred_reads(
    real: Callable[[str], Path],
    undefined: bool,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = pydicom.dcmread(real("IM_0027_fMAP.dcm"))
    _mark(dataset, undefined)
    file = BytesIO()
    dataset.save_as(file, implicit_vr=False, little_endian=True)
    monkeypatch.setattr(limits, "MOST_HEADER_CALLS", most * dataset.NumberOfFrames)
    assert len(read_dicom(file.getvalue(), "scan").header.positions) == dataset.NumberOfFrames


def _mark(dataset: Dataset, undefined: bool) -> None:
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined
                _mark(item, undefined)
