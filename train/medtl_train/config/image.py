"""How a frame becomes a canonical image."""

from dataclasses import dataclass
from typing import Annotated, Literal

from medtl_runtime.voi import HOUNSFIELD_PRESETS
from medtl_train.config.checks import require, require_choice

Fit = Literal["letterbox", "crop", "stretch"]
Kernel = Literal["bilinear", "bicubic", "lanczos", "box"]
Channels = Literal["auto", "1", "3"]


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How a frame becomes a canonical image."""

    size: Annotated[int, "Side of the canonical image in pixels."] = 224
    channels: Annotated[Channels, "1 grey, 3 colour; auto takes 3 if any image is in colour."] = (
        "auto"
    )
    window: Annotated[
        str,
        "auto: ct-wide for CT, else voi. voi: the header's window or VOI LUT. CENTRE,WIDTH in "
        f"Hounsfield units, or a preset: {', '.join(HOUNSFIELD_PRESETS)}.",
    ] = "auto"
    fit: Annotated[Fit, "letterbox keeps all, crop cuts the longer side, stretch distorts."] = (
        "letterbox"
    )
    kernel: Annotated[Kernel, "Resampling kernel, antialiased."] = "bilinear"

    def __post_init__(self) -> None:
        require(32 <= self.size <= 4096, "size", self.size, "32 to 4096")
        require_choice(self, "channels", Channels)
        require_choice(self, "fit", Fit)
        require_choice(self, "kernel", Kernel)
