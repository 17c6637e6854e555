"""The configuration of a training run: values, their explanations and their limits.

A group of options is a module. Each field's explanation is its help text on the command line; see
`medtl_train.options`.
"""

from dataclasses import dataclass, field

from medtl_runtime.errors import UsageError
from medtl_train.config.augment import AugmentConfig
from medtl_train.config.data import DataConfig
from medtl_train.config.distil import DistilConfig
from medtl_train.config.fit import FitConfig
from medtl_train.config.image import ImageConfig
from medtl_train.config.network import NetworkConfig

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "DistilConfig",
    "FitConfig",
    "ImageConfig",
    "NetworkConfig",
    "TrainConfig",
]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that determines a run, given the data and the machine."""

    data: DataConfig = field(default_factory=DataConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        mode, optimizer = f"--mode {self.fit.mode}", f"--optimizer {self.fit.optimizer}"
        for name, idle, beside in (
            ("momentum", self.fit.optimizer in ("adamw", "adam"), optimizer),
            ("lr", self.fit.mode == "head", mode),
            ("head_lr", self.fit.mode == "all", mode),
            ("head_epochs", self.fit.mode != "head-then-all", mode),
        ):
            # A file of --config holds all fields: only what was changed can have been meant.
            if idle and getattr(self.fit, name) != getattr(FitConfig, name):
                raise UsageError(f"--{name.replace('_', '-')} has no effect with {beside}")
