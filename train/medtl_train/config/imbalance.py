"""What rare classes are given."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from medtl_train.config.checks import require, require_choice

Imbalance = Literal["none", "class-weights", "sampling", "logit-adjustment"]


@dataclass(frozen=True, kw_only=True)
class ImbalanceConfig:
    """What rare classes are given.

    The remedies exclude each other, because each makes up for the imbalance once. All of them move
    probabilities towards the rare classes, and no temperature takes that back.
    """

    imbalance: Annotated[
        Imbalance,
        "class-weights: by inverse frequency; sampling: rare classes as often as others; "
        "logit-adjustment: margins by frequency (Menon et al., ICLR 2021).",
    ] = "none"
    tau: Annotated[float, "Strength of the logit adjustment."] = 1.0
    focal: Annotated[
        float,
        "Focal loss: (1 - p)^this times the cross-entropy; 0 for none (Lin et al., ICCV 2017).",
    ] = 0.0

    def __post_init__(self) -> None:
        require_choice(self, "imbalance", Imbalance)
        require(0 < self.tau < math.inf, "tau", self.tau, "more than 0")
        require(0 <= self.focal < math.inf, "focal", self.focal, "0 or more")
