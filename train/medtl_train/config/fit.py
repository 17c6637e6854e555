"""How the weights are found."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from medtl_runtime.errors import UsageError
from medtl_train.config.checks import require, require_choice

Mode = Literal["head", "all", "head-then-all"]
Optimizer = Literal["adamw", "adam", "sgd", "rmsprop"]
ClassWeights = Literal["none", "balanced"]
Monitor = Literal[
    "auroc", "average_precision", "balanced_accuracy", "accuracy", "f1", "recall", "loss"
]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How the weights are found."""

    mode: Annotated[
        Mode, "head: backbone frozen; all: everything; head-then-all: one after the other."
    ] = "head-then-all"
    epochs: Annotated[int, "Epochs in all."] = 30
    head_epochs: Annotated[int, "Of these, epochs with a frozen backbone in head-then-all."] = 3
    batch_size: Annotated[int, "Images a step."] = 32
    optimizer: Annotated[Optimizer, "Optimiser."] = "adamw"
    lr: Annotated[float, "Peak learning rate when all layers are trained."] = 1e-4
    head_lr: Annotated[float, "Peak learning rate when only the head is trained."] = 1e-3
    momentum: Annotated[float, "Momentum of sgd and rmsprop."] = 0.9
    weight_decay: Annotated[
        float | None, "Weight decay, not on norms and biases. Default: 0.05 with adamw, else 0."
    ] = None
    warmup: Annotated[float, "Share of the steps with a rising learning rate; then cosine."] = 0.05
    label_smoothing: Annotated[float, "Label smoothing of the cross-entropy."] = 0.05
    class_weights: Annotated[ClassWeights, "balanced: weights by inverse class frequency."] = "none"
    l1: Annotated[float, "Penalty: this times the sum of |w|, norms and biases left out."] = 0.0
    l2: Annotated[float, "Penalty: this times the sum of squares, norms and biases left out."] = 0.0
    l2_sp: Annotated[
        float, "Penalty: this times |w - w_pretrained|^2 over the backbone (Li et al., ICML 2018)."
    ] = 0.0
    monitor: Annotated[Monitor, "Validation metric for the best checkpoint and early stopping."] = (
        "auroc"
    )
    patience: Annotated[int, "Stop after so many epochs without a better metric; 0 for never."] = 10
    seed: Annotated[int, "Seed of split, initialisation, order, dropout and augmentation."] = 0

    def __post_init__(self) -> None:
        for field, choices in (
            ("mode", Mode),
            ("optimizer", Optimizer),
            ("class_weights", ClassWeights),
            ("monitor", Monitor),
        ):
            require_choice(self, field, choices)
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(self.head_epochs >= 0, "head_epochs", self.head_epochs, "0 or more")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        for field in ("lr", "head_lr"):
            found = getattr(self, field)
            require(0 < found < math.inf, field, found, "more than 0")
        for field in ("weight_decay", "l1", "l2", "l2_sp", "patience", "seed"):
            found = getattr(self, field)
            if found is None:
                continue  # its default depends on other fields
            require(0 <= found < math.inf, field, found, "0 or more")
        for field in ("momentum", "warmup", "label_smoothing"):
            require(0 <= getattr(self, field) < 1, field, getattr(self, field), "0 to less than 1")
        if self.mode == "head" and self.l2_sp:
            raise UsageError("--l2-sp has no effect with --mode head: the backbone does not move")

    @property
    def decay(self) -> float:
        """The weight decay in force.

        0.05 suits AdamW's decoupled decay; as the L2 term that it is in the others, it would
        swamp the loss.
        """
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.05 if self.optimizer == "adamw" else 0.0
