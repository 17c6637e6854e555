"""What ``metrics.json`` and ``history.csv`` say of a run, apart from its evaluation."""

import csv
import io
import platform
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medtl_models.weights import Loaded
from medtl_runtime import __version__
from medtl_runtime.files import write_text
from medtl_train.config import TrainConfig
from medtl_train.dataset import Dataset
from medtl_train.device import device_name
from medtl_train.fit import Fit, Progress
from medtl_train.headers import summarise
from medtl_train.options import flat
from medtl_train.samples import SPLITS


def write_history(path: Path, progress: Progress) -> None:
    """Write a row for each epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(progress.history[0]))
    writer.writeheader()
    writer.writerows(progress.history)
    write_text(path, text.getvalue())


def describe_run(
    data: Path, dataset: Dataset, config: TrainConfig, fit: Fit, transfer: Loaded
) -> dict[str, Any]:
    """Return what is known before the training, as JSON values."""
    images = {
        split: dict(Counter(image.sample.label for image in dataset.images[split]))
        for split in SPLITS
        if dataset.images[split]
    }
    patients = {split: len({i.patient for i in dataset.images[split]}) for split in images}
    return {
        "name": fit.folder.name,
        "medtl_version": __version__,
        "classes": list(dataset.classes),
        "positive": fit.positive,
        "data": {
            "path": str(data),
            "fingerprint": dataset.fingerprint,
            "images": images,
            "patients": patients,
            "patients_known": dataset.patients_known,
            "excluded": [asdict(left) for left in dataset.excluded],
            "headers": summarise([image.header for image in dataset.images["train"]]),
        },
        "recipe": dataset.recipe.to_json(),
        "config": flat(config),
        "network": {
            "arch": fit.about.arch,
            "head": fit.about.head,
            "parameters": sum(p.numel() for p in fit.network.parameters()),
        },
        "transfer": {
            "source": transfer.source,
            "tensors": transfer.tensors,
            "skipped": list(transfer.skipped),
        },
    }


def describe_training(fit: Fit, seconds: float) -> dict[str, Any]:
    """Return what is known of the training after it, as JSON values."""
    progress = fit.progress
    best = progress.history[progress.best_epoch - 1]
    monitor = fit.config.monitor
    return {
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "monitor": monitor,
        "best_value": best["val_loss" if monitor == "loss" else monitor],
        "stopped_early": progress.stopped_early,
        "seconds": round(seconds, 1),
        "device": device_name(fit.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
