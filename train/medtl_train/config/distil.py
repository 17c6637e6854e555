"""How a student learns from a teacher."""

import math
from dataclasses import dataclass
from typing import Annotated

from medtl_runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """How a student learns from a teacher; what is not here is as in the teacher's own training.

    The defaults of temperature and alpha are those of Tian et al. (ICLR 2020).
    """

    temperature: Annotated[float, "Softens the probabilities that teacher and student give."] = 4.0
    alpha: Annotated[float, "Share of the labels' loss; the rest is the teacher's."] = 0.1
    weights: Annotated[
        str | None,
        "The student's first weights: imagenet (torchvision's), none, or a .pth file of "
        "torchvision's layout. Default: imagenet if they are on this machine, else none.",
    ] = None
    epochs: Annotated[int | None, "Epochs; as many as the teacher's if not given."] = None
    lr: Annotated[float | None, "Peak learning rate; the teacher's if not given."] = None

    def __post_init__(self) -> None:
        for field, fits, expected in (
            ("temperature", 0 < self.temperature < math.inf, "more than 0"),
            ("alpha", 0 <= self.alpha < 1, "0 to less than 1"),
        ):
            if not fits:
                found = getattr(self, field)
                raise UsageError(f"the distillation's {field} is {found}; expected {expected}")
