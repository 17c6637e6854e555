"""DICOM to frames: decode, mask the padding, apply the modality LUT, read the VOI.

The order is that of PS3.4 N.2 and PS3.3 C.11: padding is found on *stored* values, the modality LUT
or rescale comes next, and VOI and polarity are handed on in the `Frame` for the recipe to apply.
In enhanced multi-frame objects these attributes live in functional groups (PS3.3 C.7.6.16); they
are looked up per frame, then shared, then at the top level.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medtl_runtime.errors import (
    DecoderMissing,
    ScanError,
    ScanUnreadable,
    ScanWithoutPixels,
    UsageError,
)
from medtl_runtime.scan import MOST_DISPLAY_BITS, Frame, Header, Scan
from medtl_runtime.voi import LookupTable, Voi, Window

_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

# The first that is installed decodes, and the others are not tried: on some damaged JPEG streams
# gdcm aborts the whole process. It is left to JPEG lossless, which no other package here decodes.
_PLUG_INS = ("pyjpegls", "pylibjpeg", "pillow", "gdcm", "pydicom")


def read_dicom(file: str | Path | BinaryIO, source: str) -> Scan:
    """Read a DICOM file; the pixels are decoded later, frame by frame.

    Parameters
    ----------
    file
        A path or a binary file object.
    source
        The name under which errors and results speak of it.

    Raises
    ------
    ScanUnreadable
        Not DICOM, or cut short.
    ScanWithoutPixels
        DICOM without an image: a structured report, a waveform, a plan.
    OSError
        The file system's own: no such file, no permission, a failing disk.
    """
    try:
        dataset = _parse(file, source)
    except ScanError:
        raise
    except Exception as cause:  # pydicom lets many kinds through on damaged files
        if isinstance(cause, OSError) and cause.errno is not None:
            raise  # from the file system; pydicom's own OSErrors have no number
        reason = f"damaged DICOM file ({type(cause).__name__})"
        raise ScanUnreadable(source, reason) from cause
    if not len(dataset):  # what pydicom makes of pixel data that ends too early
        raise ScanUnreadable(source, "the DICOM file is cut short")
    return scan_of(dataset, source)


def _parse(file: str | Path | BinaryIO, source: str) -> Dataset:
    try:
        return pydicom.dcmread(file)
    except InvalidDicomError:
        if hasattr(file, "seek"):
            cast(BinaryIO, file).seek(0)
    # Without preamble and "DICM" (PS3.10 7.1): older archives hold such files.
    dataset = pydicom.dcmread(file, force=True)
    if "SOPClassUID" not in dataset and "Rows" not in dataset:
        raise ScanUnreadable(source, "neither DICOM nor PNG, JPEG or NPY")
    return dataset


def scan_of(dataset: Dataset, source: str = "dataset") -> Scan:
    """Return the scan that a pydicom data set holds; the data set is not changed.

    Raises
    ------
    ScanWithoutPixels
        There is no pixel data.
    ScanUnreadable
        Rows, Columns or the number of frames make no sense.
    """
    try:
        header = _header(dataset)
        _require_pixels(dataset, source)
        count = int(dataset.get("NumberOfFrames") or 1)
        size = int(dataset.Rows), int(dataset.Columns)
    except ScanError:
        raise
    except Exception as cause:
        raise ScanUnreadable(source, f"damaged DICOM header ({type(cause).__name__})") from cause
    if count < 1 or min(size) < 1:
        raise ScanUnreadable(source, f"{size[0]} x {size[1]} pixels in {count} frames")
    return Scan(
        source=source,
        frame_count=count,
        header=header,
        decode=lambda: _frames(dataset, source, count),
    )


def _header(dataset: Dataset) -> Header:
    def text(keyword: str) -> str:
        return str(dataset.get(keyword) or "").strip()

    return Header(
        modality=text("Modality").upper(),
        patient_id=text("PatientID"),
        sop_class_uid=text("SOPClassUID"),
        sop_instance_uid=text("SOPInstanceUID"),
        transfer_syntax_uid=_transfer_syntax(dataset),
        photometric_interpretation=text("PhotometricInterpretation"),
        body_part_examined=text("BodyPartExamined").upper(),
    )


def _require_pixels(dataset: Dataset, source: str) -> None:
    if any(keyword in dataset for keyword in _PIXEL_KEYWORDS):
        if "Rows" not in dataset or "Columns" not in dataset:
            raise ScanUnreadable(source, "pixel data without Rows and Columns")
        return
    made_to_hold_one = "Image Storage" in UID(str(dataset.get("SOPClassUID") or "")).name
    if made_to_hold_one or ("Rows" in dataset and "Columns" in dataset):
        raise ScanUnreadable(source, "the pixel data is missing; the file may be cut short")
    kind = str(dataset.get("Modality") or "") or "unknown modality"
    raise ScanWithoutPixels(source, f"DICOM object without an image ({kind})")


def _transfer_syntax(dataset: Dataset) -> str:
    """Return the transfer syntax; for a file without meta header, the one it was parsed with."""
    meta = getattr(dataset, "file_meta", None)
    if meta is not None and meta.get("TransferSyntaxUID"):
        return str(meta.TransferSyntaxUID)
    implicit, little = dataset.original_encoding
    if implicit or implicit is None:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def _frames(dataset: Dataset, source: str, count: int) -> Iterator[Frame]:
    transfer_syntax = _transfer_syntax(dataset)
    try:
        decoder = get_decoder(transfer_syntax)
    except NotImplementedError as cause:
        raise ScanUnreadable(source, f"unknown transfer syntax {transfer_syntax}") from cause
    if not decoder.is_available:
        raise DecoderMissing(source, _install_hint(decoder))
    decoded = _decoded(decoder, dataset, source, count)
    for index, (stored, found) in enumerate(decoded):
        try:
            frame = _frame(dataset, index, stored, str(found["photometric_interpretation"]))
        except ScanError:
            raise
        except Exception as cause:
            reason = f"damaged grey-scale transform ({type(cause).__name__})"
            raise ScanUnreadable(source, reason) from cause
        if not np.isfinite(frame.values).all():
            raise ScanUnreadable(source, "the pixels hold NaN or infinity")
        yield frame


def _decoded(
    decoder: Decoder, dataset: Dataset, source: str, count: int
) -> Iterator[tuple[NDArray, dict]]:
    """Yield stored values and image pixel attributes, with every failure named."""
    plug_in = next((p for p in _PLUG_INS if p in decoder.available_plugins), "")
    # Without explicit indices pydicom 3.0 corrects signs in place in read-only memory, and fails.
    frames = decoder.iter_array(dataset, raw=False, indices=range(count), decoding_plugin=plug_in)
    while True:
        try:
            yield next(frames)
        except StopIteration:
            return
        except BaseException as cause:
            # A decoder in Rust panics on damaged data, and its exception is no `Exception`.
            if not isinstance(cause, Exception) and type(cause).__name__ != "PanicException":
                raise
            # pydicom's words for: installed, but not for this bit depth.
            if "does not support" in str(cause):
                raise DecoderMissing(source, _install_hint(decoder)) from cause
            reason = f"the pixel data cannot be decoded ({decoder.UID.name})"
            raise ScanUnreadable(source, reason) from cause


def _install_hint(decoder: Decoder) -> str:
    needs = sorted({name for names in decoder.missing_dependencies for name in _packages(names)})
    if decoder.is_available:
        found = f"no installed decoder takes {decoder.UID.name} of this bit depth"
        return f"{found}; missing are: {', '.join(needs)}"
    return (
        f"no decoder is installed for {decoder.UID.name}: "
        f'pip install "medtl[codecs]" (or one of: {", ".join(needs)})'
    )


def _packages(hint: str) -> list[str]:
    """Return the packages that pydicom's text for one plug-in names, without numpy."""
    _, _, needs = hint.partition("requires")
    names = needs.replace(" and ", ",").split(",")
    return [f"python-{n}" if n == "gdcm" else n for n in map(_bare, names) if n and n != "numpy"]


def _bare(requirement: str) -> str:
    return requirement.split(">", maxsplit=1)[0].split("=", maxsplit=1)[0].strip()


def _frame(dataset: Dataset, index: int, stored: NDArray, photometric: str) -> Frame:
    if photometric == "PALETTE COLOR":
        return _colour(_palette_colours(stored, dataset))
    if stored.ndim == 3:
        return _colour(stored, bits=int(dataset.BitsStored))
    transform = _functional_group(dataset, index, "PixelValueTransformationSequence")
    values, value_range = _modality_values(stored, dataset, transform)
    inverted = photometric == "MONOCHROME1"
    if dataset.get("PresentationLUTShape") in ("INVERSE", "IDENTITY"):
        # The shape, where present, is the last word on polarity (PS3.3 C.11.6, and C.8.11.3.1.2
        # requires INVERSE with MONOCHROME1 and IDENTITY with MONOCHROME2).
        inverted = dataset.PresentationLUTShape == "INVERSE"
    return Frame(
        values=values,
        quantity="modality",
        value_range=value_range,
        padding=_padding(stored, dataset),
        voi=_voi(dataset, _functional_group(dataset, index, "FrameVOILUTSequence")),
        inverted=inverted,
    )


def _palette_colours(stored: NDArray, dataset: Dataset) -> NDArray:
    """Return RGB from the palette (PS3.3 C.7.6.3.1.5)."""
    rgb = apply_color_lut(stored, dataset)
    # pydicom 3.0 reads OW palettes as little endian, save the segmented ones.
    swapped = _transfer_syntax(dataset) == ExplicitVRBigEndian
    if swapped and rgb.dtype.itemsize == 2 and "RedPaletteColorLookupTableData" in dataset:
        return rgb.byteswap()
    return rgb


def _colour(rgb: NDArray, bits: int | None = None) -> Frame:
    highest = float(2 ** (bits or rgb.dtype.itemsize * 8) - 1)
    return Frame(values=rgb.astype(np.float32), quantity="display", value_range=(0.0, highest))


def _functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset:
    """Return the macro's item for a frame: per-frame, shared, else the data set itself."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame and index < len(per_frame) and per_frame[index].get(keyword):
        return per_frame[index][keyword][0]
    shared = dataset.get("SharedFunctionalGroupsSequence")
    if shared and shared[0].get(keyword):
        return shared[0][keyword][0]
    return dataset


def _stored_range(dataset: Dataset) -> tuple[float, float]:
    bits = int(dataset.BitsStored)
    signed = bool(dataset.get("PixelRepresentation"))
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)


def _modality_values(
    stored: NDArray, dataset: Dataset, transform: Dataset
) -> tuple[NDArray[np.float32], tuple[float, float] | None]:
    """Apply the modality LUT or the rescale (PS3.3 C.11.1), and say what range it can reach."""
    if sequence := dataset.get("ModalityLUTSequence"):
        table = _lookup_table(sequence[0], dataset)
        index = np.clip(stored.astype(np.int64) - table.first, 0, len(table.table) - 1)
        return table.table[index].astype(np.float32), (0.0, 2.0**table.bits - 1)
    slope = float(transform.get("RescaleSlope") or 1.0)
    intercept = float(transform.get("RescaleIntercept") or 0.0)
    values = stored.astype(np.float64) * slope + intercept
    if stored.dtype.kind == "f" or int(dataset.BitsStored) > MOST_DISPLAY_BITS:
        return values.astype(np.float32), None
    low, high = sorted(bound * slope + intercept for bound in _stored_range(dataset))
    return values.astype(np.float32), (low, high)


def _padding(stored: NDArray, dataset: Dataset) -> NDArray[np.bool_] | None:
    """Return where there is no image: PixelPaddingValue to PixelPaddingRangeLimit, inclusive."""
    if stored.dtype.kind == "f":
        return _float_padding(stored, dataset)
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    limit = limit if isinstance(limit, int) else value
    # Scanners write the value with the wrong signedness; as a bit pattern it is right.
    low, high = sorted(int(_as_stored(bound, stored.dtype)) for bound in (value, limit))
    return (stored >= low) & (stored <= high)


def _float_padding(stored: NDArray, dataset: Dataset) -> NDArray[np.bool_] | None:
    """Return where there is no image, of floating-point pixels (PS3.3 C.7.6.24 and C.7.6.25)."""
    kind = "Float" if stored.dtype.itemsize == 4 else "DoubleFloat"
    value = dataset.get(f"{kind}PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get(f"{kind}PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= stored.dtype.type(low)) & (stored <= stored.dtype.type(high))


def _as_stored(value: int, dtype: np.dtype) -> int:
    bits = dtype.itemsize * 8
    wrapped = value % 2**bits
    return wrapped - 2**bits if dtype.kind == "i" and wrapped >= 2 ** (bits - 1) else wrapped


def _voi(dataset: Dataset, attributes: Dataset) -> Voi | None:
    """Return the first VOI LUT, else the first usable window (PS3.3 C.11.2)."""
    if sequence := attributes.get("VOILUTSequence"):
        return _lookup_table(sequence[0], dataset)
    centres = _numbers(attributes.get("WindowCenter"))
    widths = _numbers(attributes.get("WindowWidth"))
    function = str(attributes.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    for centre, width in zip(centres, widths, strict=False):
        with contextlib.suppress(UsageError):  # a width of 0 is seen in the wild: no window
            return Window(centre=centre, width=width, function=function)
    return None


def _numbers(value: object) -> list[float]:
    if value is None or value == "":
        return []
    if isinstance(value, list | tuple | MultiValue):
        return [float(one) for one in value]
    return [float(str(value))]


def _lookup_table(item: Dataset, dataset: Dataset) -> LookupTable:
    """Read a Modality or VOI LUT item; LUTData is US values or OW bytes (PS3.3 C.11.1.1)."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        big = _transfer_syntax(dataset) == ExplicitVRBigEndian
        # 8-bit entries may come one to a byte or one to a word.
        packed = bits <= 8 and len(data) < 2 * (entries or 2**16)
        kind = "u1" if packed else (">u2" if big else "<u2")
        data = np.frombuffer(data, dtype=kind)
    table = np.asarray(data, dtype=np.uint16)[: entries or 2**16]
    if len(table) < (entries or 2**16):
        raise ValueError("LUTData is cut short")
    if item["LUTDescriptor"].VR == "US" and first >= 2**15 and dataset.get("PixelRepresentation"):
        first -= 2**16
    return LookupTable(first=first, table=table, bits=bits)


def is_dataset(value: object) -> bool:
    """Whether ``value`` is a pydicom data set."""
    return isinstance(value, Dataset | FileDataset)
