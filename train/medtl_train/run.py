"""One training run from data to report: prepare, fit, evaluate, write."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medtl_models.network import Network
from medtl_models.weights import Loaded
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head
from medtl_train import checkpoint as checkpoints
from medtl_train.checkpoint import About
from medtl_train.config import TrainConfig
from medtl_train.console import Reporter
from medtl_train.data.cleaning import describe_cleaning, write_cleaning
from medtl_train.data.dataset import Dataset, build_dataset
from medtl_train.data.listing import write_splits
from medtl_train.data.recipes import decide_recipe
from medtl_train.data.samples import find_samples
from medtl_train.device import device_name
from medtl_train.errors import Interrupted, ProcessLost, RunUnfit
from medtl_train.evaluation.evaluate import evaluate_run, require_effect
from medtl_train.fitting.distributed import ALONE, World
from medtl_train.fitting.fit import Fit
from medtl_train.fitting.objective import Teacher
from medtl_train.fitting.predict import predict_embeddings
from medtl_train.fitting.progress import Progress
from medtl_train.folders import begin, require_free
from medtl_train.scoring.scored import positive_of
from medtl_train.sources import best_origin
from medtl_train.start import Origin, build_network, find_origins
from medtl_train.summary import describe_run, describe_training, write_history


def train(
    data: Path,
    folder: Path,
    config: TrainConfig,
    *,
    device: torch.device,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Train on ``data`` and write a run into ``folder``; return what ``metrics.json`` holds.

    Parameters
    ----------
    world
        The processes that share the training; only the first one writes and returns what it did.

    Raises
    ------
    DataUnfit
        The data cannot be trained on.
    RunUnfit
        The run to start from or to resume does not fit.
    OutputExists
        ``folder`` holds a run and neither ``resume`` nor ``overwrite`` is set.
    Interrupted
        By Ctrl-C; what ``last.pt`` holds can be resumed.
    """
    reporter = reporter or Reporter(quiet=True)
    require_free(folder, config, resume=resume, overwrite=overwrite)
    origins = find_origins(config.network)
    with world.first_goes_ahead():
        dataset = prepare(data, config, reporter)
    origin = best_origin(origins, dataset, config, device, reporter, world)
    return train_on(
        data,
        dataset,
        origin,
        folder,
        config,
        device=device,
        resume=resume,
        reporter=reporter,
        world=world,
    )


def train_on(
    data: Path,
    dataset: Dataset,
    origin: Origin,
    folder: Path,
    config: TrainConfig,
    *,
    device: torch.device,
    resume: bool = False,
    reporter: Reporter,
    world: World = ALONE,
) -> dict[str, Any]:
    """Train on the images of ``data`` as they have been prepared; see `train`."""
    fit, transfer = start(origin, dataset, folder, config, device, reporter, world=world)
    # Nothing of an earlier run is touched before all that can be refused has been.
    if resume:
        _resume(fit, folder, reporter)
    elif world.first:
        begin(folder, config)
    if world.first:
        write_splits(folder / "splits.csv", dataset)
        _write_cleaning(folder, dataset, config)
    summary = describe_run(data, dataset, config, fit, transfer)
    return complete(fit, dataset, config, summary, reporter)


def prepare(data: Path, config: TrainConfig, reporter: Reporter) -> Dataset:
    """Find, read, clean and split the images of ``data``."""
    found = find_samples(data, config.data)
    recipe = decide_recipe(found.samples, config.image)
    dataset = build_dataset(
        found,
        recipe,
        config.data,
        seed=config.fit.seed,
        track=reporter.tracker("reading", len(found.samples)),
        note=reporter.note,
    )
    counts = ", ".join(f"{len(some)} {name}" for name, some in dataset.images.items() if some)
    reporter.note(f"{data}: {counts} images")
    for head in dataset.heads:
        answers = ", ".join(head.classes) or f"values in {head.unit or 'no unit'}"
        reporter.note(f"{head.name}: {head.kind}, {answers}")
    reporter.note(
        f"recipe: {recipe.window}, {recipe.channels} x {recipe.size[0]} x {recipe.size[1]}"
    )
    if dataset.excluded:
        reporter.note(f"{len(dataset.excluded)} samples left out; splits.csv lists them:")
        for reason, count in Counter(_kind(e.reason) for e in dataset.excluded).most_common(5):
            reporter.note(f"  {count} x {reason}")
    if not dataset.patients_known:
        reporter.note(
            "caution: images without patient identifiers count as patients of their own; "
            "if patients have several, the splits leak and the figures are too good"
        )
    return dataset


def _kind(reason: str) -> str:
    for kind in ("same pixels as", "nearly the same as"):
        if reason.startswith(kind):
            return f"{kind} another image"
    return reason


def start(
    origin: Origin,
    dataset: Dataset,
    folder: Path,
    config: TrainConfig,
    device: torch.device,
    reporter: Reporter,
    *,
    teacher: Teacher | None = None,
    world: World = ALONE,
) -> tuple[Fit, Loaded]:
    """Return a fit that is ready to run, and what its network was made from."""
    about = About(
        arch=origin.arch,
        head=config.network.head,
        dropout=config.network.dropout,
        heads=dataset.heads,
        recipe=dataset.recipe,
        fingerprint=dataset.fingerprint,
    )
    require_positive(dataset.heads, config.data.positive)
    require_effect(config.evaluation, dataset.heads)
    seed = config.fit.seed
    network, loaded = build_network(origin, about, config.network, seed=seed, reporter=reporter)
    pretrained = loaded.tensors > 0
    if not pretrained and config.fit.mode in ("solve-then-all", "head-then-all"):
        reporter.note("random weights: all layers are trained from the first epoch")
    fit = Fit(
        network=network,
        about=about,
        train=dataset.split("train"),
        val=dataset.split("val"),
        positive=config.data.positive,
        config=config,
        folder=folder,
        device=device,
        pretrained=pretrained,
        knows_head=loaded.head,
        teacher=teacher,
        world=world,
    )
    return fit, loaded


def require_positive(heads: Sequence[Head], named: str | None) -> None:
    """Raise `UsageError` if the class to find is named, and is none of two."""
    if named is None:
        return
    its = [head for head in heads if named in head.classes]
    if not its:
        found = "; ".join(", ".join(head.classes) for head in heads if head.classes) or "none"
        raise UsageError(f"--positive is {named}; the classes are {found}")
    if all(positive_of(head) is None for head in its):
        raise UsageError(f"--positive is for two classes; there are {len(its[0].classes)}")


def _resume(fit: Fit, folder: Path, reporter: Reporter) -> None:
    saved = checkpoints.load(folder / "last.pt")
    if saved.about != fit.about:
        raise RunUnfit(f"{folder}: the data or the recipe have changed since it was interrupted")
    if saved.training is None:
        raise RunUnfit(f"{folder}/last.pt holds no state of training")
    if saved.training.get("distilled"):
        raise RunUnfit(f"{folder} was distilled: without its teacher it would be another network")
    fit.resume(saved)
    reporter.note(f"resuming after epoch {fit.progress.epoch}")


def complete(
    fit: Fit,
    dataset: Dataset,
    config: TrainConfig,
    summary: Mapping[str, Any],
    reporter: Reporter,
) -> dict[str, Any]:
    """Train to the end, evaluate, and write what is still missing of the run.

    Parameters
    ----------
    summary
        What is known before; see `describe_run`.

    Returns
    -------
    What ``metrics.json`` holds; nothing in a process that is not the first.

    Raises
    ------
    Diverged, Interrupted, ProcessLost
        What was written until then stays.
    """
    progress = _fit(fit, config, reporter)
    if not fit.world.first:
        return {}
    write_history(fit.folder / "history.csv", progress)
    whole = {**summary, "training": describe_training(fit)}
    evaluate_run(fit.folder, whole, dataset, config, fit.device, progress.history)
    if dataset.findings is not None:
        embeddings = _embeddings(fit.folder, dataset, fit.device)
        _write_cleaning(fit.folder, dataset, config, embeddings)
    return whole


def _write_cleaning(
    folder: Path,
    dataset: Dataset,
    config: TrainConfig,
    embeddings: Mapping[str, NDArray[np.floating]] | None = None,
) -> None:
    """Write what was found out about the data: before the training, and with embeddings after."""
    report = describe_cleaning(dataset, site=config.data.site_column, embeddings=embeddings)
    write_cleaning(folder, report)


def _embeddings(
    folder: Path, dataset: Dataset, device: torch.device
) -> dict[str, NDArray[np.float32]]:
    """Return what the best network makes of every image, N x D by split."""
    network = checkpoints.load_run(folder).restore().to(device)
    assert isinstance(network, Network)
    return {
        split: predict_embeddings(network, dataset.split(split).pixels, device)
        for split, images in dataset.images.items()
        if images
    }


def _fit(fit: Fit, config: TrainConfig, reporter: Reporter) -> Progress:
    reporter.note(f"training on {device_name(fit.device)}")
    monitor = fit.selection.monitor
    try:
        with reporter.fitting(fit.steps_left, monitor) as (on_step, on_epoch):
            progress = fit.run(on_epoch, on_step)
    except (KeyboardInterrupt, ProcessLost) as cause:
        lost = isinstance(cause, ProcessLost)
        kind, what = (ProcessLost, str(cause)) if lost else (Interrupted, "interrupted")
        if not fit.progress.epoch:
            raise kind(f"{what} in the first epoch; nothing to resume yet") from cause
        remedy = (
            f"the same command with --resume goes on from {fit.folder / 'last.pt'}"
            if fit.teacher is None
            else "a distillation starts anew; add --overwrite"
        )
        raise kind(f"{what} after epoch {fit.progress.epoch}; {remedy}") from cause
    if progress.stopped_early:
        reporter.note(f"stopped early: no better {monitor} in {config.fit.patience} epochs")
    return progress
