"""What medtl uses of a DICOM header.

In enhanced multi-frame objects the attributes of a frame live in functional groups (PS3.3
C.7.6.16); they are looked up per frame, then shared, then at the top level.
"""

import re
from datetime import date
from math import isfinite

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medtl_runtime.scan import Header, Position

SEQUENCES = (
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "ModalityLUTSequence",
    "VOILUTSequence",
)
"""The sequences that medtl looks into."""

KEYWORDS = (
    *SEQUENCES,
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyDate",
    "Modality",
    "PresentationIntentType",
    "PatientID",
    "PatientBirthDate",
    "PatientAge",
    "BodyPartExamined",
    "ViewPosition",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "FloatPixelPaddingValue",
    "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue",
    "DoubleFloatPixelPaddingRangeLimit",
    "BurnedInAnnotation",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "LUTDescriptor",
    "LUTData",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "AlphaPaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "AlphaPaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "SegmentedAlphaPaletteColorLookupTableData",
    "PresentationLUTShape",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
"""The attributes that medtl reads; all others are skipped, whatever they hold."""

_AGE = re.compile(r"(\d{1,3})([DWMY])")
_PER_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}


def header_of(dataset: Dataset, frames: int) -> Header:
    """Return the header of a data set of ``frames`` frames; nothing is raised for odd values."""
    spacings, positions = _geometry(dataset, frames)
    return Header(
        modality=_text(dataset, "Modality").upper(),
        patient_id=_text(dataset, "PatientID"),
        patient_age=_patient_age(dataset),
        study_instance_uid=_text(dataset, "StudyInstanceUID"),
        series_instance_uid=_text(dataset, "SeriesInstanceUID"),
        sop_class_uid=_text(dataset, "SOPClassUID"),
        sop_instance_uid=_text(dataset, "SOPInstanceUID"),
        frame_of_reference_uid=_text(dataset, "FrameOfReferenceUID"),
        transfer_syntax_uid=transfer_syntax(dataset),
        photometric_interpretation=_text(dataset, "PhotometricInterpretation"),
        body_part_examined=_text(dataset, "BodyPartExamined").upper(),
        view_position=_text(dataset, "ViewPosition").upper(),
        presentation_intent_type=_text(dataset, "PresentationIntentType").upper(),
        burned_in_annotation=_text(dataset, "BurnedInAnnotation").upper(),
        image_type=tuple(text.upper() for text in _texts(dataset, "ImageType")),
        rows=_count(dataset, "Rows"),
        columns=_count(dataset, "Columns"),
        pixel_spacing=spacings[0] if len(spacings) == 1 else None,
        frame_spacings=spacings if len(spacings) > 1 else (),
        positions=positions,
    )


def transfer_syntax(dataset: Dataset) -> str:
    """Return the transfer syntax; for a file without meta header, the one it was parsed with."""
    meta = getattr(dataset, "file_meta", None)
    if meta is not None and meta.get("TransferSyntaxUID"):
        return str(meta.TransferSyntaxUID)
    implicit, little = dataset.original_encoding
    if implicit or implicit is None:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset:
    """Return the macro's item for a frame: per-frame, shared, else the data set itself."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame and index < len(per_frame) and per_frame[index].get(keyword):
        return per_frame[index][keyword][0]
    shared = dataset.get("SharedFunctionalGroupsSequence")
    if shared and shared[0].get(keyword):
        return shared[0][keyword][0]
    return dataset


def numbers(value: object) -> list[float]:
    """Return the numbers of an attribute's value, none if it is missing or empty."""
    if value is None or value == "":
        return []
    if isinstance(value, list | tuple | MultiValue):
        return [float(one) for one in value]
    return [float(str(value))]


def is_image_storage(sop_class: str) -> bool:
    """Whether objects of this SOP class are made to hold an image."""
    return "Image Storage" in UID(sop_class).name


def _get(dataset: Dataset, keyword: str) -> object:
    try:
        return dataset.get(keyword)
    except Exception:  # a value that does not fit its VR is as good as none
        return None


def _text(dataset: Dataset, keyword: str) -> str:
    value = _get(dataset, keyword)
    return "" if value is None else str(value).strip()


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    value = _get(dataset, keyword)
    if isinstance(value, list | tuple | MultiValue):
        return [str(one).strip() for one in value]
    return [str(value).strip()] if value else []


def _count(dataset: Dataset, keyword: str) -> int | None:
    value = _get(dataset, keyword)
    return value if isinstance(value, int) else None


def _floats(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers, or None."""
    try:
        found = tuple(numbers(dataset.get(keyword)))
    except Exception:
        return None
    return found if len(found) == count and all(map(isfinite, found)) else None


def _patient_age(dataset: Dataset) -> float | None:
    """Return the age in years: PatientAge (AS, PS3.5 6.2), else from birth to study."""
    if match := _AGE.fullmatch(_text(dataset, "PatientAge").upper()):
        return int(match[1]) / _PER_YEAR[match[2]]
    born, taken = _date(dataset, "PatientBirthDate"), _date(dataset, "StudyDate")
    if born is None or taken is None or taken < born:
        return None
    return (taken - born).days / _PER_YEAR["D"]


def _date(dataset: Dataset, keyword: str) -> date | None:
    text = _text(dataset, keyword).replace(".", "")  # ACR-NEMA wrote 1998.07.30
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8])) if len(text) == 8 else None
    except ValueError:
        return None


def _geometry(
    dataset: Dataset, frames: int
) -> tuple[tuple[tuple[float, float] | None, ...], tuple[Position, ...]]:
    """Return the different pixel spacings of the frames, and where each of them lies."""
    spacings: dict[tuple[float, float] | None, None] = {}  # for its order
    positions: list[Position | None] = []
    try:
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
        # With fewer groups than the frames that are claimed, some frames lie nowhere.
        for index in range(frames if len(per_frame) == frames else 1):
            measures = functional_group(dataset, index, "PixelMeasuresSequence")
            spacings[_spacing(dataset, measures)] = None
            positions.append(_position(dataset, index))
    except Exception:  # damaged functional groups; those of the transforms are looked at later
        return (), ()
    known = tuple(position for position in positions if position is not None)
    return tuple(spacings), known if len(known) == frames else ()


def _spacing(dataset: Dataset, measures: Dataset) -> tuple[float, float] | None:
    for place, keyword in (
        (measures, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
        (dataset, "NominalScannedPixelSpacing"),
    ):
        found = _floats(place, keyword, 2)
        if found is not None and min(found) > 0:
            return found[0], found[1]
    return None


def _position(dataset: Dataset, index: int) -> Position | None:
    place = functional_group(dataset, index, "PlanePositionSequence")
    origin = _floats(place, "ImagePositionPatient", 3)
    plane = functional_group(dataset, index, "PlaneOrientationSequence")
    orientation = _floats(plane, "ImageOrientationPatient", 6)
    if origin is None or orientation is None:
        return None
    x, y, z = origin
    a, b, c, d, e, f = orientation
    return Position(origin=(x, y, z), orientation=(a, b, c, d, e, f))
