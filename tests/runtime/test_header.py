"""What is taken from a DICOM header, and what of it is not believed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from medtl_runtime.dicom import scan_of
from medtl_runtime.header import header_of
from medtl_runtime.reading import read_scan
from medtl_runtime.scan import Header

Changed = Callable[..., Dataset]


def header(dataset: Dataset) -> Header:
    return scan_of(dataset).header


def test_the_header_of_a_ct_image(shipped: Path) -> None:
    found = read_scan(shipped / "CT_small.dcm").header
    assert found.modality == "CT"
    assert found.patient_id == "1CT1"
    assert found.patient_age == 0  # "000Y"
    assert found.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
    assert found.study_instance_uid == "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"
    assert found.series_instance_uid == "1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322"
    assert found.frame_of_reference_uid == "1.3.6.1.4.1.5962.1.4.1.1.20040119072730.12322"
    assert found.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert (found.rows, found.columns) == (128, 128)
    assert found.pixel_spacing == (0.661468, 0.661468)
    (position,) = found.positions
    assert position.origin == (-158.135803, -179.035797, -75.699997)
    assert position.orientation == (1, 0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("045Y", 45),
        ("018M", 1.5),
        ("003W", 3 * 7 / 365.25),
        ("010D", 10 / 365.25),
        ("45Y", 45),
        ("045y", 45),
    ],
)
def test_an_age_is_in_years_whatever_its_unit(changed: Changed, text: str, years: float) -> None:
    assert header(changed("CT_small.dcm", PatientAge=text)).patient_age == pytest.approx(years)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", ["", "Y", "ABCY", "-45Y", "0045Y", "45", "45 Y", "4.5Y"])
def test_an_age_that_makes_no_sense_is_unknown(changed: Changed, text: str) -> None:
    dataset = changed("CT_small.dcm", PatientAge=text, PatientBirthDate="")
    assert header(dataset).patient_age is None


def test_without_an_age_it_is_the_time_from_birth_to_study(changed: Changed) -> None:
    dates = {"PatientAge": None, "PatientBirthDate": "19590401", "StudyDate": "20040401"}
    assert header(changed("CT_small.dcm", **dates)).patient_age == pytest.approx(45, abs=0.003)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("born", "taken"),
    [("", "20040401"), ("19590401", ""), ("20050101", "20040401"), ("19591301", "20040401")],
)
def test_dates_that_make_no_sense_give_no_age(changed: Changed, born: str, taken: str) -> None:
    dates = {"PatientAge": None, "PatientBirthDate": born, "StudyDate": taken}
    assert header(changed("CT_small.dcm", **dates)).patient_age is None


def test_texts_that_are_compared_are_upper_case_and_stripped(changed: Changed) -> None:
    found = header(
        changed(
            "CT_small.dcm",
            ViewPosition="ap ",
            BurnedInAnnotation="yes",
            PresentationIntentType="For Presentation",
            ImageType="derived\\secondary",
        )
    )
    assert found.view_position == "AP"
    assert found.burned_in_annotation == "YES"
    assert found.presentation_intent_type == "FOR PRESENTATION"
    assert found.image_type == ("DERIVED", "SECONDARY")


def test_what_is_missing_is_empty(changed: Changed) -> None:
    dataset = changed("CT_small.dcm")
    for keyword in ("Modality", "ImageType", "PixelSpacing", "ImagePositionPatient", "PatientAge"):
        delattr(dataset, keyword)
    for keyword in ("PatientBirthDate", "FrameOfReferenceUID"):
        if keyword in dataset:
            delattr(dataset, keyword)
    found = header(dataset)
    assert (found.modality, found.image_type, found.frame_of_reference_uid) == ("", (), "")
    assert (found.pixel_spacing, found.positions, found.patient_age) == (None, (), None)


@pytest.mark.parametrize(
    ("keyword", "expected"),
    [("ImagerPixelSpacing", (0.1, 0.2)), ("NominalScannedPixelSpacing", (0.1, 0.2))],
)
def test_the_spacing_of_a_projection_is_that_of_its_detector(
    changed: Changed, keyword: str, expected: tuple[float, float]
) -> None:
    dataset = changed("CT_small.dcm", PixelSpacing=None, **{keyword: [0.1, 0.2]})
    assert header(dataset).pixel_spacing == expected


@pytest.mark.parametrize("spacing", [[0, 0], [-1, 1], [1], [1, 2, 3]])
def test_a_spacing_that_makes_no_sense_is_unknown(changed: Changed, spacing: Any) -> None:
    assert header(changed("CT_small.dcm", PixelSpacing=spacing)).pixel_spacing is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagePositionPatient", "PatientAge"])
def test_a_value_that_cannot_be_parsed_is_unknown_and_the_image_is_read(
    shipped: Path, tmp_path: Path, keyword: str
) -> None:
    data = bytearray((shipped / "CT_small.dcm").read_bytes())
    tag = pydicom.tag.Tag(keyword)
    at = data.index(tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little"))
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    data[at + 8 : at + 8 + length] = b"?" * length
    path = tmp_path / "odd.dcm"
    path.write_bytes(data)
    scan = read_scan(path)
    fields = {
        "PixelSpacing": scan.header.pixel_spacing,
        "ImagePositionPatient": scan.header.positions or None,
        "PatientAge": scan.header.patient_age,
    }
    assert fields[keyword] is None
    assert next(scan.frames()).values.shape == (128, 128)


def test_each_frame_of_an_enhanced_image_has_its_position(real: Callable[[str], Path]) -> None:
    path = real("6_1.dcm")
    dataset = pydicom.dcmread(path)
    found = read_scan(path).header
    assert len(found.positions) == dataset.NumberOfFrames == 6
    for position, group in zip(
        found.positions, dataset.PerFrameFunctionalGroupsSequence, strict=True
    ):
        assert list(position.origin) == group.PlanePositionSequence[0].ImagePositionPatient
    spacing = dataset.PerFrameFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert list(found.pixel_spacing or ()) == spacing


def test_frames_without_positions_of_their_own_have_none(changed: Changed, cine: Path) -> None:
    assert read_scan(cine).header.positions == ()
    dataset = changed("CT_small.dcm", NumberOfFrames=2)
    assert header_of(dataset, 2).positions == ()


def test_fewer_groups_than_frames_give_no_positions(real: Callable[[str], Path]) -> None:
    dataset = pydicom.dcmread(real("6_1.dcm"), stop_before_pixels=True)
    assert header_of(dataset, 500_000).positions == ()


def test_a_file_and_its_data_set_have_the_same_header(any_dicom_file: Path) -> None:
    try:
        scan = read_scan(any_dicom_file)
        dataset = pydicom.dcmread(any_dicom_file, force=True)
    except Exception:
        pytest.skip("not a readable image")
    if not scan.header.is_dicom:
        pytest.skip("not DICOM")
    if not len(dataset):
        pytest.skip("pydicom makes an empty data set of a file that is cut short")
    assert scan_of(dataset).header == scan.header
    assert scan_of(dataset).frame_count == scan.frame_count
