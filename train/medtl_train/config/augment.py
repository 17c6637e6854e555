"""Random changes to training images."""

from dataclasses import dataclass
from typing import Annotated

from medtl_train.config.checks import require


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images, drawn anew for every image of every batch.

    Each number is the largest change; 0 turns one off. Flips are off by default because organs
    have sides.
    """

    rotation: Annotated[float, "Rotation, degrees."] = 10.0
    shift: Annotated[float, "Shift, as a share of the side."] = 0.05
    scale: Annotated[float, "Zoom in or out: 0.1 for 1/1.1 to 1.1."] = 0.1
    shear: Annotated[float, "Shear, degrees."] = 0.0
    crop: Annotated[float, "Random crop, resized back: the largest share of a side cut off."] = 0.0
    hflip: Annotated[bool, "Mirror left and right, half of the time."] = False
    vflip: Annotated[bool, "Mirror up and down, half of the time."] = False
    brightness: Annotated[float, "Added to the grey values, which lie in 0 to 1."] = 0.05
    contrast: Annotated[float, "Contrast factor: 0.1 for 1/1.1 to 1.1."] = 0.1
    gamma: Annotated[float, "Gamma: 0.1 for 1/1.1 to 1.1."] = 0.1
    noise: Annotated[float, "Largest standard deviation of added Gaussian noise."] = 0.01
    blur: Annotated[float, "Largest standard deviation of a Gaussian blur, pixels."] = 0.0
    augment: Annotated[bool, "Augment at all."] = True

    def __post_init__(self) -> None:
        for field, highest in (
            ("rotation", 180), ("shift", 0.5), ("scale", 1), ("shear", 45), ("crop", 0.5),
            ("brightness", 0.5), ("contrast", 2), ("gamma", 2), ("noise", 0.5), ("blur", 5),
        ):  # fmt: skip
            value = getattr(self, field)
            require(0 <= value <= highest, field, value, f"0 to {highest}")
