"""The domain types of reading: a scan is a file, and its frames are images of modality values."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import UsageError
from medtl_runtime.voi import Voi

MOST_DISPLAY_BITS = 16
"""With more bits a value is a measurement (a dose, a label), and the range says nothing of it."""

Quantity = Literal["modality", "display"]
Scalar = TypeVar("Scalar", np.float32, np.bool_)


@dataclass(frozen=True, kw_only=True)
class Member:
    """Where the bytes of a file lie in a zip archive; sizes and offset in bytes."""

    name: str
    offset: int
    """Of its local file header."""
    method: int
    """How it is compressed: 0 stored, 8 deflated, others are not read."""
    compressed: int
    size: int
    """After decompression."""
    crc: int
    """CRC-32 of the decompressed bytes."""
    encrypted: bool


@dataclass(frozen=True, kw_only=True)
class Source:
    """Something that `reading.read_scan` opens; ``str()`` of it is its name."""

    name: str
    """How errors and results speak of it: ``scan.dcm``, ``study.zip#folder/a.dcm`` or ``-``."""
    path: Path | None
    """The file, or the archive that holds it; None for standard input."""
    member: Member | None = None
    """The member of the archive; None where the file itself is meant."""
    content: bytes | None = field(default=None, repr=False)
    """What standard input held; None where there is a path."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a frame lies in the patient (PS3.3 C.7.6.2.1.1)."""

    origin: tuple[float, float, float]
    """ImagePositionPatient: the centre of the first pixel, in mm."""
    orientation: tuple[float, float, float, float, float, float]
    """ImageOrientationPatient: direction cosines of the first row, then of the first column."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What medtl uses of a DICOM header; all empty for PNG, JPEG and NPY.

    What is missing or makes no sense is ``""``, None or ``()``.
    """

    modality: str = ""
    patient_id: str = ""
    patient_age: float | None = None
    """In years: PatientAge, else the time from PatientBirthDate to StudyDate."""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    frame_of_reference_uid: str = ""
    transfer_syntax_uid: str = ""
    photometric_interpretation: str = ""
    body_part_examined: str = ""
    view_position: str = ""
    presentation_intent_type: str = ""
    burned_in_annotation: str = ""
    image_type: tuple[str, ...] = ()
    rows: int | None = None
    columns: int | None = None
    pixel_spacing: tuple[float, float] | None = None
    """Distance of neighbouring rows, then of neighbouring columns, in mm: PixelSpacing, else
    ImagerPixelSpacing, else NominalScannedPixelSpacing. None also where frames differ in it."""
    frame_spacings: tuple[tuple[float, float] | None, ...] = field(default=(), repr=False)
    """The different spacings of the frames; empty where they have one, or none at all."""
    positions: tuple[Position, ...] = field(default=(), repr=False)
    """One for each frame; empty unless all are known."""

    @property
    def is_dicom(self) -> bool:
        """Whether this is the header of a DICOM object."""
        return bool(self.transfer_syntax_uid)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One image, decoded and taken through the modality LUT, before any window.

    A scanner's image has a few thousand different values at most. It is kept as these `levels` and
    the place of each pixel among them, so that a window is computed for each level and not for each
    pixel. `values` and `padding` are the image that this makes.

    Attributes
    ----------
    levels
        float32, finite. With ``index`` the different values, (n,); without it the image: H x W for
        grey, H x W x 3 (RGB) for colour.
    quantity
        ``"modality"``: physical or stored units that still need a window.
        ``"display"``: made for the eye already (PNG, JPEG, colour DICOM); only scaled.
    index
        uint16, H x W: which of the levels each pixel has; None where the levels are the image.
    padded
        bool, of the shape of ``levels``: those that stand for pixels that hold no image (PS3.3
        C.7.5.1.1.2); None if there are none.
    value_range
        The lowest and highest value that the stored bit depth can express, in the units of
        ``levels``; None where that says nothing (floating point, more than 16 bits).
    voi
        The header's window or VOI LUT, if any.
    inverted
        The lowest value is meant to be shown white (MONOCHROME1, Presentation LUT INVERSE).
    """

    levels: NDArray[np.float32]
    quantity: Quantity
    index: NDArray[np.uint16] | None = None
    padded: NDArray[np.bool_] | None = None
    value_range: tuple[float, float] | None = None
    voi: Voi | None = None
    inverted: bool = False

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """The image: float32, H x W for grey, H x W x 3 (RGB) for colour."""
        return self.image_of(self.levels)

    @cached_property
    def padding(self) -> NDArray[np.bool_] | None:
        """Where there is no image: bool, H x W; None if it is everywhere."""
        return None if self.padded is None else self.image_of(self.padded)

    def image_of(self, of_levels: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return the image whose pixels have what ``of_levels`` has for their levels."""
        if self.index is None:
            return of_levels
        # "clip" skips a check of the bounds, which hold; it halves the time.
        return np.take(of_levels, self.index, mode="clip")

    @property
    def is_colour(self) -> bool:
        """Whether the image has three channels."""
        return self.levels.ndim == 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A file with one image or several; the pixels are decoded when `frames` is iterated.

    A scan that was read from a path holds its header and no pixels, so that thousands can be open.
    """

    source: str
    frame_count: int
    decode: Callable[[Sequence[int]], Iterator[Frame]] = field(repr=False)
    """From indices of frames to these frames, in that order, decoded one after the other."""
    header: Header = Header()

    def frames(self, indices: Sequence[int] | None = None) -> Iterator[Frame]:
        """Decode frames one after the other.

        Parameters
        ----------
        indices
            Which ones, from 0, in any order; all by default.

        Raises
        ------
        UsageError
            There is no such frame.
        ScanUnreadable, ScanTooLarge, DecoderMissing
            The pixel data is damaged or too large, or no installed package decodes it.
        """
        wanted = range(self.frame_count) if indices is None else indices
        for index in wanted:
            if not 0 <= index < self.frame_count:
                count = f"{self.frame_count} frames" if self.frame_count > 1 else "one frame"
                raise UsageError(f"there is no frame {index} in {self.source}: it has {count}")
        return self.decode(wanted)
