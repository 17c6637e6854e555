"""What ``metrics.json`` and ``history.csv`` say of a run, apart from its evaluation."""

import csv
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medtl_models.weights import Loaded
from medtl_runtime import __version__
from medtl_runtime.files import write_text
from medtl_runtime.heads import Head
from medtl_train.config import TrainConfig
from medtl_train.data.dataset import Dataset, Findings
from medtl_train.data.headers import summarise
from medtl_train.data.images import count_targets, targets_array
from medtl_train.data.samples import SPLITS
from medtl_train.device import device_name
from medtl_train.fitting.fit import Fit
from medtl_train.fitting.progress import Progress
from medtl_train.options import flat
from medtl_train.scoring.scored import positive_of


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
    return {
        "name": fit.folder.name,
        "medtl_version": __version__,
        "heads": describe_heads(dataset.heads, config.data.positive),
        "data": describe_data(data, dataset),
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


def describe_heads(heads: Sequence[Head], positive: str | None) -> dict[str, dict[str, Any]]:
    """Return what each head answers, by its name, and the class that it is to find, of two."""
    found = {}
    for head in heads:
        described = head.to_json()
        del described["name"]
        found[head.name] = {**described, "positive": positive_of(head, positive)}
    return found


def describe_data(data: Path, dataset: Dataset) -> dict[str, Any]:
    """Return which images there are and what is known of them."""
    present = [split for split in SPLITS if dataset.images.get(split)]
    by_split = {split: targets_array(dataset.images[split], dataset.heads) for split in present}
    return {
        "path": str(data),
        "fingerprint": dataset.fingerprint,
        "images": {split: len(dataset.images[split]) for split in present},
        "patients": {s: len({image.patient for image in dataset.images[s]}) for s in present},
        "targets": {
            split: {
                head.name: count_targets(head, column)
                for head, column in zip(dataset.heads, targets.T, strict=True)
            }
            for split, targets in by_split.items()
        },
        "patients_known": dataset.patients_known,
        "covariates": {name: dict(account) for name, account in dataset.covariates.items()},
        "excluded": [asdict(left) for left in dataset.excluded],
        "cleaning": _describe_cleaning(dataset.findings),
        "headers": summarise([image.header for image in dataset.images["train"]]),
    }


def _describe_cleaning(findings: Findings | None) -> dict[str, int] | None:
    """Return how many samples were left out, by reason; None for a run that was read again."""
    if findings is None:
        return None
    return {
        "unlabelled": len(findings.unlabelled),
        "unreadable": len(findings.unreadable),
        "repeated": len(findings.repeated),
        "contradicted": len(findings.contradicted),
        "nearly_repeated": len(findings.nearly_repeated),
    }


def describe_training(fit: Fit) -> dict[str, Any]:
    """Return what is known of the training after it, as JSON values."""
    progress = fit.progress
    return {
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "monitor": fit.selection.monitor,
        "best_value": progress.best["monitored"],
        "stopped_early": progress.stopped_early,
        "soup": list(progress.soup),
        "seconds": round(sum(row["seconds"] for row in progress.history), 1),
        "device": device_name(fit.device),
        "execution": fit.execution,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def describe_trainings(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is known of the training of several runs together, from what each says of it."""
    trained = [one["training"] for one in runs]
    return {
        "epochs": sum(one["epochs"] for one in trained),
        "seconds": round(sum(one["seconds"] for one in trained), 1),
        **{key: trained[0][key] for key in ("device", "versions")},
    }
