"""Values of interest: the mappings from modality values to a display range of [0, 1].

DICOM PS3.3 C.11.2 defines three window functions and a lookup table. Both are given here as small
values with an ``apply``; their output is always [0, 1], never the bit depth of one file.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import UsageError

WindowFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

# Beyond these a damaged header is speaking, and float32 would overflow or divide by zero.
_LEAST, _MOST = 1e-30, 1e30

# Windows by name, in Hounsfield units: (centre, width). The usual reading presets; `ct-wide` spans
# air to dense bone, and at 16 bits per canonical pixel it loses nothing that the others show.
HOUNSFIELD_PRESETS: dict[str, tuple[float, float]] = {
    "ct-wide": (0.0, 2048.0),
    "lung": (-600.0, 1500.0),
    "soft-tissue": (40.0, 400.0),
    "liver": (90.0, 250.0),
    "brain": (40.0, 80.0),
    "bone": (500.0, 2000.0),
}


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window on modality values (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    ``centre`` and ``width`` are in the units of the modality values (Hounsfield units for CT).
    """

    centre: float
    width: float
    function: WindowFunction = "LINEAR"

    def __post_init__(self) -> None:
        if self.function not in get_args(WindowFunction):
            expected = ", ".join(get_args(WindowFunction))
            raise UsageError(f"window function is {self.function}; expected {expected}")
        # PS3.3 C.11.2.1.2: width >= 1 for LINEAR, > 0 for the other two.
        least = 1 if self.function == "LINEAR" else _LEAST
        if not (abs(self.centre) <= _MOST and abs(self.width) <= _MOST):  # NaN fails too
            raise UsageError(f"window {self.centre}, {self.width}: centre and width must be finite")
        if self.width < least:
            raise UsageError(
                f"window width is {self.width:g}; {self.function} needs "
                + ("at least 1" if least == 1 else "more than 0")
            )

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map modality values of any shape to [0, 1]."""
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                slope = np.float32(-4.0 / self.width)
                odds = np.exp((values - np.float32(self.centre)) * slope)
                return np.float32(1) / (np.float32(1) + odds)
        centre, width = self.centre, self.width
        if self.function == "LINEAR":
            # C.11.2.1.2.1: half a value and one value less; a width of 1 is a step.
            centre, width = centre - 0.5, width - 1.0
        if width == 0:
            return (values > np.float32(centre)).astype(np.float32)
        scaled = (values - np.float32(centre)) * np.float32(1.0 / width) + np.float32(0.5)
        return np.clip(scaled, 0, 1, out=scaled)

    def __str__(self) -> str:
        return f"window {self.centre:g}/{self.width:g} {self.function}"


@dataclass(frozen=True, kw_only=True, eq=False)
class LookupTable:
    """A VOI LUT (PS3.3 C.11.2.1.1): ``table[0]`` stands for the modality value ``first``.

    The highest entry that ``bits`` can express is white.
    """

    first: int
    table: NDArray[np.uint16]
    bits: int

    def __post_init__(self) -> None:
        if not len(self.table) or not 1 <= self.bits <= 16:
            found = f"{len(self.table)} entries of {self.bits} bits"
            raise UsageError(f"lookup table of {found}; expected at least one, of 1 to 16 bits")

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map modality values of any shape to [0, 1]; values beyond the table take its ends."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.table) - 1).astype(np.intp)
        shown = self.table[index].astype(np.float32) / np.float32(2**self.bits - 1)
        # Entries larger than the stated bits are seen in the wild.
        return np.minimum(shown, 1, out=shown)

    def __str__(self) -> str:
        return f"VOI LUT of {len(self.table)} entries"


Voi = Window | LookupTable


def full_range(low: float, high: float) -> Window:
    """Return the window that maps ``low`` to 0 and ``high`` to 1."""
    return Window(centre=(low + high) / 2, width=max(high - low, 1e-6), function="LINEAR_EXACT")
