"""Several networks trained on one data set, to answer as one.

prepare the data once -> members, each a run of its own -> one checkpoint of all -> evaluate it

Validation and test images are the same for all and belong to no member's training, so that the
ensemble's temperature and operating point are as honest as those of a single network.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medtl_runtime.heads import Head, columns_of
from medtl_train import checkpoint as checkpoints
from medtl_train.checkpoint import Checkpoint
from medtl_train.config import EnsembleConfig, TrainConfig
from medtl_train.console import Reporter
from medtl_train.data.dataset import Dataset, fingerprint_of
from medtl_train.data.images import Image, targets_array
from medtl_train.data.listing import write_splits
from medtl_train.data.splits import fold_numbers, strata_of
from medtl_train.errors import DataUnfit
from medtl_train.evaluation.evaluate import evaluate_run
from medtl_train.fitting.predict import predict_logits
from medtl_train.folders import begin, require_free, train_unless_finished
from medtl_train.options import flat
from medtl_train.run import prepare, train_on
from medtl_train.sources import best_origin
from medtl_train.start import Origin, find_origins
from medtl_train.summary import describe_data, describe_trainings

MEMBERS = "members"
_EASIEST = 0.1
"""What an image that all members have right still weighs, of one that they have wrong."""
_ATTEMPTS = 100
"""So often images are drawn until every class is among them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What the members have in common."""

    data: Path
    dataset: Dataset
    origin: Origin
    folder: Path
    config: TrainConfig
    device: torch.device
    reporter: Reporter


def train_ensemble(
    data: Path,
    folder: Path,
    config: TrainConfig,
    *,
    device: torch.device,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train the members of an ensemble and write it into ``folder``, a run like any other.

    Members are runs in ``members/1`` and so on. With ``resume``, those that are finished stay.

    Returns
    -------
    What ``metrics.json`` holds: that of any run, and ``members`` with the evaluation of each.

    Raises
    ------
    As `medtl_train.run.train`.
    """
    reporter = reporter or Reporter(quiet=True)
    require_free(folder, config, resume=resume, overwrite=overwrite, begun=MEMBERS)
    origins = find_origins(config.network)
    dataset = prepare(data, config, reporter)
    work = _Work(
        data=data,
        dataset=dataset,
        origin=best_origin(origins, dataset, config, device, reporter),
        folder=folder,
        config=config,
        device=device,
        reporter=reporter,
    )
    if not resume:
        begin(folder, config)
    write_splits(folder / "splits.csv", work.dataset)
    summaries: list[dict[str, Any]] = []
    saved: list[Checkpoint] = []
    for number in range(1, config.ensemble.members + 1):
        reporter.note(f"member {number} of {config.ensemble.members}")
        summaries.append(_member(work, number, saved, resume=resume))
        saved.append(checkpoints.load_run(_folder(folder, number)))
    checkpoints.save(folder / "best.pt", joined(saved, work.dataset.fingerprint))
    summary = _describe(work, summaries)
    evaluate_run(folder, summary, work.dataset, config, device, history=())
    return summary


def _describe(work: _Work, members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what is known of the ensemble before it is evaluated, as JSON values."""
    first = members[0]
    parameters = sum(one["network"]["parameters"] for one in members)
    return {
        **{key: first[key] for key in ("medtl_version", "heads", "recipe", "transfer")},
        "name": work.folder.name,
        "data": describe_data(work.data, work.dataset),
        "config": flat(work.config),
        "network": {**first["network"], "parameters": parameters},
        "training": describe_trainings(members),
        "members": [
            {
                "run": f"{MEMBERS}/{number}",
                **{key: one[key] for key in ("validation", "test", "external")},
            }
            for number, one in enumerate(members, start=1)
        ],
    }


def _folder(folder: Path, number: int) -> Path:
    return folder / MEMBERS / str(number)


def _member(
    work: _Work, number: int, before: Sequence[Checkpoint], *, resume: bool
) -> dict[str, Any]:
    """Train a member, unless it is finished; return what its ``metrics.json`` holds."""
    folder = _folder(work.folder, number)
    fit = replace(work.config.fit, seed=work.config.fit.seed + number - 1)

    def member(resume: bool) -> dict[str, Any]:
        return train_on(
            work.data,
            member_data(work.dataset, work.config, number, before, work.device),
            work.origin,
            folder,
            replace(work.config, fit=fit, ensemble=EnsembleConfig()),
            device=work.device,
            resume=resume,
            reporter=work.reporter,
        )

    return train_unless_finished(folder, member, resume=resume)


def joined(members: Sequence[Checkpoint], fingerprint: str) -> Checkpoint:
    """Return the checkpoint of an ensemble; ``fingerprint`` is that of its data.

    Of a single member it is that member's own.
    """
    if len(members) == 1:
        return members[0]
    about = replace(members[0].about, members=len(members), fingerprint=fingerprint)
    states = {
        f"members.{index}.{name}": tensor
        for index, member in enumerate(members)
        for name, tensor in member.network.items()
    }
    return Checkpoint(about=about, network=states)


def member_data(
    dataset: Dataset,
    config: TrainConfig,
    number: int,
    before: Sequence[Checkpoint],
    device: torch.device,
) -> Dataset:
    """Return what a member of an ensemble is trained on.

    Parameters
    ----------
    number
        Of the member, from 1.
    before
        The members that are trained already; boosting looks at what they have wrong.
    device
        Where they run.

    Raises
    ------
    DataUnfit
        There are so few images of a class that draws miss it.
    """
    kind, seed = config.ensemble.ensemble, [config.fit.seed, number]
    if kind == "folds":
        return _fold(dataset, number, config)
    if kind == "bags":
        return _drawn(dataset, seed, _bag)
    if kind == "boosted" and before:
        weights = _hardness(dataset, joined(before, dataset.fingerprint), device)
        return _drawn(dataset, seed, lambda images, draw: _by_weight(len(images), weights, draw))
    return dataset


def _fold(dataset: Dataset, number: int, config: TrainConfig) -> Dataset:
    """Return the data set with a fold of the training patients in place of the validation ones."""
    images = dataset.images["train"]
    folds = fold_numbers(
        labels=strata_of(targets_array(images, dataset.heads), dataset.heads),
        patients=np.array([image.group for image in images]),
        folds=config.ensemble.members,
        seed=config.fit.seed,
    )
    kept = tuple(image for image, fold in zip(images, folds, strict=True) if fold != number - 1)
    held_out = tuple(image for image, fold in zip(images, folds, strict=True) if fold == number - 1)
    return _with(dataset, train=kept, val=held_out)


def _with(dataset: Dataset, **changed: tuple[Image, ...]) -> Dataset:
    images = {**dataset.images, **changed}
    every = [image for some in images.values() for image in some]
    return replace(dataset, images=images, fingerprint=fingerprint_of(every))


Draw = Callable[[Sequence[Image], np.random.Generator], NDArray[np.intp]]


def _drawn(dataset: Dataset, seed: Sequence[int], draw: Draw) -> Dataset:
    """Return the data set with training images drawn with replacement; every class stays in it."""
    images = dataset.images["train"]
    generator = np.random.default_rng(seed)
    wanted = _answers(images, range(len(images)), dataset.heads)
    for _ in range(_ATTEMPTS):
        indices = draw(images, generator)
        if _answers(images, indices, dataset.heads) == wanted:
            return _with(dataset, train=tuple(images[i] for i in indices))
    raise DataUnfit("too few training images of a class to draw from; use --ensemble seeds")


def _answers(
    images: Sequence[Image], indices: Iterable[int], heads: Sequence[Head]
) -> set[tuple[int, str]]:
    """Return every class that some of the images are of, by head; values are not counted."""
    classes = {k for k, head in enumerate(heads) if head.classes}
    return {(k, images[i].sample.labels[k]) for i in indices for k in classes}


def _bag(images: Sequence[Image], draw: np.random.Generator) -> NDArray[np.intp]:
    """Draw patients with replacement, each with all images (Breiman, Machine Learning 1996)."""
    by_patient: dict[str, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_patient[image.patient].append(index)
    own = list(by_patient.values())
    drawn = draw.integers(len(own), size=len(own))
    return np.array([index for patient in drawn for index in own[patient]])


def _by_weight(
    count: int, weights: NDArray[np.float64], draw: np.random.Generator
) -> NDArray[np.intp]:
    return draw.choice(count, size=count, p=weights / weights.sum())


def _hardness(dataset: Dataset, ensemble: Checkpoint, device: torch.device) -> NDArray[np.float64]:
    """Return what each training image weighs in the next member's draw, (N,).

    An image that the members before have right weighs `_EASIEST`, one that they have wrong 1: the
    weight rises with 1 - p(truth), and for values with the error over the largest one, as in
    AdaBoost.R2 (Drucker, ICML 1997). The mean over the heads whose truth is known counts.
    """
    images = dataset.split("train")
    network = ensemble.restore().to(device)
    logits = predict_logits(network, images.pixels, device)
    wrong = np.full(images.targets.shape, np.nan)
    for k, (head, columns) in enumerate(zip(dataset.heads, columns_of(dataset.heads), strict=True)):
        known = np.flatnonzero(np.isfinite(images.targets[:, k]))
        truth, found = images.targets[known, k], logits[known, columns]
        if head.kind == "regression":
            errors = np.abs(head.values(found) - truth)
            wrong[known, k] = errors / max(errors.max(initial=0), np.finfo(float).tiny)
        else:
            wrong[known, k] = (
                1 - head.probabilities(found)[np.arange(len(known)), truth.astype(int)]
            )
    return _EASIEST + (1 - _EASIEST) * np.nanmean(wrong, axis=1)
