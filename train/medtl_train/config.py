"""The configuration of a training run: values, their explanations and their limits.

Each field's explanation is its help text on the command line; see `medtl_train.options`.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from medtl_models.architectures import ARCHITECTURES
from medtl_runtime.errors import UsageError
from medtl_runtime.voi import HOUNSFIELD_PRESETS

Mode = Literal["head", "all", "head-then-all"]
Optimizer = Literal["adamw", "adam", "sgd", "rmsprop"]
ClassWeights = Literal["none", "balanced"]
Monitor = Literal[
    "auroc", "average_precision", "balanced_accuracy", "accuracy", "f1", "recall", "loss"
]
Fit = Literal["letterbox", "crop", "stretch"]
Kernel = Literal["bilinear", "bicubic", "lanczos", "box"]
Channels = Literal["auto", "1", "3"]
Head = Literal["linear", "mlp"]


def _require(condition: bool, field: str, found: object, expected: str) -> None:
    if not condition:
        raise UsageError(f"--{field.replace('_', '-')} is {found}; expected {expected}")


def _require_choice(config: object, field: str, choices: object) -> None:
    found = getattr(config, field)
    _require(found in get_args(choices), field, found, ", ".join(get_args(choices)))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, whose, and in which split."""

    path_column: Annotated[str, "Manifest column with the image's path."] = "path"
    label_column: Annotated[str, "Manifest column with the label."] = "label"
    patient_column: Annotated[str, "Manifest column with the patient; used if present."] = (
        "patient_id"
    )
    split_column: Annotated[str, "Manifest column with train, val or test; used if present."] = (
        "split"
    )
    val_fraction: Annotated[float, "Share of the patients for validation."] = 0.15
    test_fraction: Annotated[float, "Share of the patients for the test; 0 for none."] = 0.15
    positive: Annotated[
        str | None, "Of two classes, the one to find; the second by name if not given."
    ] = None

    def __post_init__(self) -> None:
        _require(0 < self.val_fraction < 0.5, "val_fraction", self.val_fraction, "0 to 0.5")
        _require(0 <= self.test_fraction < 0.5, "test_fraction", self.test_fraction, "0 to 0.5")


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How a frame becomes a canonical image."""

    size: Annotated[int, "Side of the canonical image in pixels."] = 224
    channels: Annotated[Channels, "1 grey, 3 colour; auto takes 3 if any image is in colour."] = (
        "auto"
    )
    window: Annotated[
        str,
        "auto: ct-wide for CT, else voi. voi: the header's window or VOI LUT. CENTRE,WIDTH in "
        f"Hounsfield units, or a preset: {', '.join(HOUNSFIELD_PRESETS)}.",
    ] = "auto"
    fit: Annotated[Fit, "letterbox keeps all, crop cuts the longer side, stretch distorts."] = (
        "letterbox"
    )
    kernel: Annotated[Kernel, "Resampling kernel, antialiased."] = "bilinear"

    def __post_init__(self) -> None:
        _require(32 <= self.size <= 4096, "size", self.size, "32 to 4096")
        _require_choice(self, "channels", Channels)
        _require_choice(self, "fit", Fit)
        _require_choice(self, "kernel", Kernel)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What is trained, and from which weights."""

    arch: Annotated[
        str | None,
        f"Backbone: {', '.join(ARCHITECTURES)}. Default: that of --from, else resnet18.",
    ] = None
    weights: Annotated[
        str | None,
        "imagenet (torchvision's), none, or a .pth file of torchvision's layout. "
        "Default: imagenet, unless --from is given.",
    ] = None
    from_run: Annotated[str | None, "A medtl run to start from, such as runs/lung."] = None
    head: Annotated[Head, "linear: pooling and linear; mlp: with a Dense(1024, ReLU) between."] = (
        "linear"
    )
    dropout: Annotated[float, "Dropout before the last layer."] = 0.2
    offline: Annotated[bool, "Never download weights."] = False

    def __post_init__(self) -> None:
        if self.arch is not None:
            _require(self.arch in ARCHITECTURES, "arch", self.arch, ", ".join(ARCHITECTURES))
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "0 to less than 1")
        _require_choice(self, "head", Head)
        if self.from_run is not None and self.weights is not None:
            raise UsageError("--from and --weights both name weights to start from; give one")


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
            _require_choice(self, field, choices)
        _require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _require(self.head_epochs >= 0, "head_epochs", self.head_epochs, "0 or more")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        for field in ("lr", "head_lr"):
            found = getattr(self, field)
            _require(0 < found < math.inf, field, found, "more than 0")
        for field in ("weight_decay", "l1", "l2", "l2_sp", "patience", "seed"):
            found = getattr(self, field)
            if found is None:
                continue  # its default depends on other fields
            _require(0 <= found < math.inf, field, found, "0 or more")
        for field in ("momentum", "warmup", "label_smoothing"):
            _require(0 <= getattr(self, field) < 1, field, getattr(self, field), "0 to less than 1")
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


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images, drawn anew for every image of every batch.

    Each number is the largest change; 0 turns one off. Flips are off by default because organs
    have sides.
    """

    rotation: Annotated[float, "Rotation, degrees."] = 10.0
    shift: Annotated[float, "Shift, as a share of the side."] = 0.05
    scale: Annotated[float, "Zoom in or out: 0.1 for 1/1.1 to 1.1."] = 0.1
    shear: Annotated[float, "Shear, degrees."] = 0.0
    crop: Annotated[float, "Random crop, resized back: the largest share of a side cut off."] = 0.0
    hflip: Annotated[bool, "Mirror left and right, half of the time."] = False
    vflip: Annotated[bool, "Mirror up and down, half of the time."] = False
    brightness: Annotated[float, "Added to the grey values, which lie in 0 to 1."] = 0.05
    contrast: Annotated[float, "Contrast factor: 0.1 for 1/1.1 to 1.1."] = 0.1
    gamma: Annotated[float, "Gamma: 0.1 for 1/1.1 to 1.1."] = 0.1
    noise: Annotated[float, "Largest standard deviation of added Gaussian noise."] = 0.01
    blur: Annotated[float, "Largest standard deviation of a Gaussian blur, pixels."] = 0.0
    augment: Annotated[bool, "Augment at all."] = True

    def __post_init__(self) -> None:
        for field, highest in (
            ("rotation", 180), ("shift", 0.5), ("scale", 1), ("shear", 45), ("crop", 0.5),
            ("brightness", 0.5), ("contrast", 2), ("gamma", 2), ("noise", 0.5), ("blur", 5),
        ):  # fmt: skip
            value = getattr(self, field)
            _require(0 <= value <= highest, field, value, f"0 to {highest}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that determines a run, given the data and the machine."""

    data: DataConfig = DataConfig()
    image: ImageConfig = ImageConfig()
    network: NetworkConfig = NetworkConfig()
    fit: FitConfig = FitConfig()
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self) -> None:
        mode, optimizer = f"--mode {self.fit.mode}", f"--optimizer {self.fit.optimizer}"
        for field, idle, beside in (
            ("momentum", self.fit.optimizer in ("adamw", "adam"), optimizer),
            ("lr", self.fit.mode == "head", mode),
            ("head_lr", self.fit.mode == "all", mode),
            ("head_epochs", self.fit.mode != "head-then-all", mode),
        ):
            # A file of --config holds all fields: only what was changed can have been meant.
            if idle and getattr(self.fit, field) != getattr(FitConfig, field):
                raise UsageError(f"--{field.replace('_', '-')} has no effect with {beside}")


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
