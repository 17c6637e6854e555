"""How far, and how fast, pretrained layers may move."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from medtl_train.config.checks import require, require_choice

BatchNorm = Literal["auto", "train", "frozen"]


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How far, and how fast, pretrained layers may move."""

    freeze: Annotated[
        str,
        "Stages that never move: how many from the stem on, or the name of the last one "
        "(stem, stage1, ...).",
    ] = "0"
    lr_decay: Annotated[
        float, "Learning rate of a stage, as a share of that of the next one towards the head."
    ] = 1.0
    head_ratio: Annotated[
        float, "Learning rate of the head in multiples of --lr, when the backbone is trained."
    ] = 1.0
    batch_norm: Annotated[
        BatchNorm,
        "BatchNorm statistics of trained stages: train, those of the batch; frozen, the pretrained "
        "ones; auto: frozen in batches of fewer than 16 images if there are pretrained ones.",
    ] = "train"
    l2_sp: Annotated[
        float, "Penalty: this times |w - w_pretrained|^2 over the backbone (Li et al., ICML 2018)."
    ] = 0.0

    def __post_init__(self) -> None:
        require_choice(self, "batch_norm", BatchNorm)
        require(0 < self.lr_decay <= 1, "lr_decay", self.lr_decay, "more than 0, up to 1")
        found = self.head_ratio
        require(0 < found < math.inf, "head_ratio", found, "more than 0")
        require(0 <= self.l2_sp < math.inf, "l2_sp", self.l2_sp, "0 or more")
