"""What is made of several questions, and of values."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from medtl_runtime.errors import UsageError
from medtl_train.config.checks import require, require_choice

RegressionLoss = Literal["mse", "huber"]


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """What is made of several questions, and of values."""

    head_weights: Annotated[
        str,
        "Weights of the heads' losses: equal, NAME=WEIGHT,... (1 if not named), or uncertainty: "
        "learned (Kendall, Gal and Cipolla, CVPR 2018).",
    ] = "equal"
    regression_loss: Annotated[
        RegressionLoss, "Of a regression's error in standard deviations; huber: linear above 1."
    ] = "mse"

    def __post_init__(self) -> None:
        require_choice(self, "regression_loss", RegressionLoss)
        self.fixed_weights()

    def fixed_weights(self) -> dict[str, float]:
        """Return the weights that were given, by the name of the head.

        Raises
        ------
        UsageError
            The option is malformed, or a weight is below 0.
        """
        if self.head_weights in ("equal", "uncertainty"):
            return {}
        expected = "equal, uncertainty, or NAME=WEIGHT,..."
        found = {}
        for part in self.head_weights.split(","):
            name, _, weight = part.rpartition("=")
            try:
                found[name.strip()] = float(weight)
            except ValueError as cause:
                raise UsageError(
                    f"--head-weights is {self.head_weights}; expected {expected}"
                ) from cause
        fine = all(name and 0 <= weight < math.inf for name, weight in found.items())
        require(fine, "head_weights", self.head_weights, f"{expected} with weights of 0 or more")
        return found
