"""Distillation: a student network learns from a finished run's, on that run's images.

read the teacher -> read its images again -> fit the student to both -> evaluate, as any run
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medtl_models.architectures import ARCHITECTURES
from medtl_models.ensemble import Classifier
from medtl_models.weights import imagenet_file
from medtl_runtime.errors import UsageError
from medtl_runtime.files import written_whole
from medtl_runtime.modelfile import file_digest
from medtl_train import checkpoint as checkpoints
from medtl_train.checkpoint import About
from medtl_train.config import DistilConfig, TrainConfig
from medtl_train.config.effects import idle_options
from medtl_train.console import Reporter
from medtl_train.finished import read_config, read_dataset, read_summary
from medtl_train.fitting.objective import Teacher
from medtl_train.folders import begin, refuse_existing_run
from medtl_train.options import config_from, flat
from medtl_train.run import complete, start
from medtl_train.start import find_origins
from medtl_train.summary import describe_run


@dataclass(frozen=True, kw_only=True, eq=False)
class _Taught:
    """The teacher's run as it was found."""

    network: Classifier
    about: About
    summary: dict[str, Any]
    config: TrainConfig
    digest: str
    splits: bytes


def distil(
    run: Path,
    folder: Path,
    arch: str,
    settings: DistilConfig,
    *,
    device: torch.device,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train a student on a run's outputs, and write it into ``folder`` as a run of its own.

    Images, splits, recipe, augmentation and options are the teacher's; all layers are trained from
    the first epoch. The loss is alpha times the labels' and (1 - alpha) times T^2 KL to the
    teacher's softened probabilities (Hinton, Vinyals and Dean, 2015), which the teacher gives to
    the batch as the student sees it (Beyer et al., CVPR 2022).

    Parameters
    ----------
    run
        The teacher: a finished run, whose images must still be where its ``splits.csv`` says.
    folder
        Of the student; not the teacher's.
    arch
        The student's architecture, one of `ARCHITECTURES`.

    Returns
    -------
    What the student's ``metrics.json`` holds: that of any run, and ``distillation`` with
    ``temperature``, ``alpha`` and ``teacher`` (name, arch, parameters, digest of its best.pt, its
    validation and test metrics; None without a test split; and those of its ``members``, if it is
    an ensemble).

    Raises
    ------
    UsageError
        No such architecture, no finished run, or no such weights; `CheckpointUnusable` and
        `WeightsUnfit` among them.
    ImagesMissing
        Images of the run are gone or have changed.
    OutputExists
        ``folder`` holds a run and ``overwrite`` is not set.
    Diverged, Interrupted
        As in `medtl_train.run.train`; it cannot be resumed.
    """
    reporter = reporter or Reporter(quiet=True)
    if arch not in ARCHITECTURES:
        raise UsageError(f"the student is a {arch}; expected {', '.join(ARCHITECTURES)}")
    if folder.resolve() == run.resolve():
        raise UsageError(f"{folder} is the teacher's; name another folder for the student")
    refuse_existing_run(folder, overwrite=overwrite)
    taught = _read_teacher(run)
    config = _student_config(taught.config, arch, settings, reporter)
    (origin,) = find_origins(config.network)
    reporter.note(f"reading the images of {run} again")
    dataset = read_dataset(run, taught.about, taught.summary)
    teacher = Teacher(
        network=taught.network.to(device),
        heads=taught.about.heads,
        temperature=settings.temperature,
        alpha=settings.alpha,
    )
    fit, transfer = start(origin, dataset, folder, config, device, reporter, teacher=teacher)
    _note_sizes(taught.network, fit.network, reporter)
    # Nothing of an earlier run is touched before all that can be refused has been.
    begin(folder, config)
    with written_whole(folder / "splits.csv") as part:
        part.write_bytes(taught.splits)
    data = Path(taught.summary["data"]["path"])
    summary = describe_run(data, dataset, config, fit, transfer)
    summary["data"] = taught.summary["data"]  # the very images, with what cleaning found of them
    summary["distillation"] = _describe(taught, settings)
    return complete(fit, dataset, config, summary, reporter)


def is_student(folder: Path, run: Path, arch: str) -> bool:
    """Whether ``folder`` is a finished run of that architecture, distilled from ``run``."""
    try:
        summary = read_summary(folder)
        teacher = summary["distillation"]["teacher"]["digest"]
        return summary["network"]["arch"] == arch and teacher == file_digest(run / "best.pt")
    except (UsageError, LookupError, TypeError, OSError):
        return False


def _read_teacher(run: Path) -> _Taught:
    saved, summary = checkpoints.load_run(run), read_summary(run)
    try:
        splits = (run / "splits.csv").read_bytes()
    except OSError as cause:
        raise UsageError(f"{run / 'splits.csv'} cannot be read") from cause
    return _Taught(
        network=saved.restore(),
        about=saved.about,
        summary=summary,
        config=read_config(run, summary),
        digest=file_digest(run / "best.pt"),
        splits=splits,
    )


def _student_config(
    teacher: TrainConfig, arch: str, settings: DistilConfig, reporter: Reporter
) -> TrainConfig:
    """Return the teacher's options with the student's network and all layers in training."""
    weights = settings.weights
    if weights is None:
        weights = "imagenet" if imagenet_file(arch).is_file() else "none"
        if weights == "none":
            reporter.note(
                f"the student starts from random weights: torchvision's of {arch} are not at "
                f"{imagenet_file(arch)}"
            )
    given = {"epochs": settings.epochs, "lr": settings.lr}
    options = flat(teacher) | {name: v for name, v in given.items() if v is not None}
    options |= {"arch": arch, "weights": weights, "from_run": (), "mode": "all"}
    # They are about the teacher's network, or networks, and the weights that they began with.
    without = ["freeze", "batch_norm", "drop_path", "ensemble", "members"]
    without += ["l2_sp"] if weights == "none" else []
    # What has no effect when all layers are trained would be refused.
    dropped = {*without, *idle_options(options)}
    return config_from({name: v for name, v in options.items() if name not in dropped})


def _note_sizes(teacher: Classifier, student: Classifier, reporter: Reporter) -> None:
    large, small = _parameters(teacher), _parameters(student)
    reporter.note(
        f"distilling {teacher.arch} ({large:,} parameters) into {student.arch} ({small:,})"
    )
    if small >= large:
        reporter.note("caution: the student is not smaller than its teacher")


def _parameters(network: Classifier) -> int:
    return sum(p.numel() for p in network.parameters())


def _describe(taught: _Taught, settings: DistilConfig) -> dict[str, Any]:
    summary = taught.summary
    return {
        "temperature": settings.temperature,
        "alpha": settings.alpha,
        "teacher": {
            "name": summary["name"],
            "arch": taught.about.arch,
            "parameters": _parameters(taught.network),
            "digest": taught.digest,
            "validation": _metrics(summary["validation"]),
            "test": _metrics(summary["test"]),
            "members": [
                {
                    "run": one["run"],
                    "validation": _metrics(one["validation"]),
                    "test": _metrics(one["test"]),
                }
                for one in summary.get("members", [])
            ],
        },
    }


def _metrics(evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the metrics of each head, by its name; None without images."""
    if evaluation is None:
        return None
    return {name: found["metrics"] for name, found in evaluation["heads"].items()}
