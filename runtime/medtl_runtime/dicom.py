"""DICOM files and data sets to scans: parse the header, check what it claims, decode later.

Of a file only the attributes that medtl reads are parsed, up to the pixel data, which stay in the
file. What the header claims is held against limits before anything is decoded.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_partial
from pydicom.pixels.utils import as_pixel_options
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from medtl_runtime.errors import ScanError, ScanUnreadable, ScanWithoutPixels
from medtl_runtime.header import KEYWORDS, SEQUENCES, header_of, is_image_storage, transfer_syntax
from medtl_runtime.limits import (
    MOST_INFLATED,
    Budget,
    BudgetedFile,
    File,
    ReadToTheEnd,
    check_bytes,
    check_frame,
    held,
    inflate,
    open_file,
    raise_if_spent,
    read_all,
)
from medtl_runtime.pixels import PixelData, stored_frames
from medtl_runtime.scan import Frame, Scan
from medtl_runtime.sequences import parse_items
from medtl_runtime.transforms import frame_of

_TAGS: list[BaseTag | int] = [Tag(keyword) for keyword in KEYWORDS]
_SEQUENCE_TAGS = {Tag(keyword) for keyword in SEQUENCES}
_PIXEL_TAGS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}

_Opener = Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where pixel data are."""

    open: _Opener
    offset: int
    length: int
    keyword: str
    vr: str | None


def read_dicom(file: File, source: str) -> Scan:
    """Read a DICOM file; the pixels are decoded later, frame by frame.

    Parameters
    ----------
    file
        A path, or the bytes or a stream of a file, of which the scan then holds the bytes.
    source
        The name under which errors and results speak of it.

    Raises
    ------
    ScanUnreadable
        Not DICOM, or cut short.
    ScanWithoutPixels
        DICOM without an image: a structured report, a waveform, a plan.
    ScanTooLarge
        It claims more than is taken in; see `limits`.
    OSError
        The file system's own: no such file, no permission, a failing disk.
    """
    try:
        dataset, place = _parse(held(file, source), source)
    except ScanError:
        raise
    except Exception as cause:  # pydicom lets many kinds through on damaged files
        if isinstance(cause, OSError) and cause.errno is not None:
            raise  # from the file system; pydicom's own OSErrors have no number
        raise_if_spent(cause)
        reason = f"damaged DICOM file ({type(cause).__name__})"
        raise ScanUnreadable(source, reason) from cause
    return _scan(dataset, place, source)


def _parse(file: Path | bytes, source: str) -> tuple[Dataset, _Place | None]:
    with open_file(file, source) as opened:
        budget = Budget(source)
        budgeted = cast(BinaryIO, BudgetedFile(opened, budget))
        stop = _Stop()
        opener: _Opener = partial(open_file, file, source)
        try:
            dataset: Dataset = _parse_any(budgeted, stop, source)
            at = opened.tell()
        except ReadToTheEnd:  # pydicom does so to inflate a deflated data set (PS3.5 A.5)
            opener = _Deflated(file=file, offset=opened.tell(), source=source)
            dataset, at = _parse_deflated(opened, opener, budget, stop)
        _parse_sequences(dataset, budget)
    return dataset, stop.place(opener, at)


class _Stop:
    """Ends pydicom's parsing at the pixel data, and remembers what it saw of them."""

    def __init__(self) -> None:
        self._seen: tuple[int, str | None, int] | None = None

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag not in _PIXEL_TAGS:
            return False
        self._seen = int(tag), vr, length
        return True

    def place(self, opener: _Opener, at: int) -> _Place | None:
        """Return where the pixel data are, of an element that starts at ``at``."""
        if self._seen is None:
            return None
        tag, vr, length = self._seen
        offset = at + (12 if vr in EXPLICIT_VR_LENGTH_32 else 8)
        return _Place(open=opener, offset=offset, length=length, keyword=_PIXEL_TAGS[tag], vr=vr)


def _parse_any(file: BinaryIO, stop: _Stop, source: str) -> FileDataset:
    try:
        return read_partial(file, stop, specific_tags=_TAGS)
    except InvalidDicomError:
        file.seek(0)
    # Without preamble and "DICM" (PS3.10 7.1): older archives hold such files.
    dataset = read_partial(file, stop, specific_tags=_TAGS, force=True)
    if "SOPClassUID" not in dataset and "Rows" not in dataset:
        raise ScanUnreadable(source, "neither DICOM nor PNG, JPEG or NPY")
    return dataset


def _parse_deflated(
    file: BinaryIO, opener: _Opener, budget: Budget, stop: _Stop
) -> tuple[Dataset, int]:
    """Parse the data set that is deflated from where ``file`` stands."""
    end = file.tell()
    file.seek(0)
    meta = read_partial(BytesIO(file.read(end))).file_meta
    with opener() as inflated:
        budgeted = cast(BinaryIO, BudgetedFile(inflated, budget))
        dataset = read_dataset(
            budgeted,
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=stop,
            specific_tags=_TAGS,
        )
        dataset.file_meta = meta
        return dataset, inflated.tell()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Deflated:
    """A data set that is deflated from ``offset`` on (PS3.5 A.5)."""

    file: Path | bytes
    offset: int
    source: str

    def __call__(self) -> BinaryIO:
        """Open the inflated data set."""
        return BytesIO(_inflated(self))


@lru_cache(maxsize=1)
def _inflated(deflated: _Deflated) -> bytes:
    """Return the data set; the last one is kept, because frames are asked for in several calls."""
    with open_file(deflated.file, deflated.source) as opened:
        opened.seek(deflated.offset)
        data = inflate(read_all(opened, deflated.source), MOST_INFLATED, deflated.source)
    check_bytes(len(data), deflated.source, most=MOST_INFLATED)
    return data


def _parse_sequences(dataset: Dataset, budget: Budget) -> None:
    """Parse within the budget what pydicom would parse when it is first looked at."""
    for tag in _SEQUENCE_TAGS.intersection(dataset.keys()):
        raw = dataset.get_item(tag)
        if isinstance(raw, RawDataElement):
            items = parse_items(raw, _TAGS, budget, dataset.original_character_set)
            dataset[tag] = DataElement(tag, "SQ", items)
        for item in dataset[tag].value:
            _parse_sequences(item, budget)


def scan_of(dataset: Dataset, source: str = "dataset") -> Scan:
    """Return the scan that a pydicom data set holds; the data set is not changed.

    Raises
    ------
    ScanWithoutPixels
        There is no pixel data.
    ScanUnreadable
        Rows, Columns or the number of frames make no sense.
    ScanTooLarge
        They claim more than is taken in; see `limits`.
    """
    try:
        place = _place_in(dataset)
    except Exception as cause:
        raise ScanUnreadable(source, f"damaged DICOM header ({type(cause).__name__})") from cause
    return _scan(dataset, place, source)


def _place_in(dataset: Dataset) -> _Place | None:
    for keyword in _PIXEL_TAGS.values():
        if keyword in dataset:
            element = dataset[keyword]
            value, vr = element.value or b"", str(element.VR)
            if isinstance(value, BufferedIOBase):  # pydicom's way to leave pixels in a file
                opener: _Opener = partial(nullcontext, cast(BinaryIO, value))
                length = value.seek(0, 2)
            else:
                opener, length = partial(BytesIO, value), len(value)
            return _Place(open=opener, offset=0, length=length, keyword=keyword, vr=vr)
    return None


def _scan(dataset: Dataset, place: _Place | None, source: str) -> Scan:
    try:
        place = _require_pixels(dataset, place, source)
        count = int(dataset.get("NumberOfFrames") or 1)
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        samples = int(dataset.get("SamplesPerPixel") or 1)
        check_frame(rows, columns, source, samples=samples, frames=count)
        header = header_of(dataset, count)
        pixels = _pixel_data(dataset, place, count, source)
        _require_lowest_bits(dataset, pixels)
    except ScanError:
        raise
    except Exception as cause:
        raise ScanUnreadable(source, f"damaged DICOM header ({type(cause).__name__})") from cause
    return Scan(
        source=source,
        frame_count=count,
        header=header,
        decode=lambda indices: _frames(dataset, pixels, indices),
    )


def _require_pixels(dataset: Dataset, place: _Place | None, source: str) -> _Place:
    if place is not None:
        if "Rows" not in dataset or "Columns" not in dataset:
            raise ScanUnreadable(source, "pixel data without Rows and Columns")
        return place
    made_to_hold_one = is_image_storage(str(dataset.get("SOPClassUID") or ""))
    if made_to_hold_one or ("Rows" in dataset and "Columns" in dataset):
        raise ScanUnreadable(source, "the pixel data is missing; the file may be cut short")
    kind = str(dataset.get("Modality") or "") or "unknown modality"
    raise ScanWithoutPixels(source, f"DICOM object without an image ({kind})")


def _pixel_data(dataset: Dataset, place: _Place, count: int, source: str) -> PixelData:
    options: dict[str, Any] = as_pixel_options(dataset)
    if "extended_offsets" in options and not all(options["extended_offsets"]):
        del options["extended_offsets"]  # without values, as if it were not there
    options["number_of_frames"] = count
    options["pixel_keyword"] = place.keyword
    if place.vr is not None:
        options["pixel_vr"] = place.vr
    return PixelData(
        source=source,
        transfer_syntax=transfer_syntax(dataset),
        open=place.open,
        offset=place.offset,
        length=place.length,
        options=options,
    )


def _require_lowest_bits(dataset: Dataset, pixels: PixelData) -> None:
    """Raise if values do not lie in the lowest bits of their words (PS3.5 8.1.1).

    ACR-NEMA and early DICOM had them anywhere; decoders take no notice. What a JPEG codestream
    holds are the values themselves.
    """
    high, stored = dataset.get("HighBit"), dataset.get("BitsStored")
    if not (isinstance(high, int) and isinstance(stored, int) and pixels.holds_words):
        return
    if high >= stored > 0:
        raise ScanUnreadable(
            pixels.source,
            f"HighBit is {high} with {stored} BitsStored; expected {stored - 1}",
            attribute="HighBit",
            found=high,
            expected=stored - 1,
        )


def _frames(dataset: Dataset, pixels: PixelData, indices: Sequence[int]) -> Iterator[Frame]:
    stored = stored_frames(pixels, indices)
    for index, (values, photometric) in zip(indices, stored, strict=True):
        try:
            frame = frame_of(dataset, index, values, photometric)
        except ScanError:
            raise
        except Exception as cause:
            reason = f"damaged grey-scale transform ({type(cause).__name__})"
            raise ScanUnreadable(pixels.source, reason) from cause
        if not np.isfinite(frame.levels).all():
            raise ScanUnreadable(pixels.source, "the pixels hold NaN or infinity")
        yield frame


def is_dataset(value: object) -> bool:
    """Whether ``value`` is a pydicom data set."""
    return isinstance(value, Dataset)
