"""Which options have no effect beside others."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from medtl_runtime.errors import UsageError
from medtl_train.config.augment import AugmentConfig

_OF_STEPS = (
    "epochs", "batch_size", "optimizer", "head_lr", "momentum", "weight_decay", "warmup",
    "patience", "dropout", "label_smoothing", "mixup", "cutmix", "l1", "l2", "ema", "soup",
    "focal", "head_weights", "regression_loss", "head",
    *(field.name for field in fields(AugmentConfig)),
)  # fmt: skip
_OF_THE_BACKBONE = ("lr", "freeze", "lr_decay", "head_ratio", "batch_norm", "l2_sp", "drop_path")


def idle_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that have no effect, by name, with what takes it from each.

    Parameters
    ----------
    options
        All options by name; see `medtl_train.options.flat`.
    """
    mode, optimizer = options["mode"], options["optimizer"]
    of_mode = []
    if mode in ("head", "features"):
        of_mode += _OF_THE_BACKBONE
    if mode == "features":
        of_mode += _OF_STEPS
    if mode in ("all", "solve-then-all"):
        of_mode.append("head_lr")
    if mode not in ("head-then-all", "gradual"):
        of_mode.append("head_epochs")
    if mode != "gradual":
        of_mode.append("unfreeze_epochs")
    idle = dict.fromkeys(of_mode, f"--mode {mode}")
    if optimizer in ("adamw", "adam"):
        idle["momentum"] = f"--optimizer {optimizer}"
    if options["imbalance"] != "logit-adjustment":
        idle["tau"] = f"--imbalance {options['imbalance']}"
    return idle


def require_effects(groups: Iterable[object]) -> None:
    """Raise `UsageError` if an option was changed that the others leave without effect.

    A file of ``--config`` holds all options: only what differs from the default was meant.
    """
    groups = list(groups)
    idle = idle_options({name: value for group in groups for name, value in vars(group).items()})
    for group in groups:
        for name, value in vars(group).items():
            if name in idle and value != getattr(type(group), name):
                raise UsageError(f"--{name.replace('_', '-')} has no effect with {idle[name]}")
