"""Of several runs to start from, the one whose features suit the new task best.

Weights of runs that share no ancestor cannot be averaged, and how similar two data sets look says
little of what is transferred. So each run's frozen features are tried: a linear head is solved for
on the training images, and validation decides. It takes one pass over the images for each run.
"""

from collections.abc import Sequence

import torch

from medtl_train.checkpoint import About
from medtl_train.config import TrainConfig
from medtl_train.console import Reporter
from medtl_train.data.dataset import Dataset
from medtl_train.fitting import features
from medtl_train.fitting.averaging import Score
from medtl_train.fitting.distributed import ALONE, World
from medtl_train.fitting.selection import Selection
from medtl_train.start import Origin, build_network


def best_origin(
    origins: Sequence[Origin],
    dataset: Dataset,
    config: TrainConfig,
    device: torch.device,
    reporter: Reporter,
    world: World = ALONE,
) -> Origin:
    """Return the origin whose frozen features give the best linear head on validation.

    Of equals it is the first that was named. A single one is returned without a look.
    """
    if len(origins) == 1:
        return origins[0]
    scores = []
    for origin in origins:
        score, monitored = _probe(origin, dataset, config, device, world)
        reporter.note(f"{origin.weights}: {monitored:.4f} with frozen features")
        scores.append(score)
    best = origins[scores.index(max(scores))]
    reporter.note(f"starting from {best.weights}")
    return best


def _probe(
    origin: Origin, dataset: Dataset, config: TrainConfig, device: torch.device, world: World
) -> tuple[Score, float]:
    """Return the best score of a linear head on an origin's features, and its metric."""
    about = About(
        arch=origin.arch,
        head="linear",
        dropout=0.0,
        heads=dataset.heads,
        recipe=dataset.recipe,
        fingerprint=dataset.fingerprint,
    )
    quiet = Reporter(quiet=True)
    network, _ = build_network(origin, about, config.network, seed=config.fit.seed, reporter=quiet)
    network.to(device)
    train, val = dataset.split("train"), dataset.split("val")
    selection = Selection(
        heads=dataset.heads, targets=val.targets, positive=config.data.positive, config=config
    )
    best, _ = features.best_head(selection, network, train, val, device, world=world)
    return selection.score(best), best["monitored"]
