"""Which layers move when, and how fast: phases, learning rates, optimisers."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medtl_models.network import Network
from medtl_models.stages import HEAD, modules_by_stage, parameters_by_stage, stage_names
from medtl_runtime.errors import UsageError
from medtl_train.config import FitConfig, TrainConfig, TransferConfig

LEAST_BATCH = 16
"""Images in a batch from which on BatchNorm's statistics of it are good enough."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of epochs in which the same stages move."""

    name: str
    """``solved``, ``head``, ``all``, or the first stage that moves with a plus: ``stage4+``."""
    epochs: int
    rates: Mapping[str, float]
    """Peak learning rate of each stage that moves; the others stand still. The head is the last.
    Empty where the head is solved for, which counts as an epoch."""

    @property
    def solves(self) -> bool:
        """Whether the head is solved for, and no step is taken."""
        return not self.rates

    @property
    def peak(self) -> float:
        """The highest of the rates."""
        return max(self.rates.values())

    @property
    def moves_backbone(self) -> bool:
        """Whether anything moves beside the head."""
        return set(self.rates) != {HEAD}


_SOLVED = Phase(name="solved", epochs=1, rates={})


def phases(config: TrainConfig, arch: str, *, pretrained: bool) -> tuple[Phase, ...]:
    """Return the phases of a run.

    - ``solve-then-all`` and ``head-then-all`` (LP-FT; Kumar et al., ICLR 2022) protect pretrained
      features from a random head. A backbone that is not pretrained has nothing to protect and is
      trained at once.
    - ``gradual`` goes on from there stage by stage, the last first (Howard and Ruder, ACL 2018).

    Raises
    ------
    UsageError
        There is no such stage to freeze, or there are too few epochs to thaw all stages.
    """
    fit = config.fit
    if fit.mode == "features":
        return (_SOLVED,)
    if fit.mode == "head":
        return (Phase(name="head", epochs=fit.epochs, rates={HEAD: fit.head_lr}),)
    moving = stage_names(arch)[frozen_stages(config.transfer, arch) : -1]
    before = [*_head_first(fit), *_thawing(moving, config)] if pretrained else []
    given = sum(phase.epochs for phase in before)
    if given >= fit.epochs:
        raise UsageError(
            f"--epochs is {fit.epochs}; --mode gradual needs more than the {given} in which "
            f"it thaws {arch}"
        )
    return (*before, _phase("all", fit.epochs - given, moving[0], moving, config))


def _head_first(fit: FitConfig) -> list[Phase]:
    """Return the phase in which only the head is found; none where there is no epoch for it."""
    if fit.mode == "all":
        return []
    trained = min(fit.head_epochs, fit.epochs - 1)
    found = Phase(name="head", epochs=trained, rates={HEAD: fit.head_lr})
    if fit.mode == "solve-then-all":
        found = _SOLVED
    return [found] if 0 < found.epochs < fit.epochs else []


def _thawing(moving: tuple[str, ...], config: TrainConfig) -> list[Phase]:
    """Return the phases in which the stages after the first one are thawed, the last first."""
    if config.fit.mode != "gradual":
        return []
    epochs = config.fit.unfreeze_epochs
    return [_phase(f"{name}+", epochs, name, moving, config) for name in moving[:0:-1]]


def _phase(
    name: str, epochs: int, start: str, moving: tuple[str, ...], config: TrainConfig
) -> Phase:
    """Return the phase in which all stages from ``start`` on move.

    A stage's learning rate is a share of the next one's: what is general needs to change less
    (discriminative rates; Howard and Ruder, ACL 2018; per layer in Bao et al., ICLR 2022).
    """
    lr, transfer = config.fit.lr, config.transfer
    chosen = moving[moving.index(start) :]
    depths = range(len(chosen) - 1, -1, -1)
    rates = {stage: lr * transfer.lr_decay**d for stage, d in zip(chosen, depths, strict=True)}
    return Phase(name=name, epochs=epochs, rates={**rates, HEAD: lr * transfer.head_ratio})


def frozen_stages(config: TransferConfig, arch: str) -> int:
    """Return how many stages, from the stem on, never move.

    Raises
    ------
    UsageError
        The architecture has no such stage, or all of them were to be frozen.
    """
    names, asked = stage_names(arch)[:-1], config.freeze
    count = int(asked) if asked.isdecimal() else names.index(asked) + 1 if asked in names else -1
    if not 0 <= count < len(names):
        raise UsageError(
            f"--freeze is {asked}; expected 0 to {len(names) - 1} of {arch}, or one of "
            f"{', '.join(names[:-1])} (all stages: --mode head)"
        )
    return count


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Return the learning rate of a step: a linear rise, then a half cosine to 0.

    ``step`` counts from 0 to ``steps`` - 1; ``warmup`` is the share of the steps that rise.
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, steps - rising)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(
    network: Network, phase: Phase, config: FitConfig, others: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Return the optimiser of a phase; each of its groups has a ``peak``, its learning rate's.

    Weight decay acts on weights only, not on norms and biases.

    Parameters
    ----------
    others
        Parameters of the objective; they move like the head, without decay.
    """
    groups = []
    for stage, parameters in parameters_by_stage(network).items():
        if stage in phase.rates:
            peak = {"peak": phase.rates[stage]}
            weights = [p for p in parameters if p.ndim > 1]
            spared = [p for p in parameters if p.ndim <= 1]
            groups.append({"params": weights, "weight_decay": config.decay, **peak})
            groups.append({"params": spared, "weight_decay": 0.0, **peak})
    groups.append({"params": list(others), "weight_decay": 0.0, "peak": phase.rates[HEAD]})
    groups = [group for group in groups if group["params"]]
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=phase.peak)
        case "adam":
            return torch.optim.Adam(groups, lr=phase.peak)
        case "sgd":
            return torch.optim.SGD(
                groups, lr=phase.peak, momentum=config.momentum, nesterov=config.momentum > 0
            )
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=phase.peak, momentum=config.momentum)


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, warmup: float) -> float:
    """Set the learning rates of a step; return the highest. See `learning_rate`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, steps, group["peak"], warmup)
    return max(group["lr"] for group in optimizer.param_groups)


def set_training(network: Network, phase: Phase, *, freeze_norms: bool) -> None:
    """Put the stages of a phase in training mode, and freeze the others with their statistics.

    Parameters
    ----------
    freeze_norms
        Leave the BatchNorm statistics of the stages that move as they are, too; their weights and
        biases do move.
    """
    network.eval()
    network.requires_grad_(False)
    network.training = True  # of itself only; its parts say what is in training
    modules, parameters = modules_by_stage(network), parameters_by_stage(network)
    for stage in phase.rates:
        for module in modules[stage]:
            # Not by train(), which reaches the parts of a module, too.
            module.training = not (freeze_norms and isinstance(module, _BatchNorm))
        for parameter in parameters[stage]:
            parameter.requires_grad_(True)


def freezes_norms(config: TrainConfig, batch_size: int, *, pretrained: bool) -> bool:
    """Whether BatchNorm keeps the statistics that it came with; see `TransferConfig.batch_norm`."""
    if config.transfer.batch_norm == "auto":
        return pretrained and batch_size < LEAST_BATCH
    return config.transfer.batch_norm == "frozen"
