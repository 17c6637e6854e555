"""One training run from data to report: prepare, fit, evaluate, write."""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medtl_models.weights import Loaded
from medtl_runtime.errors import OutputExists, OutputNotWritten, UsageError
from medtl_runtime.files import write_text
from medtl_train import checkpoint as checkpoints
from medtl_train.checkpoint import About
from medtl_train.config import TrainConfig
from medtl_train.console import Reporter
from medtl_train.dataset import Dataset, build_dataset, write_splits
from medtl_train.device import device_name
from medtl_train.errors import Interrupted, RunUnfit
from medtl_train.evaluation import evaluate_run
from medtl_train.feed import batches_an_epoch
from medtl_train.fit import Fit
from medtl_train.fit import Progress as FitProgress
from medtl_train.objective import Teacher
from medtl_train.options import to_toml
from medtl_train.recipes import decide_recipe
from medtl_train.samples import SPLITS, find_samples
from medtl_train.start import Origin, build_network, find_origin
from medtl_train.summary import describe_run, describe_training, write_history

OUTPUTS = (
    "best.pt",
    "last.pt",
    "config.toml",
    "metrics.json",
    "history.csv",
    "splits.csv",
    "report.html",
)


def train(
    data: Path,
    folder: Path,
    config: TrainConfig,
    *,
    device: torch.device,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train on ``data`` and write a run into ``folder``; return what ``metrics.json`` holds.

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
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other; give one")
    if resume:
        _require_resumable(folder, config)
    else:
        refuse_existing_run(folder, overwrite=overwrite)
    origin = find_origin(config.network)
    dataset = prepare(data, config, reporter)
    fit, transfer = start(origin, dataset, folder, config, device, reporter)
    # Nothing of an earlier run is touched before all that can be refused has been.
    if resume:
        _resume(fit, folder, reporter)
    else:
        begin(folder, config)
    write_splits(folder / "splits.csv", dataset)
    summary = describe_run(data, dataset, config, fit, transfer)
    return complete(fit, dataset, config, summary, reporter)


def prepare(data: Path, config: TrainConfig, reporter: Reporter) -> Dataset:
    """Find, read, clean and split the images of ``data``."""
    samples = find_samples(data, config.data)
    recipe = decide_recipe(samples, config.image)
    dataset = build_dataset(
        samples,
        recipe,
        config.data,
        seed=config.fit.seed,
        track=reporter.tracker("reading", len(samples)),
    )
    counts = ", ".join(f"{len(dataset.images[name])} {name}" for name in SPLITS)
    reporter.note(f"{data}: {counts} images; classes {', '.join(dataset.classes)}")
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
    return "same pixels as another image" if reason.startswith("same pixels as") else reason


def _require_resumable(folder: Path, config: TrainConfig) -> None:
    written = folder / "config.toml"
    if not (folder / "last.pt").is_file() or not written.is_file():
        raise RunUnfit(f"{folder} holds no run to resume (no last.pt)")
    if written.read_text(encoding="utf-8") != to_toml(config):
        raise RunUnfit(
            f"{folder} was trained with other options; {written} has them: add --config {written}"
        )


def refuse_existing_run(folder: Path, *, overwrite: bool) -> None:
    """Raise `OutputExists` when ``folder`` holds a run that may not be overwritten."""
    if not overwrite and any((folder / name).exists() for name in OUTPUTS):
        raise OutputExists(folder)


def begin(folder: Path, config: TrainConfig) -> None:
    """Remove the outputs of an earlier run and note this one's configuration."""
    try:
        for name in OUTPUTS:
            (folder / name).unlink(missing_ok=True)
    except OSError as cause:
        raise OutputNotWritten(folder, cause) from cause
    write_text(folder / "config.toml", to_toml(config))


def start(
    origin: Origin,
    dataset: Dataset,
    folder: Path,
    config: TrainConfig,
    device: torch.device,
    reporter: Reporter,
    *,
    teacher: Teacher | None = None,
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
    positive = _positive(dataset.classes, config)
    seed = config.fit.seed
    network, loaded = build_network(origin, about, config.network, seed=seed, reporter=reporter)
    pretrained = loaded.tensors > 0
    if not pretrained and config.fit.mode == "head-then-all":
        reporter.note("random weights: all layers are trained from the first epoch")
    fit = Fit(
        network=network,
        about=about,
        train=dataset.split("train"),
        val=dataset.split("val"),
        positive=positive,
        config=config.fit,
        augmentation=config.augment,
        folder=folder,
        device=device,
        pretrained=pretrained,
        teacher=teacher,
    )
    return fit, loaded


def _positive(classes: tuple[str, ...], config: TrainConfig) -> str | None:
    named = config.data.positive
    if named is not None and named not in classes:
        raise UsageError(f"--positive is {named}; the classes are {', '.join(classes)}")
    if len(classes) == 2:
        return named or classes[-1]
    if named is not None:
        raise UsageError(f"--positive is for two classes; there are {len(classes)}")
    return None


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
    What ``metrics.json`` holds.

    Raises
    ------
    Diverged, Interrupted
        What was written until then stays.
    """
    started = time.perf_counter()
    progress = _fit(fit, config, reporter)
    seconds = time.perf_counter() - started
    write_history(fit.folder / "history.csv", progress)
    whole = {**summary, "training": describe_training(fit, seconds)}
    evaluate_run(fit.folder, whole, dataset, config, fit.device, progress)
    return whole


def _fit(fit: Fit, config: TrainConfig, reporter: Reporter) -> FitProgress:
    reporter.note(f"training on {device_name(fit.device)}")
    steps = batches_an_epoch(len(fit.train), config.fit.batch_size)
    left = (config.fit.epochs - fit.progress.epoch) * steps
    try:
        with reporter.fitting(left, config.fit.monitor) as (on_step, on_epoch):
            progress = fit.run(on_epoch, on_step)
    except KeyboardInterrupt as cause:
        if not fit.progress.epoch:
            raise Interrupted("interrupted in the first epoch; nothing to resume yet") from cause
        remedy = (
            f"the same command with --resume goes on from {fit.folder / 'last.pt'}"
            if fit.teacher is None
            else "a distillation starts anew; add --overwrite"
        )
        raise Interrupted(f"interrupted after epoch {fit.progress.epoch}; {remedy}") from cause
    if progress.stopped_early:
        reporter.note(
            f"stopped early: no better {config.fit.monitor} in {config.fit.patience} epochs"
        )
    return progress
