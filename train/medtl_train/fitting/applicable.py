"""Refuses options that this network and these heads leave without effect."""

from collections.abc import Iterator, Sequence

from torch.nn.modules.batchnorm import _BatchNorm

from medtl_models.network import Network
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head
from medtl_train.config import (
    ImbalanceConfig,
    TasksConfig,
    TrainConfig,
    TransferConfig,
)
from medtl_train.scoring import metrics

_OF_VALUES = ("r2", "mae", "rmse")
_OF_GRADES = ("quadratic_weighted_kappa",)


def require_applicable(
    config: TrainConfig, network: Network, heads: Sequence[Head], *, pretrained: bool
) -> None:
    """Raise `UsageError` if an option was changed that cannot have an effect here.

    Parameters
    ----------
    pretrained
        Whether the backbone's weights are those of another training.
    """
    for option, reason in (
        *_idle_for_heads(config, heads),
        *_idle_for_network(config, network, pretrained=pretrained),
    ):
        raise UsageError(f"{option} has no effect: {reason}")


def _idle_for_heads(config: TrainConfig, heads: Sequence[Head]) -> Iterator[tuple[str, str]]:
    kinds = {head.kind for head in heads}
    classless = "there is no head with classes"
    if kinds == {"regression"}:
        if smoothing := config.regularisation.label_smoothing:
            yield f"--label-smoothing {smoothing:g}", classless
        if config.imbalance != ImbalanceConfig():
            yield _words_of(config.imbalance), classless
    if "regression" not in kinds and config.tasks.regression_loss != TasksConfig.regression_loss:
        yield f"--regression-loss {config.tasks.regression_loss}", "there is no regression"
    if len(heads) == 1 and config.tasks.head_weights != TasksConfig.head_weights:
        yield f"--head-weights {config.tasks.head_weights}", f"{heads[0].name} is the only head"
    monitor = config.fit.monitor
    if monitor in _OF_VALUES and "regression" not in kinds:
        yield f"--monitor {monitor}", "there is no regression"
    if monitor in _OF_GRADES and "ordinal" not in kinds:
        yield f"--monitor {monitor}", "there is no head with grades"
    if monitor in metrics.NAMES and kinds == {"regression"}:
        yield f"--monitor {monitor}", classless


def _idle_for_network(
    config: TrainConfig, network: Network, *, pretrained: bool
) -> Iterator[tuple[str, str]]:
    transfer, fit = config.transfer, config.fit
    norms = any(isinstance(module, _BatchNorm) for module in network.backbone.modules())
    if transfer.batch_norm != TransferConfig.batch_norm and not norms:
        yield f"--batch-norm {transfer.batch_norm}", f"{network.arch} has no BatchNorm"
    if not pretrained:
        random = "the backbone is not pretrained"
        if transfer.batch_norm == "frozen":
            yield "--batch-norm frozen", f"{random}, so there are no statistics to keep"
        if transfer.freeze != TransferConfig.freeze:
            yield f"--freeze {transfer.freeze}", f"{random}, and must be trained whole"
        if fit.mode == "gradual":
            yield "--mode gradual", f"{random}, and must be trained whole"
    elif fit.mode == "solve-then-all" and config.network.head != "linear":
        found = f"--head {config.network.head} is not linear, and cannot be solved for"
        yield "--mode solve-then-all", f"{found}; add --mode head-then-all"
    imbalance = config.imbalance.imbalance
    if fit.mode == "features" and imbalance not in ("none", "class-weights"):
        yield f"--imbalance {imbalance}", "--mode features knows class-weights only"


def _words_of(config: ImbalanceConfig) -> str:
    if config.imbalance != ImbalanceConfig.imbalance:
        return f"--imbalance {config.imbalance}"
    return f"--focal {config.focal:g}"
