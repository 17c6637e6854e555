"""The folder of a run: what is written into it, and when it may be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from medtl_runtime.errors import OutputExists, OutputNotWritten, UsageError
from medtl_runtime.files import write_text
from medtl_train.config import TrainConfig
from medtl_train.errors import RunUnfit
from medtl_train.finished import is_finished, read_summary
from medtl_train.options import to_toml

OUTPUTS = (
    "best.pt",
    "last.pt",
    "config.toml",
    "metrics.json",
    "predictions.parquet",
    "history.csv",
    "splits.csv",
    "report.html",
    "cleaning.json",
    "cleaning.html",
)


def require_free(
    folder: Path, config: TrainConfig, *, resume: bool, overwrite: bool, begun: str = "last.pt"
) -> None:
    """Raise unless a run of this configuration may be written; see `medtl_train.run.train`.

    Parameters
    ----------
    begun
        What is in the folder of a run that can be resumed.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other; give one")
    if resume:
        _require_resumable(folder, config, begun)
    else:
        refuse_existing_run(folder, overwrite=overwrite)


def _require_resumable(folder: Path, config: TrainConfig, begun: str) -> None:
    written = folder / "config.toml"
    if not (folder / begun).exists() or not written.is_file():
        raise RunUnfit(f"{folder} holds no run to resume (no {begun})")
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


def train_unless_finished(
    folder: Path, train: Callable[[bool], dict[str, Any]], *, resume: bool
) -> dict[str, Any]:
    """Return what ``metrics.json`` of a run holds that is one of several; train it if need be.

    Parameters
    ----------
    train
        Trains the run; takes whether to resume it, and returns what ``metrics.json`` holds.
    resume
        Leave the run as it is where it is finished, and resume it where it was interrupted.
    """
    if resume and is_finished(folder):
        return read_summary(folder)
    return train(resume and (folder / "last.pt").is_file())
