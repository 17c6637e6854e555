"""How the trained model is judged."""

from dataclasses import dataclass
from typing import Annotated

from medtl_runtime.calibration import Criterion
from medtl_runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the trained model is judged."""

    operating_point: Annotated[
        str,
        "What the threshold of two classes is chosen for, on validation: youden, sensitivity=0.95, "
        "specificity=0.9, cost=MISSED:ALARM, or cost=5:1,prevalence=0.1.",
    ] = "youden"

    def __post_init__(self) -> None:
        self.criterion()

    def criterion(self) -> Criterion:
        """Return what the threshold is chosen for.

        Raises
        ------
        UsageError
            The option is malformed.
        """
        try:
            return Criterion.parse(self.operating_point)
        except UsageError as error:
            raise UsageError(f"--operating-point: the {error}") from error
