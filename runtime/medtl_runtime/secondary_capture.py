"""A heat map as a DICOM Secondary Capture image (PS3.3 A.8.1), for any PACS to show.

The picture is the canonical image, as the network saw it, with the evidence in colour: it is not on
the pixel grid of its source, so it carries no pixel spacing and no position.
"""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from medtl_runtime import __version__
from medtl_runtime.codes import one_line
from medtl_runtime.derived import (
    NOT_FOR_DIAGNOSIS,
    copy_attributes,
    device_uid,
    frame_numbers,
    object_in_study,
    source_of,
    uid_from,
    write_object,
)
from medtl_runtime.heatmap import Evidence, overlay, shown
from medtl_runtime.results import Result

# Series Number is for people to sort by; scanners count from 1, and few come this far.
_SERIES_NUMBER = 9101

_SIDE = ("BodyPartExamined", "Laterality", "ImageLaterality")

# What holds for the source holds for a picture of it: texts and faces that are in the pixels
# (C.7.6.1), what lossy compression took (C.7.6.1.1.5), and which part and side of the body it is.
_INHERITED = (
    "BurnedInAnnotation",
    "RecognizableVisualFeatures",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    *_SIDE,
)


def write_secondary_capture(
    result: Result,
    source: Dataset,
    path: Path,
    *,
    head: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the heat map of a result into its study and return the path.

    The class shown is the finding; where the model abstains, the most probable class. All heat
    maps of one class, head, model and source series share one new series.

    Parameters
    ----------
    result
        Of a DICOM image.
    source
        The header of that image.
    path
        The file to write.
    head
        Whose finding; see `heatmap.shown_head`.

    Raises
    ------
    ScanUnfit
        The image is no DICOM object, or it lacks an identifier that a new object has to refer to.
    OutputExists, OutputNotWritten
        As their names say.
    """
    source = source_of(result, {str(source.get("SOPInstanceUID") or ""): source})
    drawn = shown(result, head)
    new = object_in_study(source, result.model, SecondaryCaptureImageStorage)
    copy_attributes(_INHERITED, source, new)
    if not any(keyword in new for keyword in _SIDE):
        new.Laterality = None  # type 2C (C.7.3.1): empty where nothing says whether there are two
    _describe(new, result, source, drawn)
    new.SourceImageSequence = [_source_image(result, source)]
    _set_pixels(new, result, drawn)
    return write_object(new, path, overwrite=overwrite)


def _describe(new: Dataset, result: Result, source: Dataset, drawn: Evidence) -> None:
    model = result.model
    new.Modality = "OT"
    new.ConversionType = "WSD"  # workstation: the pixels come from an image, not from a camera
    new.ImageType = ["DERIVED", "SECONDARY"]
    of = (source.StudyInstanceUID, source.SeriesInstanceUID, device_uid(model), drawn.label)
    new.SeriesInstanceUID = uid_from("heat map", __version__, *of)
    new.SeriesNumber = _SERIES_NUMBER
    new.SeriesDescription = one_line(f"medtl heat map: {drawn.label}")
    new.InstanceNumber = _instance_number(result, source)
    new.PatientOrientation = None
    new.DerivationDescription = one_line(
        f"Evidence for {drawn.words}, as a class activation map "
        f"(yellow: most), over the image as the network saw it. Model {model['name']} "
        f"{model['version']}, {model['digest'] or 'no digest'}. {NOT_FOR_DIAGNOSIS}",
        1024,
    )
    new.ImageComments = NOT_FOR_DIAGNOSIS


def _instance_number(result: Result, source: Dataset) -> int:
    """Return the frame's number, or the source's own, so that the pictures sort as the images."""
    frames = frame_numbers(result, source)
    if frames:
        return frames[0]
    try:
        return int(source.get("InstanceNumber") or 1)
    except (TypeError, ValueError):
        return 1


def _source_image(result: Result, source: Dataset) -> Dataset:
    """Return the item of the Source Image Sequence (PS3.3 C.7.6.1.1.4)."""
    purpose = Dataset()  # CID 7202
    purpose.CodeValue = "121322"
    purpose.CodingSchemeDesignator = "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if frames := frame_numbers(result, source):
        item.ReferencedFrameNumber = frames
    item.SpatialLocationsPreserved = "NO"
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def _set_pixels(new: Dataset, result: Result, drawn: Evidence) -> None:
    picture = overlay(result.canonical.pixels, drawn.heat)
    rgb = np.asarray(picture)
    new.Rows, new.Columns, new.SamplesPerPixel = rgb.shape
    new.PhotometricInterpretation = "RGB"
    new.PlanarConfiguration = 0
    new.BitsAllocated = new.BitsStored = 8
    new.HighBit = 7
    new.PixelRepresentation = 0
    new.PixelData = rgb.tobytes()  # pydicom pads it to an even length
