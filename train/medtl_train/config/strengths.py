"""How strong each random change of an image may be, and what suits which modality."""

from dataclasses import dataclass, fields, replace
from typing import Literal, Self

Preset = Literal["ct", "mr", "xray", "ultrasound", "microscopy", "fundus", "none"]

LIMITS: dict[str, float] = {
    "rotation": 180,
    "shift": 0.5,
    "scale": 1,
    "shear": 45,
    "crop": 0.5,
    "brightness": 0.5,
    "contrast": 2,
    "gamma": 2,
    "noise": 0.5,
    "blur": 5,
    "bias_field": 2,
    "speckle": 1,
    "hue": 180,
    "saturation": 2,
    "stain": 0.5,
    "erasing": 1,
}
"""The largest value of each; the smallest is 0, which turns it off."""

GEOMETRY = ("rotation", "shift", "scale", "shear", "crop", "hflip", "vflip", "quarter_turns")
COLOUR = ("hue", "saturation", "stain")
"""Changes that need a colour image."""

ALONE = 3.0
"""How much stronger a preset's change may be where only one is made of each image."""


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """The largest change of each kind; 0 and False turn one off.

    The units and the meaning of each are those of the options: see `AugmentConfig`.
    """

    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    crop: float = 0.0
    hflip: bool = False
    vflip: bool = False
    quarter_turns: bool = False
    mirror_outside: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    bias_field: float = 0.0
    speckle: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    stain: float = 0.0
    erasing: float = 0.0
    one_of: bool = False
    """One change of each image, and not all of them. See `lottery`."""

    def times(self, factor: float) -> Self:
        """Return every strength times ``factor``, within its limit; flips and erasing stay."""
        stronger = {
            name: min(factor * getattr(self, name), highest)
            for name, highest in LIMITS.items()
            if name != "erasing"
        }
        return replace(self, **stronger)

    @property
    def moves(self) -> bool:
        """Whether any change moves pixels."""
        return any(getattr(self, name) for name in GEOMETRY)

    @property
    def recolours(self) -> bool:
        """Whether any change needs a colour image."""
        return any(getattr(self, name) for name in COLOUR)

    @property
    def lottery(self) -> tuple[str, ...]:
        """The changes that ``one_of`` draws from: all that are on, but flips, turns and erasing."""
        return tuple(f.name for f in fields(self) if f.name in _DRAWN and getattr(self, f.name) > 0)


_DRAWN = frozenset(LIMITS) - {"erasing"}

DEFAULT = Strengths(
    rotation=10.0, shift=0.05, scale=0.1, brightness=0.05, contrast=0.1, gamma=0.1, noise=0.01
)
"""Small changes that harm no modality."""

PRESETS: dict[str, Strengths] = {
    "none": Strengths(),
    # Hounsfield units are measurements: the greys hardly move. Organs have sides: no flips.
    "ct": Strengths(
        rotation=10.0, shift=0.05, scale=0.1, brightness=0.02, contrast=0.05, noise=0.02, blur=0.5
    ),
    # Greys are relative and coils shade them: contrast, gamma and bias field differ by scanner.
    "mr": Strengths(
        rotation=10.0, shift=0.05, scale=0.1, brightness=0.05, contrast=0.2, gamma=0.2,
        noise=0.02, blur=0.7, bias_field=0.3,
    ),
    # Exposure and post-processing differ by detector; heart and liver have sides: no flips.
    "xray": Strengths(
        rotation=7.0, shift=0.05, scale=0.1, brightness=0.1, contrast=0.2, gamma=0.2, noise=0.01
    ),
    # The probe is held either way round, so left and right mean little; depth is always downwards.
    "ultrasound": Strengths(
        rotation=5.0, shift=0.05, scale=0.15, hflip=True, brightness=0.1, contrast=0.2, gamma=0.2,
        blur=0.7, speckle=0.15,
    ),
    # A slide has no up and no left; stains and scanners differ in colour (Tellez et al., 2019).
    "microscopy": Strengths(
        rotation=10.0, shift=0.05, scale=0.1, hflip=True, vflip=True, quarter_turns=True,
        mirror_outside=True, brightness=0.05, contrast=0.1, noise=0.01, blur=0.5, hue=5.0,
        saturation=0.2, stain=0.05,
    ),
    # A mirrored left eye looks like a right one, and both are in the data; flash and camera differ.
    "fundus": Strengths(
        rotation=15.0, shift=0.05, scale=0.1, hflip=True, brightness=0.05, contrast=0.2, gamma=0.1,
        noise=0.01, blur=0.5, hue=5.0, saturation=0.2,
    ),
}  # fmt: skip
