"""What keeps a network from learning few images by heart."""

import math
from dataclasses import dataclass
from typing import Annotated

from medtl_train.config.checks import require


@dataclass(frozen=True, kw_only=True)
class RegularisationConfig:
    """What keeps a network from learning few images by heart."""

    label_smoothing: Annotated[float, "Label smoothing of the cross-entropies."] = 0.0
    mixup: Annotated[
        float, "Mixup: shares are drawn from Beta(a, a); 0 for none (Zhang et al., ICLR 2018)."
    ] = 0.0
    cutmix: Annotated[
        float, "CutMix: areas are drawn from Beta(a, a); 0 for none (Yun et al., ICCV 2019)."
    ] = 0.0
    l1: Annotated[float, "Penalty: this times the sum of |w|, norms and biases left out."] = 0.0
    l2: Annotated[float, "Penalty: this times the sum of squares, norms and biases left out."] = 0.0
    ema: Annotated[
        float,
        "Moving average of the weights, which is evaluated and kept: the decay a step; 0: none.",
    ] = 0.99
    soup: Annotated[
        int,
        "At the end, average so many of the best epochs, as far as that helps on validation "
        "(greedy soup; Wortsman et al., ICML 2022); 0 for none.",
    ] = 0

    def __post_init__(self) -> None:
        for field in ("label_smoothing", "ema"):
            require(0 <= getattr(self, field) < 1, field, getattr(self, field), "0 to less than 1")
        for field in ("mixup", "cutmix", "l1", "l2"):
            require(0 <= getattr(self, field) < math.inf, field, getattr(self, field), "0 or more")
        require(self.soup == 0 or self.soup >= 2, "soup", self.soup, "0, or 2 or more")
