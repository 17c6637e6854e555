"""What the DICOM objects that medtl writes have in common: patient, study, equipment, a file.

A new object lies in the study of the image that it was made from, in a series of its own, and
describes the same patient in the same words. Texts are written as UTF-8, whatever the source's
character set is, because the labels of a model may be in any script.
"""

import copy
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medtl_runtime import __version__
from medtl_runtime.codes import one_line
from medtl_runtime.errors import ScanUnfit
from medtl_runtime.files import refuse_existing, written_whole
from medtl_runtime.results import Result

NOT_FOR_DIAGNOSIS = "Research use only. Not for diagnosis."

# Type 2 of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): empty where the source
# has none.
_ALWAYS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
# Whose identifiers these are, what the study is, and that it was de-identified.
_IF_PRESENT = (
    "IssuerOfPatientID",
    "IssuerOfAccessionNumberSequence",
    "StudyDescription",
    "PatientAge",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)
# Without these nothing can refer to the image, or lie in its study.
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
# Numbers between dots (PS3.5 9.1). Leading zeros, which it forbids, are found in real studies, and
# another spelling would be another study.
_UID, _MOST_UID = re.compile(r"[0-9]+(\.[0-9]+)+"), 64


def source_of(result: Result, sources: Mapping[str, Dataset]) -> Dataset:
    """Return the header of the image that a result is about.

    Parameters
    ----------
    sources
        Headers by SOP instance UID.

    Raises
    ------
    ScanUnfit
        The image is no DICOM object, the header is not among them, or it lacks an identifier, or
        has one that is no UID.
    """
    uid = result.sop_instance_uid
    if not result.header.is_dicom:
        reason = "a DICOM output can only be written for a DICOM image"
        raise ScanUnfit(result.scan, reason)
    if not uid or uid not in sources:
        raise ScanUnfit(
            result.scan,
            "SOPInstanceUID is missing, or is of another image",
            attribute="SOPInstanceUID",
            found=uid or None,
            expected="the UID of the source image",
        )
    for keyword in _NEEDED:
        _require_uid(sources[uid], keyword, result.scan)
    return sources[uid]


def _require_uid(source: Dataset, keyword: str, scan: str) -> None:
    found = source.get(keyword)
    if not found:
        found, fault = None, "missing"
    elif not isinstance(found, str) or len(found) > _MOST_UID or not _UID.fullmatch(found):
        found, fault = str(found), "no UID"
    else:
        return
    reason = f"{keyword} is {fault}; a DICOM output has no place"
    raise ScanUnfit(scan, reason, attribute=keyword, found=found, expected="a UID")


def object_in_study(source: Dataset, model: Mapping[str, str | None], sop_class: str) -> Dataset:
    """Return a new object in the study of ``source``, without series and content.

    It has the attributes of the patient and the study, of medtl and the model as the equipment
    (PS3.3 C.7.5.1, C.7.5.2), its class, a new SOP Instance UID, and the time.
    """
    new = Dataset()
    new.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _ALWAYS:
        setattr(new, keyword, None)
    copy_attributes((*_ALWAYS, *_IF_PRESENT), source, new)
    new.StudyInstanceUID = source.StudyInstanceUID
    new.SOPClassUID = sop_class
    new.SOPInstanceUID = generate_uid(prefix=None)
    new.Manufacturer = "medtl"
    new.ManufacturerModelName = one_line(str(model["name"])) or "unnamed"
    new.DeviceSerialNumber = serial_number(model)
    new.SoftwareVersions = [f"medtl {__version__}", one_line(f"model {model['version']}")]
    _set_time(new)
    return new


def copy_attributes(keywords: Sequence[str], source: Dataset, new: Dataset) -> None:
    """Copy attributes that have a value, as they are: another spelling is another patient."""
    for keyword in keywords:
        if source.get(keyword) in (None, ""):
            continue
        element = source[keyword]  # decoded here, with the source's own character set
        if dictionary_VR(keyword) == element.VR:  # others are written, and are faults of the source
            new[keyword] = copy.deepcopy(element)


def _set_time(new: Dataset) -> None:
    now = datetime.now()  # local, as the times of the study are
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    new.InstanceCreationDate = new.ContentDate = date
    new.InstanceCreationTime = new.ContentTime = time


def serial_number(model: Mapping[str, str | None]) -> str:
    """Return what tells this model file from all others: its digest, without ``sha256:``."""
    return (model["digest"] or "none").removeprefix("sha256:")


def uid_from(*parts: object) -> str:
    """Return a UID that is the same for the same parts, below 2.25 (PS3.5 B.2)."""
    name = "/".join(["medtl", *map(str, parts)])
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def device_uid(model: Mapping[str, str | None]) -> str:
    """Return the UID of the model as an observer, made of its digest."""
    return uid_from("model", model["digest"] or f"{model['name']} {model['version']}")


def frame_numbers(result: Result, source: Dataset) -> list[int] | None:
    """Return the number of the frame, from 1; None for an image that has only one."""
    return [result.frame + 1] if int(source.get("NumberOfFrames") or 1) > 1 else None


def write_object(new: Dataset, path: Path, *, overwrite: bool) -> Path:
    """Write the object as a DICOM file (PS3.10) in Explicit VR Little Endian.

    Raises
    ------
    OutputExists, OutputNotWritten
        As their names say.
    """
    refuse_existing(path, overwrite=overwrite)
    new.file_meta = FileMetaDataset()
    new.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with written_whole(path) as part:
        new.save_as(part, enforce_file_format=True)
    return path
