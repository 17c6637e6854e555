"""Where a network starts: its architecture and its first weights."""

from dataclasses import dataclass
from pathlib import Path

import torch

from medtl_models.drop_path import set_drop_path
from medtl_models.network import Network
from medtl_models.weights import Loaded, fetch_imagenet, load_file, load_imagenet, load_network
from medtl_runtime.errors import UsageError
from medtl_train import checkpoint as checkpoints
from medtl_train.checkpoint import About, Checkpoint
from medtl_train.config import NetworkConfig
from medtl_train.console import Reporter
from medtl_train.errors import RunUnfit


@dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """An architecture and a place with weights for it, known to be there."""

    arch: str
    weights: str
    """``imagenet``, ``none``, a file's path or a run's folder."""
    run: Checkpoint | None = None
    """What ``weights`` holds where it is a run's folder."""


def find_origins(config: NetworkConfig) -> tuple[Origin, ...]:
    """Find the weights to start from, before any image is read.

    There may be several runs of ``--from``, to be chosen from by `medtl_train.sources.best_origin`.

    Raises
    ------
    RunUnfit
        The run to start from is of another architecture than the one asked for.
    UsageError
        There are no such weights: see `fetch_imagenet` and `load_run`.
    """
    if config.from_run:
        return tuple(_of_run(run, config.arch) for run in config.from_run)
    arch, weights = config.arch or "resnet18", config.weights or "imagenet"
    if weights == "imagenet":
        fetch_imagenet(arch, offline=config.offline)
    elif weights != "none" and not Path(weights).is_file():
        raise UsageError(f"--weights {weights}: expected imagenet, none or a file of weights")
    return (Origin(arch=arch, weights=weights),)


def _of_run(run: str, arch: str | None) -> Origin:
    saved = checkpoints.load_run(Path(run))
    if saved.about.members > 1:
        found = f"{run} is an ensemble of {saved.about.members}"
        member = Path(run) / "members" / "1"
        raise RunUnfit(f"{found}; start from one of its members, such as {member}")
    if arch not in (None, saved.about.arch):
        raise RunUnfit(f"{run} is a {saved.about.arch}, not a {arch}")
    return Origin(arch=saved.about.arch, weights=run, run=saved)


def build_network(
    origin: Origin, about: About, config: NetworkConfig, *, seed: int, reporter: Reporter
) -> tuple[Network, Loaded]:
    """Return the network with its first weights, and what was taken from where.

    Raises
    ------
    WeightsUnfit
        The weights are of another architecture, or damaged.
    """
    torch.manual_seed(seed)
    network = about.build_member()
    if config.drop_path is not None and not set_drop_path(network, config.drop_path):
        raise UsageError(f"--drop-path has no effect: {origin.arch} has no residual blocks")
    loaded = _load(network, origin, about, config)
    reporter.note(f"{origin.arch}, weights: {loaded.source}")
    if loaded.skipped:
        reporter.note(f"{len(loaded.skipped)} tensors of it are not used:")
        for line in loaded.skipped:
            reporter.note(f"  {line}")
    return network, loaded


def _questions(about: About) -> list[tuple]:
    """Return what the heads ask, whatever they are called."""
    return [(head.kind, head.classes, head.unit, head.mean, head.std) for head in about.heads]


def _load(network: Network, origin: Origin, about: About, config: NetworkConfig) -> Loaded:
    if origin.run is not None:
        return load_network(
            network,
            origin.run.network,
            source=origin.weights,
            same_classes=_questions(origin.run.about) == _questions(about),
        )
    if origin.weights == "none":
        return Loaded(source="none (random initialisation)", tensors=0, skipped=())
    if origin.weights == "imagenet":
        return load_imagenet(network, offline=config.offline)
    return load_file(network, Path(origin.weights))
