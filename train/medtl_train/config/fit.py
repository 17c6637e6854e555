"""How the weights are found."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from medtl_train.config.checks import require, require_choice

Mode = Literal["features", "head", "all", "solve-then-all", "head-then-all", "gradual"]
Optimizer = Literal["adamw", "adam", "sgd", "rmsprop"]
Monitor = Literal[
    "auto",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "accuracy",
    "f1",
    "recall",
    "quadratic_weighted_kappa",
    "r2",
    "mae",
    "rmse",
    "loss",
]

IMAGES_A_STEP = 32


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How the weights are found."""

    mode: Annotated[
        Mode,
        "features: backbone frozen, the head solved for in seconds; head: backbone frozen; all: "
        "everything; solve-then-all: the head solved for, then everything; head-then-all: the head "
        "trained, then everything; gradual: stage by stage, the last first.",
    ] = "solve-then-all"
    epochs: Annotated[int, "Epochs in all."] = 30
    head_epochs: Annotated[
        int, "Of these, epochs with a frozen backbone in head-then-all and gradual."
    ] = 3
    unfreeze_epochs: Annotated[int, "Epochs until the next stage is thawed in gradual."] = 1
    batch_size: Annotated[
        int | Literal["auto"],
        "Images a step. auto: 32, in as many parts as the GPU's memory needs.",
    ] = IMAGES_A_STEP
    optimizer: Annotated[Optimizer, "Optimiser."] = "adamw"
    lr: Annotated[
        float, "Peak learning rate of the last stage and the head when the backbone is trained."
    ] = 3e-4
    head_lr: Annotated[float, "Peak learning rate when only the head is trained."] = 1e-3
    momentum: Annotated[float, "Momentum of sgd and rmsprop."] = 0.9
    weight_decay: Annotated[
        float | None, "Weight decay, not on norms and biases. Default: 0.05 with adamw, else 0."
    ] = None
    warmup: Annotated[float, "Share of the steps with a rising learning rate; then cosine."] = 0.05
    monitor: Annotated[
        Monitor,
        "Validation metric for the best checkpoint and early stopping, the mean over the heads "
        "that have it. auto: auroc of classes, r2 of values.",
    ] = "auto"
    patience: Annotated[int, "Stop after so many epochs without a better metric; 0 for never."] = 10
    seed: Annotated[int, "Seed of split, initialisation, order, dropout and augmentation."] = 0

    def __post_init__(self) -> None:
        for field, choices in (("mode", Mode), ("optimizer", Optimizer), ("monitor", Monitor)):
            require_choice(self, field, choices)
        for field, least in (
            ("epochs", 1), ("head_epochs", 0), ("unfreeze_epochs", 1),
        ):  # fmt: skip
            found = getattr(self, field)
            require(found >= least, field, found, f"{least} or more")
        size = self.batch_size
        fits = size == "auto" or (isinstance(size, int) and size >= 2)
        require(fits, "batch_size", size, "2 or more, or auto")
        for field in ("lr", "head_lr"):
            found = getattr(self, field)
            require(0 < found < math.inf, field, found, "more than 0")
        for field in ("weight_decay", "patience", "seed"):
            found = getattr(self, field)
            if found is not None:  # its default depends on other fields
                require(0 <= found < math.inf, field, found, "0 or more")
        for field in ("momentum", "warmup"):
            require(0 <= getattr(self, field) < 1, field, getattr(self, field), "0 to less than 1")

    @property
    def decay(self) -> float:
        """The weight decay in force.

        0.05 suits AdamW's decoupled decay; as the L2 term that it is in the others, it would
        swamp the loss.
        """
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.05 if self.optimizer == "adamw" else 0.0

    @property
    def step_images(self) -> int:
        """Images of which a step is taken."""
        return 32 if isinstance(self.batch_size, str) else self.batch_size
