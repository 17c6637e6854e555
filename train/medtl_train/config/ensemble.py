"""How several networks are trained on one data set, to answer as one."""

from dataclasses import dataclass
from typing import Annotated, Literal

from medtl_runtime.errors import UsageError
from medtl_train.config.checks import require, require_choice

Kind = Literal["none", "seeds", "bags", "boosted", "folds"]


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """How many networks there are, and in what their training differs."""

    ensemble: Annotated[
        Kind,
        "Networks whose answers are averaged. seeds: all else is the same; bags: each on "
        "patients drawn with replacement; boosted: each on images that those before it find hard; "
        "folds: each validated on another part of the training patients.",
    ] = "none"
    members: Annotated[int, "Networks of an ensemble; of folds, their number."] = 5

    def __post_init__(self) -> None:
        require_choice(self, "ensemble", Kind)
        require(2 <= self.members <= 100, "members", self.members, "2 to 100")
        if self.ensemble == "none" and self.members != EnsembleConfig.members:
            raise UsageError("--members has no effect without --ensemble")
