"""Phantom studies as DICOM: CT Image Storage (PS3.3 A.3), one file per image."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from medtl_runtime.errors import MedtlError, OutputExists, OutputNotWritten
from medtl_train.phantoms.drawing import Array, Canvas
from medtl_train.phantoms.lesions import draw_lesions
from medtl_train.phantoms.organs import ORGANS
from medtl_train.phantoms.rendering import render_image
from medtl_train.phantoms.scanners import Scanner
from medtl_train.phantoms.studies import LABELS, Study, plan_studies, stream


def write_studies(
    out: Path,
    *,
    organ: str,
    patients: int,
    images: int,
    size: int = 128,
    seed: int = 0,
    overwrite: bool = False,
) -> list[Path]:
    """Write studies as ``out/healthy/*.dcm`` and ``out/lesion/*.dcm``: the folder is the label.

    Half of the patients have one or two lesions, and all images of such a patient show them. The
    same arguments write the same bytes (on one machine, with the same numpy and scipy).
    `overwrite` replaces the phantoms that are already in `out` and touches nothing else there.

    Raises
    ------
    UsageError
        An argument is out of range; the message names it.
    OutputExists
        `out` is not empty and `overwrite` is false.
    OutputNotWritten
        The disk is full, `out` is a file or not writable.
    """
    studies = plan_studies(organ, patients=patients, images=images, size=size, seed=seed)
    try:
        _clear(out, overwrite=overwrite)
        for label in LABELS:
            (out / label).mkdir(parents=True, exist_ok=True)
        return [path for study in studies for path in _write(study, out)]
    except MedtlError:
        raise
    except OSError as cause:
        raise OutputNotWritten(out, cause) from cause


def _clear(out: Path, *, overwrite: bool) -> None:
    """Remove earlier phantoms from a folder, and nothing else."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise OutputExists(out)
    phantom = re.compile(rf"({'|'.join(ORGANS)})-\d{{4,}}-\d{{2,}}\.dcm")
    for path in [path for label in LABELS for path in (out / label).glob("*.dcm")]:
        if phantom.fullmatch(path.name):
            path.unlink()


def _write(study: Study, out: Path) -> Iterator[Path]:
    """Write the images of one study, and yield each file that is there."""
    lesions = draw_lesions(study)
    for image in range(study.images):
        path = out / study.label / f"{study.organ}-{study.patient:04d}-{image + 1:02d}.dcm"
        dataset = to_dataset(render_image(study, lesions, image), study, image)
        dataset.save_as(path, enforce_file_format=True)
        yield path


def to_dataset(hu: Array, study: Study, image: int) -> Dataset:
    """Wrap an image of a study, counted from 0, as CT Image Storage (PS3.3 A.3).

    `hu` is [study.size, study.size], in HU. The data set is ready for ``save_as``.
    """
    header = stream(study.seed, study.organ, "header", study.pair)
    field_of_view_mm = int(header.choice(study.scanner.fields_of_view_mm))
    attributes = {
        **_general(study, image),
        **_patient(study, header),
        **_study_and_series(study),
        **_ct_image(study, image, field_of_view_mm),
        **_windows(study),
        **_pixels(hu, study.scanner),
    }
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = _uid("implementation")
    ds.file_meta.ImplementationVersionName = "MEDTL_PHANTOM"
    return ds


def _general(study: Study, image: int) -> dict[str, Any]:
    """SOP common and general image."""
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": _study_uid("instance", study, image),
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "InstanceNumber": image + 1,
        "AcquisitionNumber": 1,
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
    }


def _patient(study: Study, header: np.random.Generator) -> dict[str, Any]:
    """Patient and patient study."""
    return {
        "PatientName": f"Phantom^{study.organ.title()} {study.patient:04d}",
        "PatientID": f"PHANTOM-{study.organ.upper()}-{study.seed}-{study.patient:04d}",
        "PatientBirthDate": "",
        "PatientSex": "FM"[header.integers(2)],
        "PatientAge": f"{header.integers(30, 86):03d}Y",
        "QualityControlSubject": "YES",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "Synthetic phantom, no person was scanned",
    }


def _study_and_series(study: Study) -> dict[str, Any]:
    """Study, series, frame of reference and equipment."""
    body_part, scanner = ORGANS[study.organ].body_part, study.scanner
    return {
        **dict.fromkeys(("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"), "20000101"),
        **dict.fromkeys(("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"), "120000"),
        "StudyInstanceUID": _study_uid("study", study),
        "StudyID": f"{study.patient:04d}",
        "StudyDescription": f"Phantom CT {body_part.lower()}",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Modality": "CT",
        "SeriesInstanceUID": _study_uid("series", study),
        "SeriesNumber": 1,
        "BodyPartExamined": body_part,
        "PatientPosition": "HFS",
        "FrameOfReferenceUID": _study_uid("frame of reference", study),
        "PositionReferenceIndicator": "",
        "Manufacturer": scanner.manufacturer,
        "ManufacturerModelName": scanner.model,
    }


def _ct_image(study: Study, image: int, field_of_view_mm: int) -> dict[str, Any]:
    """Image plane and CT image."""
    scanner = study.scanner
    spacing = round(field_of_view_mm / study.size, 6)
    corner, level = round(spacing * (1 - study.size) / 2, 4), scanner.slice_thickness_mm * image
    return {
        "PixelSpacing": [spacing, spacing],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [corner, corner, level],
        "SliceThickness": scanner.slice_thickness_mm,
        "KVP": scanner.kvp,
        "ConvolutionKernel": scanner.kernel,
        "ReconstructionDiameter": field_of_view_mm,
        "RescaleIntercept": scanner.intercept,
        "RescaleSlope": 1,
        "RescaleType": "HU",
    }


def _windows(study: Study) -> dict[str, Any]:
    """VOI LUT."""
    centres, widths, explanations = zip(*study.scanner.windows[study.organ], strict=True)
    return {
        "WindowCenter": list(centres),
        "WindowWidth": list(widths),
        **({"WindowCenterWidthExplanation": list(explanations)} if all(explanations) else {}),
    }


def _pixels(hu: Array, scanner: Scanner) -> dict[str, Any]:
    """Image pixel."""
    rows, columns = hu.shape
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": 16,
        "BitsStored": scanner.bits_stored,
        "HighBit": scanner.bits_stored - 1,
        "PixelRepresentation": int(scanner.signed),
        **({"PixelPaddingValue": scanner.padding} if scanner.padding is not None else {}),
        "PixelData": _stored_values(hu, scanner).tobytes(),
    }


def _stored_values(hu: Array, scanner: Scanner) -> NDArray[np.int16] | NDArray[np.uint16]:
    lowest = -(2**15) if scanner.signed else 0
    stored = np.rint(np.maximum(hu, -1024)) - scanner.intercept
    stored = stored.clip(lowest, lowest + 2**scanner.bits_stored - 1)
    if scanner.padding is not None:
        canvas = Canvas(len(hu))
        stored[canvas.x**2 + canvas.y**2 > 0.25] = scanner.padding
    return stored.astype("<i2" if scanner.signed else "<u2")


def _study_uid(purpose: str, study: Study, *key: int) -> UID:
    return _uid(purpose, study.organ, study.seed, study.patient, study.images, study.size, *key)


def _uid(*key: str | int) -> UID:
    """Derive a UID from a name-based UUID (PS3.5 B.2): the same key, the same UID."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, repr(('phantom', *key))).int}")
