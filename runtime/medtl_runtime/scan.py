"""The domain types of reading: a scan is a file, and its frames are images of modality values."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.voi import Voi

MOST_DISPLAY_BITS = 16
"""With more bits a value is a measurement (a dose, a label), and the range says nothing of it."""

Quantity = Literal["modality", "display"]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What medtl uses of a DICOM header; all empty for PNG, JPEG and NPY."""

    modality: str = ""
    patient_id: str = ""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    transfer_syntax_uid: str = ""
    photometric_interpretation: str = ""
    body_part_examined: str = ""

    @property
    def is_dicom(self) -> bool:
        """Whether this is the header of a DICOM object."""
        return bool(self.transfer_syntax_uid)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One image, decoded and taken through the modality LUT, before any window.

    Attributes
    ----------
    values
        float32, H x W for grey, H x W x 3 (RGB) for colour; finite.
    quantity
        ``"modality"``: physical or stored units that still need a window.
        ``"display"``: made for the eye already (PNG, JPEG, colour DICOM); only scaled.
    value_range
        The lowest and highest value that the stored bit depth can express, in the units of
        ``values``; None where that says nothing (floating point, more than 16 bits).
    padding
        bool, H x W: pixels that hold no image (PS3.3 C.7.5.1.1.2); None if there are none.
    voi
        The header's window or VOI LUT, if any.
    inverted
        The lowest value is meant to be shown white (MONOCHROME1, Presentation LUT INVERSE).
    """

    values: NDArray[np.float32]
    quantity: Quantity
    value_range: tuple[float, float] | None = None
    padding: NDArray[np.bool_] | None = None
    voi: Voi | None = None
    inverted: bool = False

    @property
    def is_colour(self) -> bool:
        """Whether the image has three channels."""
        return self.values.ndim == 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A file with one image or several; the pixels are decoded when `frames` is iterated."""

    source: str
    frame_count: int
    decode: Callable[[], Iterator[Frame]] = field(repr=False)
    header: Header = Header()

    def frames(self) -> Iterator[Frame]:
        """Decode the frames one after the other.

        Raises
        ------
        ScanUnreadable, DecoderMissing
            The pixel data is damaged, or no installed package decodes it.
        """
        return self.decode()
