"""How fast training runs; the results are the same but for rounding."""

from dataclasses import dataclass
from typing import Annotated, Literal

from medtl_train.config.checks import require, require_choice

PrecisionName = Literal["auto", "fp32", "bf16"]
CompileChoice = Literal["auto", "yes", "no"]


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """How fast training runs; the results are the same but for rounding."""

    precision: Annotated[
        PrecisionName,
        "bf16: mixed precision; auto: bf16 on a GPU that computes it, fp32 on the CPU.",
    ] = "auto"
    compile: Annotated[
        CompileChoice,
        "torch.compile; auto: on a GPU, if the run is long enough to win the minutes it takes.",
    ] = "auto"
    device_share: Annotated[
        float,
        "Keep the training images in GPU memory if they take at most this share of what is free; "
        "0: never.",
    ] = 0.4

    def __post_init__(self) -> None:
        require_choice(self, "precision", PrecisionName)
        require_choice(self, "compile", CompileChoice)
        require(0 <= self.device_share <= 0.9, "device_share", self.device_share, "0 to 0.9")
