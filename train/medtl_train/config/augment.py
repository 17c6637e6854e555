"""Random changes to training images."""

from dataclasses import dataclass, fields
from typing import Annotated

from medtl_runtime.errors import UsageError
from medtl_train.config.checks import require, require_choice
from medtl_train.config.strengths import ALONE, COLOUR, DEFAULT, LIMITS, PRESETS, Preset, Strengths


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images, drawn anew for every image of every batch.

    A preset sets them all; what is given besides wins. Each number is the largest change; 0 turns
    one off. There is neither Solarize nor Posterize: they change what a grey value means.
    """

    augment: Annotated[bool, "Augment at all."] = True
    preset: Annotated[
        Preset | None, "Changes that suit a modality. Default: small ones that suit any."
    ] = None
    strength: Annotated[float, "Multiplies the preset's changes, 0 to 10; not what is given."] = 1.0
    one_of: Annotated[
        bool,
        "Make one change of each image, drawn from those that are on, and not all of them "
        "(Müller and Hutter, TrivialAugment, ICCV 2021); the preset's are then 3 times stronger.",
    ] = False
    rotation: Annotated[float | None, "Rotation, degrees, 0 to 180."] = None
    shift: Annotated[float | None, "Shift, as a share of the side, 0 to 0.5."] = None
    scale: Annotated[float | None, "Zoom in or out: 0.1 for 1/1.1 to 1.1; 0 to 1."] = None
    shear: Annotated[float | None, "Shear, degrees, 0 to 45."] = None
    crop: Annotated[
        float | None, "Random crop, resized back: the largest share of a side cut off, 0 to 0.5."
    ] = None
    hflip: Annotated[bool | None, "Mirror left and right, half of the time."] = None
    vflip: Annotated[bool | None, "Mirror up and down, half of the time."] = None
    quarter_turns: Annotated[bool | None, "Turn by 0, 90, 180 or 270 degrees."] = None
    mirror_outside: Annotated[
        bool | None, "Fill what comes in from outside with the mirrored image; else with black."
    ] = None
    brightness: Annotated[float | None, "Added to the values, which lie in 0 to 1; 0 to 0.5."] = (
        None
    )
    contrast: Annotated[float | None, "Contrast factor: 0.1 for 1/1.1 to 1.1; 0 to 2."] = None
    gamma: Annotated[float | None, "Gamma: 0.1 for 1/1.1 to 1.1; 0 to 2."] = None
    noise: Annotated[
        float | None, "Largest standard deviation of added Gaussian noise, 0 to 0.5."
    ] = None
    blur: Annotated[
        float | None, "Largest standard deviation of a Gaussian blur, pixels, 0 to 5."
    ] = None
    bias_field: Annotated[
        float | None, "MR: smooth shading by a factor, 0.3 for 1/1.3 to 1.3; 0 to 2."
    ] = None
    speckle: Annotated[
        float | None, "Ultrasound: largest standard deviation of multiplied noise, 0 to 1."
    ] = None
    hue: Annotated[float | None, "Colour images: turn of the hue, degrees, 0 to 180."] = None
    saturation: Annotated[
        float | None, "Colour images: saturation factor, 0.2 for 1/1.2 to 1.2; 0 to 2."
    ] = None
    stain: Annotated[
        float | None, "Colour images: change of haematoxylin, eosin and DAB, 0 to 0.5."
    ] = None
    erasing: Annotated[
        float | None, "Probability that a rectangle of 2 to 20 % of the image is erased, 0 to 1."
    ] = None

    def __post_init__(self) -> None:
        if self.preset is not None:
            require_choice(self, "preset", Preset)
        require(0 <= self.strength <= 10, "strength", self.strength, "0 to 10")
        for name, highest in LIMITS.items():
            found = getattr(self, name)
            require(found is None or 0 <= found <= highest, name, found, f"0 to {highest}")
        if self.preset == "none" and self.strength != 1:
            raise UsageError("--strength has no effect with --preset none")
        if self.one_of and not self.strengths.lottery:
            raise UsageError("--one-of has nothing to draw from: every change is off")

    @property
    def strengths(self) -> Strengths:
        """The preset's changes, and over them what is given; all are off without ``augment``."""
        if not self.augment:
            return Strengths()
        preset = DEFAULT if self.preset is None else PRESETS[self.preset]
        factor = self.strength * (ALONE if self.one_of else 1.0)
        given = {
            field.name: value
            for field in fields(Strengths)
            if (value := getattr(self, field.name)) is not None
        }
        return Strengths(**{**vars(preset.times(factor)), **given})

    def strengths_for(self, channels: int) -> Strengths:
        """Return the changes of images with 1 or 3 channels.

        Raises
        ------
        UsageError
            A change of colours was asked for by its name, and the images are grey. A preset's is
            left out.
        """
        if channels == 3:
            return self.strengths
        for name in COLOUR:
            if self.augment and getattr(self, name):
                raise UsageError(f"--{name} has no effect: the images are grey")
        kept = {name: value for name, value in vars(self.strengths).items() if name not in COLOUR}
        return Strengths(**kept)
