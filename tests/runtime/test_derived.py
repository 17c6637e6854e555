"""What the DICOM objects that medtl writes have in common."""

from collections.abc import Callable
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, SecondaryCaptureImageStorage

from medtl_runtime.derived import device_uid, object_in_study, uid_from, write_object
from medtl_runtime.errors import OutputExists

CHARSETS = Path(pydicom.data.__file__).parent / "charset_files"
MODEL = {"name": "liver", "version": "3", "precision": "fp32", "digest": "sha256:ab", "site": None}

Changed = Callable[..., Dataset]


def saved(new: Dataset, folder: Path) -> Dataset:
    return pydicom.dcmread(write_object(new, folder / "new.dcm", overwrite=False))


def test_patient_and_study_are_the_sources_and_the_equipment_is_the_model(
    shipped: Path, tmp_path: Path
) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    new = saved(object_in_study(source, MODEL, SecondaryCaptureImageStorage), tmp_path)
    for keyword in ("PatientName", "PatientID", "PatientSex", "StudyInstanceUID", "StudyDate"):
        assert new[keyword].value == source[keyword].value
        assert new[keyword].value
    assert new.PatientAge == source.PatientAge
    assert new.Manufacturer == "medtl"
    assert new.ManufacturerModelName == "liver"
    assert new.DeviceSerialNumber == "ab"
    assert new.SoftwareVersions[1] == "model 3"
    assert new.SOPInstanceUID != source.SOPInstanceUID
    assert new.SOPInstanceUID.is_valid
    assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID


def test_what_a_source_does_not_say_is_empty_and_not_made_up(
    changed: Changed, tmp_path: Path
) -> None:
    source = changed("CT_small.dcm", PatientName=None, PatientSex=None, PatientAge="", StudyID=None)
    new = saved(object_in_study(source, MODEL, SecondaryCaptureImageStorage), tmp_path)
    assert [new[keyword].value for keyword in ("PatientSex", "StudyID")] == ["", ""]
    assert str(new.PatientName) == ""
    assert "PatientAge" not in new


@pytest.mark.parametrize("path", sorted(CHARSETS.glob("chr[!S]*.dcm")), ids=lambda path: path.name)
def test_a_patients_name_in_any_script_stays_the_same(path: Path, tmp_path: Path) -> None:
    source = pydicom.dcmread(path)
    source.StudyInstanceUID = "1.2.3"
    new = saved(object_in_study(source, MODEL, SecondaryCaptureImageStorage), tmp_path)
    assert new.SpecificCharacterSet == "ISO_IR 192"
    assert str(new.PatientName) == str(source.PatientName)
    assert str(new.PatientName)


def test_the_source_is_not_changed(changed: Changed) -> None:
    source = changed("CT_small.dcm", PatientName=None)
    before = source.to_json()
    new = object_in_study(source, MODEL, SecondaryCaptureImageStorage)
    new.PatientID = "another"
    assert source.to_json() == before


def test_an_attribute_of_a_wrong_representation_is_left_out(changed: Changed) -> None:
    source = changed("CT_small.dcm", PatientAge=None)
    source.add_new("PatientAge", "OB", b"045Y")
    new = object_in_study(source, MODEL, SecondaryCaptureImageStorage)
    assert "PatientAge" not in new


def test_a_models_name_that_no_attribute_can_hold_is_made_to_fit(changed: Changed) -> None:
    odd = MODEL | {"name": "a\\b\n" + "c" * 100, "digest": None}
    new = object_in_study(changed("CT_small.dcm"), odd, SecondaryCaptureImageStorage)
    assert new.ManufacturerModelName == "a?b?" + "c" * 59 + "…"
    assert new.DeviceSerialNumber == "none"


def test_uids_of_the_same_parts_are_the_same_and_of_others_are_not() -> None:
    uids = {uid_from("a", "b"), uid_from("a", "b"), uid_from("a", "c"), device_uid(MODEL)}
    uids.add(device_uid(MODEL | {"digest": "sha256:cd"}))
    assert len(uids) == 4
    assert all(UID(uid).is_valid and len(uid) <= 64 for uid in uids)


def test_an_object_is_not_overwritten_unless_it_may_be(changed: Changed, tmp_path: Path) -> None:
    path = tmp_path / "new.dcm"
    path.touch()
    new = object_in_study(changed("CT_small.dcm"), MODEL, SecondaryCaptureImageStorage)
    with pytest.raises(OutputExists):
        write_object(new, path, overwrite=False)
    assert path.read_bytes() == b""
    write_object(new, path, overwrite=True)
    assert pydicom.dcmread(path).SOPInstanceUID == new.SOPInstanceUID
    assert [one.name for one in tmp_path.iterdir()] == ["new.dcm"]
