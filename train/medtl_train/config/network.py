"""What is trained, and from which weights."""

from dataclasses import dataclass
from typing import Annotated, Literal

from medtl_models.architectures import ARCHITECTURES
from medtl_runtime.errors import UsageError
from medtl_train.config.checks import require, require_choice

Head = Literal["linear", "mlp"]


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
    from_run: Annotated[
        tuple[str, ...],
        "A medtl run to start from, such as runs/lung; of several, the one whose frozen features "
        "do best on validation.",
    ] = ()
    head: Annotated[Head, "linear: pooling and linear; mlp: with a Dense(1024, ReLU) between."] = (
        "linear"
    )
    dropout: Annotated[float, "Dropout before the last layer."] = 0.0
    drop_path: Annotated[
        float | None,
        "Stochastic depth: chance that the last residual block is left out, less of earlier ones. "
        "Default: torchvision's, 0.2 of efficientnet, 0.1 of convnext, else 0.",
    ] = None
    offline: Annotated[bool, "Never download weights."] = False

    def __post_init__(self) -> None:
        if self.arch is not None:
            require(self.arch in ARCHITECTURES, "arch", self.arch, ", ".join(ARCHITECTURES))
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 to less than 1")
        if self.drop_path is not None:
            require(0 <= self.drop_path < 1, "drop_path", self.drop_path, "0 to less than 1")
        require_choice(self, "head", Head)
        if self.from_run and self.weights is not None:
            raise UsageError("--from and --weights both name weights to start from; give one")
