"""Evaluates the best checkpoint of a run and writes its figures, predictions and report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medtl_runtime.calibration import Criterion, choose_point, head_temperature
from medtl_runtime.decision import OperatingPoint
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head, columns_of
from medtl_train import checkpoint as checkpoints
from medtl_train.config import EvaluationConfig, TrainConfig
from medtl_train.data.dataset import Dataset
from medtl_train.data.images import ImageSet
from medtl_train.evaluation import predictions
from medtl_train.evaluation.examples import choose_examples
from medtl_train.evaluation.report import write_report
from medtl_train.evaluation.subgroups import all_groups, evaluate_by_head
from medtl_train.finished import write_summary
from medtl_train.fitting.predict import predict_logits
from medtl_train.fitting.progress import EpochRow
from medtl_train.scoring.assessment import assess
from medtl_train.scoring.scored import Answers, default_point, positive_of, score

SPLITS = {"val": "validation", "test": "test", "external": "external"}
"""The splits that are evaluated, by what ``metrics.json`` calls them."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What was fitted on the validation images, by the name of the head."""

    temperatures: Mapping[str, float]
    points: Mapping[str, OperatingPoint]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Split:
    """What the network says of a split."""

    images: ImageSet
    logits: NDArray[np.float32]
    answers: Mapping[str, Answers]


def require_effect(config: EvaluationConfig, heads: Sequence[Head]) -> None:
    """Raise `UsageError` if an operating point was asked for and no head has one to choose."""
    asked = config.operating_point != EvaluationConfig.operating_point
    if asked and not any(positive_of(head) for head in heads):
        raise UsageError(
            f"--operating-point {config.operating_point} has no effect: no label has two classes"
        )


def evaluate_run(
    folder: Path,
    summary: dict[str, Any],
    dataset: Dataset,
    config: TrainConfig,
    device: torch.device,
    history: Sequence[EpochRow],
) -> None:
    """Evaluate the best checkpoint; add the figures to ``summary`` and write all files.

    Temperatures and operating points are fitted on the validation images first: all figures are of
    the calibrated model, as it will run. docs/evaluation.md has the form of ``metrics.json``.
    """
    network = checkpoints.load(folder / "best.pt").restore().to(device)
    sets = {
        name: dataset.split(split) for split, name in SPLITS.items() if dataset.images.get(split)
    }
    logits = {name: predict_logits(network, one.pixels, device) for name, one in sets.items()}
    fitted = fit_decisions(
        dataset.heads,
        logits["validation"],
        sets["validation"].targets,
        criterion=config.evaluation.criterion(),
        positive=config.data.positive,
    )
    splits = {
        name: _answered(dataset.heads, images, logits[name], fitted)
        for name, images in sets.items()
    }
    _describe(summary, dataset, fitted, splits, seed=config.fit.seed)
    _write_predictions(folder / predictions.NAME, dataset, fitted, splits)
    shown = splits.get("test", splits["validation"])
    write_report(
        folder / "report.html",
        metrics=summary,
        history=history,
        answers={name: split.answers for name, split in splits.items()},
        examples=choose_examples(network, dataset.heads, shown.images, shown.answers, device),
    )
    write_summary(folder, summary)  # last: a run that has it is finished


def _answered(
    heads: Sequence[Head], images: ImageSet, logits: NDArray[np.float32], fitted: Fitted
) -> _Split:
    answers = score(
        heads,
        logits,
        images.targets,
        images.patients,
        temperatures=fitted.temperatures,
        points=fitted.points,
    )
    return _Split(images=images, logits=logits, answers=answers)


def fit_decisions(
    heads: Sequence[Head],
    logits: NDArray[np.floating],
    targets: NDArray[np.floating],
    *,
    criterion: Criterion,
    positive: str | None,
) -> Fitted:
    """Return temperatures and operating points that serve the validation images best.

    Parameters
    ----------
    logits, targets
        Of the validation images, N x `width(heads)` and N x heads; NaN where it is not known.
    positive
        Of a head with two alternatives, the one to find; None for its second.
    """
    temperatures, points = {}, {}
    for head, columns, truth in zip(heads, columns_of(heads), targets.T, strict=True):
        own = logits[:, columns]
        temperatures[head.name] = head_temperature(head, own, truth)
        points[head.name] = _point(
            head, own, truth, temperatures[head.name], criterion, positive_of(head, positive)
        )
    return Fitted(temperatures=temperatures, points=points)


def _point(
    head: Head,
    logits: NDArray[np.floating],
    truth: NDArray[np.floating],
    temperature: float,
    criterion: Criterion,
    positive: str | None,
) -> OperatingPoint:
    if positive is None:
        chosen = {"multiclass": "the most probable class", "ordinal": "the median grade"}
        return replace(default_point(head), chosen=chosen.get(head.kind, ""))
    if len(np.unique(truth[~np.isnan(truth)])) < 2:
        reason = "the more probable class: validation images of one class leave no choice"
        return replace(default_point(head, positive), chosen=reason)
    chances = head.probabilities(logits, temperature)
    return choose_point(head, truth, chances, positive=positive, criterion=criterion)


def _describe(
    summary: dict[str, Any],
    dataset: Dataset,
    fitted: Fitted,
    splits: Mapping[str, _Split],
    *,
    seed: int,
) -> None:
    """Add the figures to what ``metrics.json`` holds."""
    for name, described in summary["heads"].items():
        described["temperature"] = fitted.temperatures[name]
        described["operating_point"] = asdict(fitted.points[name])
    for name in SPLITS.values():
        split = splits.get(name)
        summary[name] = split and assess(split.answers, split.images.patients, seed=seed)
    counted = [name for name in ("test", "external") if name in splits] or ["validation"]
    summary["subgroups"] = {
        name: _subgroups(dataset, name, splits[name], seed=seed) for name in counted
    }


def _subgroups(dataset: Dataset, name: str, split: _Split, *, seed: int) -> dict[str, Any]:
    """Return the rows of each head."""
    (key,) = [key for key, called in SPLITS.items() if called == name]
    images = dataset.images[key]
    groups = all_groups([one.header for one in images], [one.covariates for one in images])
    return evaluate_by_head(split.answers, split.images.targets, groups, seed=seed)


def _write_predictions(
    path: Path, dataset: Dataset, fitted: Fitted, splits: Mapping[str, _Split]
) -> None:
    tables = [
        predictions.table(
            name,
            dataset.images[key],
            dataset.heads,
            splits[name].images.targets,
            splits[name].logits,
            fitted.temperatures,
        )
        for key, name in SPLITS.items()
        if name in splits
    ]
    predictions.write(path, tables)
