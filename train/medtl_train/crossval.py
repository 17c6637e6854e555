"""Cross-validation: every image is tested once by a network that has not seen its patient.

prepare the data once -> a run for each fold of each repeat -> their test images together

What it gives is an estimate of the recipe, and no network to use: that is trained on all of the
data, with a test set of its own, or as an ensemble (`--ensemble folds`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medtl_runtime import __version__
from medtl_train.config import DataConfig, TrainConfig
from medtl_train.console import Reporter
from medtl_train.data.dataset import Dataset, folds
from medtl_train.evaluation import predictions
from medtl_train.evaluation.report import write_report
from medtl_train.finished import write_summary
from medtl_train.folders import begin, require_free, train_unless_finished
from medtl_train.options import flat
from medtl_train.run import prepare, train_on
from medtl_train.scoring.assessment import assess
from medtl_train.scoring.scored import default_point
from medtl_train.sources import best_origin
from medtl_train.start import find_origins
from medtl_train.summary import describe_data, describe_heads, describe_trainings

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
    metrics of each, and those of the external images, of which every fold tests all.

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

        def fold(resume: bool, part: Dataset = part, run: Path = run) -> dict[str, Any]:
            origin = best_origin(origins, part, config, device, reporter)
            return train_on(
                data, part, origin, run, own, device=device, resume=resume, reporter=reporter
            )

        summaries.append(train_unless_finished(run, fold, resume=resume))
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
        "training": describe_trainings(folds),
        "validation": None,
        "external": None,
        "folds": [
            {"run": f"{FOLDS}/{number}", "test": one["test"], "external": one["external"]}
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
    tables = [
        predictions.read(folder / one["run"], "test", dataset.heads) for one in summary["folds"]
    ]
    predictions.write(folder / predictions.NAME, tables)
    rows = predictions.read(folder, "test", dataset.heads)
    answers = {
        head.name: predictions.answers_of(rows, head, default_point(head, config.data.positive))
        for head in dataset.heads
    }
    patients = rows["patient"].to_numpy().astype(np.str_)
    summary["test"] = assess(answers, patients, seed=config.fit.seed)
    write_report(
        folder / "report.html",
        metrics=summary,
        history=(),
        answers={"test": answers},
        examples=(),
    )
    write_summary(folder, summary)
    return summary
