"""The summary of the training headers holds what rules are made of, and nothing of a patient."""

import json
from pathlib import Path
from typing import Any

import pydicom
import pytest

from medtl_runtime.intended_use import ATTRIBUTES
from medtl_runtime.reading import read_scan
from medtl_runtime.scan import Header
from medtl_train.data.headers import summarise


def test_codes_are_counted_and_numbers_have_a_range() -> None:
    found = summarise(
        [
            Header(modality="CT", image_type=("ORIGINAL", "PRIMARY"), patient_age=40.0),
            Header(modality="CT", image_type=("ORIGINAL", "ORIGINAL"), pixel_spacing=(0.5, 0.75)),
            Header(modality="PT", rows=512, pixel_spacing=(2.0, 1.0)),
        ]
    )
    assert found["Modality"] == {"missing": 0, "other": 0, "counts": {"CT": 2, "PT": 1}}
    image_types = {"ORIGINAL": 2, "PRIMARY": 1}
    assert found["ImageType"] == {"missing": 1, "other": 0, "counts": image_types}
    assert found["PixelSpacing"] == {"missing": 1, "low": 0.5, "high": 2.0}
    assert found["PatientAge"] == {"missing": 2, "low": 40.0, "high": 40.0}
    assert found["Rows"] == {"missing": 2, "low": 512.0, "high": 512.0}
    assert found["Columns"] == {"missing": 3, "low": None, "high": None}
    assert list(found) == list(ATTRIBUTES)
    assert json.loads(json.dumps(found)) == found


def test_it_agrees_with_the_real_files(pydicom_files: Path) -> None:
    paths = [pydicom_files / name for name in ("CT_small.dcm", "MR_small.dcm")]
    datasets = [pydicom.dcmread(path) for path in paths]
    found = summarise([read_scan(path).header for path in paths])
    assert found["Modality"]["counts"] == {d.Modality: 1 for d in datasets}
    assert set(found["SOPClassUID"]["counts"]) == {d.SOPClassUID for d in datasets}
    spacings = [float(value) for d in datasets for value in d.PixelSpacing]
    assert found["PixelSpacing"] == {"missing": 0, "low": min(spacings), "high": max(spacings)}


@pytest.mark.parametrize(
    "planted", ["Doe^Jane", "doe, jane (1950)", "SMITH JOHN 1950-03", "J" * 17, "JANE\\DOE"]
)
def test_what_was_typed_into_a_code_is_not_kept(planted: str) -> None:
    keywords = ("modality", "body_part_examined", "view_position")
    fields: dict[str, Any] = dict.fromkeys(keywords, planted)
    found = summarise([Header(patient_id=str(number), **fields) for number in range(3)])
    for keyword in ("Modality", "BodyPartExamined", "ViewPosition"):
        assert found[keyword] == {"missing": 0, "other": 3, "counts": {}}


def images(body_part: str, count: int, **fields: Any) -> list[Header]:
    return [Header(body_part_examined=body_part, **fields)] * count


@pytest.mark.parametrize("identified", ["patient_id", "study_instance_uid"])
def test_what_is_typed_at_the_scanner_is_kept_when_several_patients_have_it(
    identified: str,
) -> None:
    def of(number: int) -> dict[str, Any]:
        return {identified: str(number)}

    found = summarise(
        [
            *images("LIVER", 2, **of(1)),
            *images("LIVER", 1, **of(2)),
            *images("SMITH JOHN 1950", 9, **of(3)),
            *images("", 1, **of(4)),
        ]
    )
    assert found["BodyPartExamined"] == {"missing": 1, "other": 9, "counts": {"LIVER": 3}}
    assert "SMITH" not in json.dumps(found)


def test_images_of_nobody_known_count_as_one_patient() -> None:
    assert summarise(images("LIVER", 9))["BodyPartExamined"]["counts"] == {}


def test_uids_of_sop_classes_are_longer_than_codes() -> None:
    uid = "1.2.840.10008.5.1.4.1.1.2"
    assert summarise([Header(sop_class_uid=uid)])["SOPClassUID"]["counts"] == {uid: 1}
    assert summarise([Header(sop_class_uid="SMITH JOHN")])["SOPClassUID"]["counts"] == {}


def test_identifiers_and_great_ages_are_not_kept() -> None:
    header = Header(
        patient_id="4711", sop_instance_uid="1.2.3", study_instance_uid="1.2.4", patient_age=97.0
    )
    text = json.dumps(summarise([header]))
    for secret in ("4711", "1.2.3", "1.2.4", "97"):
        assert secret not in text
    assert summarise([header])["PatientAge"]["high"] == 90.0


def test_numbers_that_are_none_do_not_count() -> None:
    found = summarise([Header(patient_age=float("nan")), Header(patient_age=30.0)])
    assert found["PatientAge"] == {"missing": 1, "low": 30.0, "high": 30.0}
