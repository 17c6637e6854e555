"""What each of the processes does that test_distributed.py starts: `torchrun THIS TASK FOLDER`."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from medtl_runtime.errors import MedtlError
from medtl_runtime.heads import Head
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_train import checkpoint as checkpoints
from medtl_train.checkpoint import About
from medtl_train.config import TrainConfig
from medtl_train.data.images import ImageSet
from medtl_train.fitting.distributed import ALONE, World, joined
from medtl_train.fitting.feed import Feed
from medtl_train.fitting.fit import Fit
from medtl_train.options import config_from

SIDE = 32
CPU = torch.device("cpu")


def images(count: int, seed: int) -> ImageSet:
    """Return images with a bright square on one of two sides, for two heads, the second sparse."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 20000, (count, 1, SIDE, SIDE))
    side = np.arange(count) % 2
    for image, label in zip(pixels, side, strict=True):
        image[0, 12:20, 4 + 16 * label : 12 + 16 * label] += 40000
    size = np.where(rng.random(count) < 0.5, np.nan, side + rng.normal(0, 0.1, count))
    return ImageSet(
        pixels=pixels.astype(np.uint16),
        targets=np.column_stack([side, size]),
        patients=np.array([f"p{i}" for i in range(count)]),
        sources=tuple(f"{i}.png" for i in range(count)),
    )


def config(**options: object) -> TrainConfig:
    """Return options that leave nothing to chance but the order."""
    given = {
        "epochs": 3, "batch_size": 10, "lr": 3e-4, "patience": 0, "augment": False, "dropout": 0.0,
        "mode": "all", "mixup": 0.0,
    }  # fmt: skip
    return config_from({**given, **options})


def fit_of(folder: Path, world: World = ALONE, **options: object) -> Fit:
    """Return a small fit; the network has no BatchNorm."""
    about = About(
        arch="squeezenet1_1",
        head="linear",
        dropout=0.0,
        heads=(
            Head(name="side", classes=("left", "right")),
            Head(name="size", kind="regression", unit="mm", mean=0.5, std=0.5),
        ),
        recipe=Recipe(size=(SIDE, SIDE), channels=1, window=HeaderVoi()),
        fingerprint="sha256:0",
    )
    torch.manual_seed(0)
    return Fit(
        network=about.build(),
        about=about,
        train=images(33, 0),
        val=images(7, 1),
        positive="right",
        config=config(**options),
        folder=folder,
        device=CPU,
        pretrained=False,
        world=world,
    )


def nothing(*_: object) -> None:
    """Take no notice."""


def train(world: World, folder: Path) -> None:
    """Note the order of an epoch and train; the first process notes the history, too."""
    fit = fit_of(folder, world)
    feed = Feed(
        images=fit.train,
        batch_size=10,
        augmentation=fit.config.augment,
        device=CPU,
        world=world,
    )
    drawn = [
        batch.targets[:, 1].nan_to_num(-1).tolist() for batch in feed.epoch(order=5, changes=0)
    ]
    (folder / f"drawn-{world.rank}.json").write_text(json.dumps(drawn))
    progress = fit.run(nothing, nothing)
    weights = torch.cat([p.detach().flatten() for p in fit.network.parameters()])
    spread = world.mean(weights) - weights.double()
    found = {"history": progress.history, "spread": float(spread.abs().max())}
    (folder / f"found-{world.rank}.json").write_text(json.dumps(found))


def lose(world: World, folder: Path) -> None:
    """Train; the second process is killed in the second epoch."""
    fit = fit_of(folder, world)

    def on_step() -> None:
        if world.rank == 1 and fit.progress.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    fit.run(nothing, on_step)


TASKS = {"train": train, "lose": lose}


def resumed(folder: Path) -> Fit:
    """Return the fit that a checkpoint in the folder is of, in one process."""
    fit = fit_of(folder)
    fit.resume(checkpoints.load(folder / "last.pt"))
    return fit


def main() -> None:
    """Run a task; print a failure in one line, as the command does."""
    torch.set_num_threads(1)
    try:
        with joined(CPU) as (world, _):
            TASKS[sys.argv[1]](world, Path(sys.argv[2]))
    except MedtlError as error:
        sys.stderr.write(f"error: {error.code}: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
