"""Stored values to modality values, and what a window needs to know.

The order is that of PS3.4 N.2 and PS3.3 C.11: padding is found on *stored* values, the modality LUT
or rescale comes next, and VOI and polarity are handed on in the `Frame` for the recipe to apply.
"""

import contextlib

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian

from medtl_runtime.errors import UsageError
from medtl_runtime.header import functional_group, numbers, transfer_syntax
from medtl_runtime.scan import MOST_DISPLAY_BITS, Frame
from medtl_runtime.voi import LookupTable, Voi, Window


def frame_of(dataset: Dataset, index: int, stored: NDArray, photometric: str) -> Frame:
    """Return the frame of stored values.

    Parameters
    ----------
    dataset
        The header.
    index
        Of the frame, from 0.
    stored
        H x W, or H x W x 3 for colour.
    photometric
        The photometric interpretation that they are in.

    Raises
    ------
    Exception
        What damaged attributes lead to.
    """
    if photometric == "PALETTE COLOR":
        return _colour(_palette_colours(stored, dataset))
    if stored.ndim == 3:
        return _colour(stored, bits=int(dataset.BitsStored))
    transform = functional_group(dataset, index, "PixelValueTransformationSequence")
    different, places = _different(stored)
    levels, value_range = _modality_values(different, dataset, transform)
    signed = _is_signed(dataset) or (value_range is not None and value_range[0] < 0)
    return Frame(
        levels=levels,
        quantity="modality",
        index=places,
        padded=_padding(different, dataset),
        value_range=value_range,
        voi=_voi(dataset, functional_group(dataset, index, "FrameVOILUTSequence"), signed=signed),
        # Two words for one thing: where both are there, MONOCHROME1 has INVERSE and MONOCHROME2 has
        # IDENTITY (PS3.3 C.8.11.3.1.2), so that IDENTITY turns nothing back.
        inverted=photometric == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE",
    )


def _different(stored: NDArray) -> tuple[NDArray, NDArray[np.uint16] | None]:
    """Return the values between the lowest and the highest, and each pixel's place among them.

    Where they would be more than half as many as the pixels, return the image itself and None: what
    follows is computed for each value, and the same for an image as for a list of values.
    """
    if stored.dtype.kind not in "ui" or stored.dtype.itemsize > 2:
        return stored, None
    lowest, highest = int(stored.min()), int(stored.max())
    if 2 * (highest - lowest) >= stored.size:
        return stored, None
    different = np.arange(lowest, highest + 1).astype(stored.dtype)
    # Modulo 2**16, as the difference of signed values may need: it is below 2**16.
    return different, stored.astype(np.uint16) - np.uint16(lowest % 2**16)


def _palette_colours(stored: NDArray, dataset: Dataset) -> NDArray:
    """Return RGB from the palette (PS3.3 C.7.6.3.1.5)."""
    rgb = apply_color_lut(stored, dataset)
    # pydicom 3.0 reads OW palettes as little endian, save the segmented ones.
    swapped = transfer_syntax(dataset) == ExplicitVRBigEndian
    if swapped and rgb.dtype.itemsize == 2 and "RedPaletteColorLookupTableData" in dataset:
        return rgb.byteswap()
    return rgb


def _colour(rgb: NDArray, bits: int | None = None) -> Frame:
    highest = float(2 ** (bits or rgb.dtype.itemsize * 8) - 1)
    return Frame(levels=rgb.astype(np.float32), quantity="display", value_range=(0.0, highest))


def _is_signed(dataset: Dataset) -> bool:
    return bool(dataset.get("PixelRepresentation"))


def _stored_range(dataset: Dataset) -> tuple[float, float]:
    bits = int(dataset.BitsStored)
    signed = _is_signed(dataset)
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)


def _modality_values(
    stored: NDArray, dataset: Dataset, transform: Dataset
) -> tuple[NDArray[np.float32], tuple[float, float] | None]:
    """Apply the modality LUT or the rescale (PS3.3 C.11.1), and say what range it can reach."""
    if sequence := dataset.get("ModalityLUTSequence"):
        table = _lookup_table(sequence[0], dataset, signed=_is_signed(dataset))
        index = np.clip(stored.astype(np.int64) - table.first, 0, len(table.table) - 1)
        return table.table[index].astype(np.float32), (0.0, 2.0**table.bits - 1)
    slope = float(transform.get("RescaleSlope") or 1.0)
    intercept = float(transform.get("RescaleIntercept") or 0.0)
    values = stored.astype(np.float64)
    values *= slope  # in place: of the largest frames a copy takes 512 MiB
    values += intercept
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


def _voi(dataset: Dataset, attributes: Dataset, *, signed: bool) -> Voi | None:
    """Return the first VOI LUT, else the first usable window (PS3.3 C.11.2).

    ``signed`` says whether the modality values, which it is for, can be negative.
    """
    if sequence := attributes.get("VOILUTSequence"):
        return _lookup_table(sequence[0], dataset, signed=signed)
    centres = numbers(attributes.get("WindowCenter"))
    widths = numbers(attributes.get("WindowWidth"))
    function = str(attributes.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    for centre, width in zip(centres, widths, strict=False):
        with contextlib.suppress(UsageError):  # a width of 0 is seen in the wild: no window
            return Window(centre=centre, width=width, function=function)
    return None


def _lookup_table(item: Dataset, dataset: Dataset, *, signed: bool) -> LookupTable:
    """Read a Modality or VOI LUT item; LUTData is US values or OW bytes (PS3.3 C.11.1.1).

    ``signed`` says whether the values that are looked up can be negative. The first of them then is
    a signed number, whatever VR pydicom took it for: implicit VR does not tell.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        big = transfer_syntax(dataset) == ExplicitVRBigEndian
        # 8-bit entries may come one to a byte or one to a word.
        packed = bits <= 8 and len(data) < 2 * (entries or 2**16)
        kind = "u1" if packed else (">u2" if big else "<u2")
        data = np.frombuffer(data, dtype=kind)
    table = np.asarray(data, dtype=np.uint16)[: entries or 2**16]
    if len(table) < (entries or 2**16):
        raise ValueError("LUTData is cut short")
    if signed and item["LUTDescriptor"].VR == "US" and first >= 2**15:
        first -= 2**16
    return LookupTable(first=first, table=table, bits=bits)
