"""The options that a search may change, and between which limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head
from medtl_train.config import TrainConfig
from medtl_train.options import config_from, flat

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers that an option may have."""

    low: float
    high: float
    log: bool = False
    """Whether its order of magnitude counts."""


Space = Mapping[str, Range | tuple[int, ...]]
"""By option: a range, or the values to choose from."""


def space_of(config: TrainConfig, heads: Sequence[Head], images: int) -> Space:
    """Return what a search may change: around the given options, within what is known to work.

    Parameters
    ----------
    images
        Of the training set: a batch is at most a quarter of it.

    Raises
    ------
    UsageError
        With ``--mode features`` nothing is left to search.
    """
    fit = config.fit
    if fit.mode == "features":
        raise UsageError("--search has nothing to search with --mode features")
    rate = "head_lr" if fit.mode == "head" else "lr"
    given = getattr(fit, rate)
    space: dict[str, Range | tuple[int, ...]] = {
        rate: Range(low=given / 10, high=10 * given, log=True),
        "epochs": _around(fit.epochs),
        "dropout": Range(low=0.0, high=max(0.6, config.network.dropout)),
        "mixup": Range(low=0.0, high=max(0.4, config.regularisation.mixup)),
    }
    if decay := fit.decay:
        space["weight_decay"] = Range(low=min(1e-5, decay), high=max(0.5, decay), log=True)
    if any(head.classes for head in heads):
        smoothing = config.regularisation.label_smoothing
        space["label_smoothing"] = Range(low=0.0, high=max(0.2, smoothing))
    if not isinstance(fit.batch_size, str):
        fitting = [size for size in _around(fit.batch_size) if 2 <= size <= images // 4]
        space["batch_size"] = tuple(sorted({*fitting, fit.batch_size}))
    if config.augment.augment and config.augment.preset != "none":
        space["strength"] = Range(low=0.0, high=max(3.0, config.augment.strength))
    return space


def _around(value: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, value // 2), value, 2 * value}))


def given(config: TrainConfig, space: Space) -> dict[str, Any]:
    """Return the values of the configuration itself; the space holds them."""
    values = {**flat(config), "weight_decay": config.fit.decay}
    return {name: values[name] for name in space}


def drawn(trial: "optuna.trial.BaseTrial", config: TrainConfig, space: Space) -> TrainConfig:
    """Return the configuration with the values that a trial draws."""
    values = {name: _suggested(trial, name, limits) for name, limits in space.items()}
    return config_from({**flat(config), **values})


def _suggested(
    trial: "optuna.trial.BaseTrial", name: str, limits: Range | tuple[int, ...]
) -> float | int:
    if isinstance(limits, tuple):
        found = trial.suggest_categorical(name, limits)
        assert isinstance(found, int)
        return found
    return trial.suggest_float(name, limits.low, limits.high, log=limits.log)
