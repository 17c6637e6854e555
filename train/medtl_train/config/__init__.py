"""The configuration of a training run: values, their explanations and their limits.

A group of options is a module. Each field's explanation is its help text on the command line; see
`medtl_train.options`.
"""

from dataclasses import dataclass, field

from medtl_train.config.augment import AugmentConfig
from medtl_train.config.data import DataConfig
from medtl_train.config.distil import DistilConfig
from medtl_train.config.effects import require_effects
from medtl_train.config.ensemble import EnsembleConfig
from medtl_train.config.evaluation import EvaluationConfig
from medtl_train.config.fit import FitConfig
from medtl_train.config.image import ImageConfig
from medtl_train.config.imbalance import ImbalanceConfig
from medtl_train.config.network import NetworkConfig
from medtl_train.config.regularisation import RegularisationConfig
from medtl_train.config.speed import SpeedConfig
from medtl_train.config.tasks import TasksConfig
from medtl_train.config.transfer import TransferConfig

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "DistilConfig",
    "EnsembleConfig",
    "EvaluationConfig",
    "FitConfig",
    "ImageConfig",
    "ImbalanceConfig",
    "NetworkConfig",
    "RegularisationConfig",
    "SpeedConfig",
    "TasksConfig",
    "TrainConfig",
    "TransferConfig",
]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that determines a run, given the data and the machine."""

    data: DataConfig = field(default_factory=DataConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    regularisation: RegularisationConfig = field(default_factory=RegularisationConfig)
    imbalance: ImbalanceConfig = field(default_factory=ImbalanceConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)

    def __post_init__(self) -> None:
        require_effects(vars(self).values())
