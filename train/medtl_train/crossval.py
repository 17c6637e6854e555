"""Cross-validation: every image is tested once by a network that has not seen its patient.

prepare the data once -> a run for each fold of each repeat -> their test images together

What it gives is an estimate of the recipe, and no network to use: that is trained on all of the
data, with a test set of its own, or as an ensemble (`--ensemble folds`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from medtl_runtime import __version__
from medtl_runtime.files import write_text
from medtl_train import predictions
from medtl_train.assessment import assess
from medtl_train.config import DataConfig, TrainConfig
from medtl_train.console import Reporter
from medtl_train.dataset import Dataset, folds
from medtl_train.finished import read_summary
from medtl_train.options import flat
from medtl_train.report import write_report
from medtl_train.run import begin, prepare, require_free, train_on
from medtl_train.scored import default_point
from medtl_train.sources import best_origin
from medtl_train.start import find_origins
from medtl_train.summary import describe_data, describe_heads

FOLDS = "folds"


def cross_validate(
    data: Path,
    folder: Path,
    config: TrainConfig,
    *,
    device: torch.device,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train and test a network for each fold, and write what they say together into ``folder``.

    Folds are runs in ``folds/1`` and so on. With ``resume``, those that are finished stay.

    Returns
    -------
    What ``metrics.json`` holds: ``test``, of all images of all folds; and ``folds``, the test
    metrics of each.

    Raises
    ------
    As `medtl_train.run.train`.
    """
    reporter = reporter or Reporter(quiet=True)
    require_free(folder, config, resume=resume, overwrite=overwrite, begun=FOLDS)
    origins = find_origins(config.network)
    dataset = prepare(data, config, reporter)
    if not resume:
        begin(folder, config)
    own = replace(config, data=replace(config.data, folds=0, repeats=DataConfig.repeats))
    summaries = []
    for number, part in enumerate(folds(dataset, config.data, seed=config.fit.seed), start=1):
        reporter.note(f"fold {number} of {config.data.folds * config.data.repeats}")
        run = folder / FOLDS / str(number)
        if resume and (run / "metrics.json").is_file():
            summaries.append(read_summary(run))
            continue
        interrupted = resume and (run / "last.pt").is_file()
        origin = best_origin(origins, part, config, device, reporter)
        found = train_on(
            data, part, origin, run, own, device=device, resume=interrupted, reporter=reporter
        )
        summaries.append(found)
    summary = _describe(data, folder, dataset, config, summaries)
    return _evaluate(folder, summary, dataset, config)


def _describe(
    data: Path,
    folder: Path,
    dataset: Dataset,
    config: TrainConfig,
    folds: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what is known before the folds are put together, as JSON values."""
    first = folds[0]
    trained = [one["training"] for one in folds]
    return {
        "name": folder.name,
        "medtl_version": __version__,
        "heads": {
            name: {**one, "temperature": None, "operating_point": None}
            for name, one in describe_heads(dataset.heads, config.data.positive).items()
        },
        "data": describe_data(data, dataset),
        "config": flat(config),
        **{key: first[key] for key in ("recipe", "network", "transfer")},
        "training": {
            "epochs": sum(one["epochs"] for one in trained),
            "seconds": round(sum(one["seconds"] for one in trained), 1),
            **{key: trained[0][key] for key in ("device", "versions")},
        },
        "validation": None,
        "external": None,
        "folds": [
            {"run": f"{FOLDS}/{number}", "test": one["test"]}
            for number, one in enumerate(folds, start=1)
        ],
    }


def _evaluate(
    folder: Path, summary: dict[str, Any], dataset: Dataset, config: TrainConfig
) -> dict[str, Any]:
    """Add what the folds' test images say together, and write it.

    Each fold's probabilities are calibrated on its own validation images, which makes them
    comparable; decisions are those of the more probable class, since each fold chose an operating
    point of its own. An image counts once a repeat; the bootstrap draws patients.
    """
    rows = pl.concat(
        predictions.read(folder / one["run"], "test", dataset.heads) for one in summary["folds"]
    )
    answers = {
        head.name: predictions.answers_of(rows, head, default_point(head, config.data.positive))
        for head in dataset.heads
    }
    patients = rows["patient"].to_numpy().astype(np.str_)
    summary["test"] = assess(answers, patients, seed=config.fit.seed)
    rows.write_parquet(folder / predictions.NAME)
    write_text(folder / "metrics.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_report(
        folder / "report.html",
        metrics=summary,
        history=(),
        answers={"test": answers},
        examples=(),
    )
    return summary
