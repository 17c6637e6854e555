"""Search for options: trials on the validation metric, pruned early, resumable.

prepare the data once -> a trial: draw options, fit, report the metric -> the best trial's run
The test images are evaluated once, by the model that validation chose.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medtl_runtime.errors import UsageError
from medtl_runtime.files import write_text
from medtl_train import checkpoint as checkpoints
from medtl_train.config import TrainConfig
from medtl_train.console import Reporter
from medtl_train.data.dataset import Dataset
from medtl_train.errors import Diverged, MemoryTooSmall
from medtl_train.fitting.fit import Fit
from medtl_train.fitting.progress import EpochRow
from medtl_train.folders import begin, refuse_existing_run
from medtl_train.options import to_toml
from medtl_train.run import complete, prepare, start
from medtl_train.sources import best_origin
from medtl_train.space import Space, drawn, given, space_of
from medtl_train.start import Origin, find_origins
from medtl_train.summary import describe_run

if TYPE_CHECKING:
    import optuna

FOLDER = "search"
_TENTHS = 10
"""At so many points of its training a trial is compared with the others."""
_WARM_UP = 4
"""So many trials run to the end before any is pruned."""


def search(
    data: Path,
    folder: Path,
    config: TrainConfig,
    trials: int,
    *,
    device: torch.device,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Try options, and write the run of those with the best validation metric into ``folder``.

    The first trial has the options as they are given, so that the outcome is at least as good as
    they are, on validation. Trials below the median of the others are pruned.

    Parameters
    ----------
    trials
        How many in all, with those of an interrupted search.

    Returns
    -------
    What ``metrics.json`` holds: that of any run, and ``search`` with a row for each trial.

    Raises
    ------
    As `medtl_train.run.train`.
    """
    import optuna

    reporter = reporter or Reporter(quiet=True)
    trace = folder / FOLDER
    if resume:
        _require_resumable(trace, config)
    else:
        refuse_existing_run(folder, overwrite=overwrite)
    origins = find_origins(config.network)
    dataset = prepare(data, config, reporter)
    origin = best_origin(origins, dataset, config, device, reporter)
    if not resume:
        begin(folder, config)
        shutil.rmtree(trace, ignore_errors=True)
        trace.mkdir()
        write_text(trace / "config.toml", to_toml(config))
    space = space_of(config, dataset.heads, len(dataset.images["train"]))
    study = _study(trace, config, space)
    tried = _Trials(
        origin=origin,
        dataset=dataset,
        trace=trace,
        config=config,
        space=space,
        device=device,
        reporter=reporter,
    )
    left = trials - len(_finished(study))
    if left > 0:
        study.optimize(tried, n_trials=left, catch=(Diverged, MemoryTooSmall))
    if not [one for one in study.trials if one.state == optuna.trial.TrialState.COMPLETE]:
        raise Diverged("no trial of the search came to an end; try a lower --lr")
    return _write_best(study, tried, data, folder)


def _require_resumable(trace: Path, config: TrainConfig) -> None:
    try:
        before = (trace / "config.toml").read_text(encoding="utf-8")
    except OSError as cause:
        raise UsageError(f"{trace.parent} holds no search to resume") from cause
    if before != to_toml(config):
        raise UsageError(f"the search in {trace.parent} was begun with other options")


def _study(trace: Path, config: TrainConfig, space: Space) -> "optuna.Study":
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(trace / "journal.log")))
    study = optuna.create_study(
        study_name="medtl",
        storage=storage,
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_WARM_UP, n_warmup_steps=2),
    )
    # An interrupted trial is of no use; the sampler must not draw again what it drew before it.
    done = len(study.trials)
    seed = config.fit.seed + 1000 * done
    study.sampler = optuna.samplers.TPESampler(
        seed=seed, multivariate=True, n_startup_trials=2 * _WARM_UP
    )
    if not _finished(study):
        study.enqueue_trial(given(config, space))
    return study


def _finished(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    return [one for one in study.trials if one.state.is_finished()]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Trials:
    """Runs trials; an object, because Optuna calls it with a trial only."""

    origin: Origin
    dataset: Dataset
    trace: Path
    config: TrainConfig
    space: Space
    device: torch.device
    reporter: Reporter

    def folder(self, number: int) -> Path:
        """Return where a trial's checkpoints are."""
        return self.trace / f"trial-{number}"

    def __call__(self, trial: "optuna.Trial") -> float:
        config = drawn(trial, self.config, self.space)
        folder = self.folder(trial.number)
        folder.mkdir(exist_ok=True)
        fit = self.fit(config, folder)
        self.reporter.note(f"trial {trial.number}: {_words(trial.params)}")
        monitor = fit.selection.monitor
        with self.reporter.fitting(fit.steps_left, monitor) as (on_step, _):
            progress = fit.run(_pruning(trial, fit), on_step)
        self.reporter.note(f"trial {trial.number}: {monitor} {progress.best['monitored']:.4f}")
        return progress.best_score[0]

    def fit(self, config: TrainConfig, folder: Path) -> Fit:
        """Return a fit of a configuration, ready to run."""
        quiet = Reporter(quiet=True)
        return start(self.origin, self.dataset, folder, config, self.device, quiet)[0]


def _pruning(trial: "optuna.Trial", fit: Fit) -> Callable[[EpochRow], None]:
    """Return what is called after each epoch: it ends a trial that is below the others."""
    import optuna

    best, reported = -float("inf"), 0

    def on_epoch(row: EpochRow) -> None:
        nonlocal best, reported
        if not row["lr"]:
            return  # a head that was solved for says nothing of the options
        best = max(best, fit.selection.score(row)[0])
        # Trials of different lengths are compared at the same part of theirs.
        part = _TENTHS * row["epoch"] // fit.config.fit.epochs
        if part == reported:
            return
        reported = part
        trial.report(best, part)
        if trial.should_prune():
            raise optuna.TrialPruned

    return on_epoch


def _write_best(study: "optuna.Study", tried: _Trials, data: Path, folder: Path) -> dict[str, Any]:
    """Make the best trial's run the run of the folder, and evaluate it."""
    best = study.best_trial
    config = drawn(best, tried.config, tried.space)
    tried.reporter.note(f"the best of {len(_finished(study))} trials is {best.number}")
    begin(folder, config)
    for name in ("best.pt", "last.pt"):
        shutil.copyfile(tried.folder(best.number) / name, folder / name)
    fit, transfer = start(tried.origin, tried.dataset, folder, config, tried.device, tried.reporter)
    fit.resume(checkpoints.load(folder / "last.pt"))
    summary = describe_run(data, tried.dataset, config, fit, transfer)
    summary["search"] = {"best": best.number, "trials": [_row(one) for one in _finished(study)]}
    return complete(fit, tried.dataset, config, summary, tried.reporter)


def _row(trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value,
        **trial.params,
    }


def _words(parameters: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in parameters.items()
    )
