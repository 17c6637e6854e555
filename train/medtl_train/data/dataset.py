"""From samples to clean, split canonical images.

read through the cache -> leave out what is unlabelled, unreadable, repeated or contradictory
-> split by patient, or into folds -> fill covariates -> check
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medtl_runtime.errors import ScanError
from medtl_runtime.heads import Head
from medtl_runtime.recipe import Recipe
from medtl_train.config import DataConfig
from medtl_train.data import checks
from medtl_train.data.cache import ImageCache, Note, cache_root, read_through
from medtl_train.data.covariates import fill_covariates, without_gaps
from medtl_train.data.decoding import Decoded
from medtl_train.data.duplicates import NearDuplicates, handle_near_duplicates, without_copies
from medtl_train.data.images import Excluded, Image, ImageSet, image_set, own_patient, targets_array
from medtl_train.data.labels import heads_of
from medtl_train.data.samples import SPLITS, Found, Sample
from medtl_train.data.splits import folds_by_patient, split_by_patient, strata_of
from medtl_train.errors import DataUnfit


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What cleaning found before the images were split."""

    unlabelled: tuple[Excluded, ...]
    """Left out for a missing label or covariate."""
    unreadable: tuple[Excluded, ...]
    repeated: tuple[Excluded, ...]
    contradicted: tuple[Excluded, ...]
    """The same image with two labels."""
    nearly_repeated: tuple[Excluded, ...]
    near_duplicates: NearDuplicates

    @property
    def excluded(self) -> tuple[Excluded, ...]:
        """All that was left out."""
        return (
            *self.unlabelled,
            *self.unreadable,
            *self.repeated,
            *self.contradicted,
            *self.nearly_repeated,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Everything that training and evaluation use."""

    heads: tuple[Head, ...]
    recipe: Recipe
    images: dict[str, tuple[Image, ...]]
    """By split; ``test`` and ``external`` may be empty."""
    excluded: tuple[Excluded, ...]
    fingerprint: str
    """SHA-256 over the digest, labels and split of every image."""
    patients_known: bool
    covariates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name, how many images lacked it and what was done; see `fill_covariates`."""
    findings: Findings | None = None
    """None for a run that is read again."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the only head."""
        (head,) = self.heads
        return head.classes

    def split(self, name: str) -> ImageSet:
        """Return a split as arrays."""
        return image_set(self.images[name], self.heads)


def build_dataset(
    found: Found,
    recipe: Recipe,
    config: DataConfig,
    *,
    seed: int,
    track: Callable[[Iterable], Iterable] = iter,
    note: Note = lambda _: None,
) -> Dataset:
    """Read, clean and split what was found. With ``--folds`` it is the first fold; see `folds`.

    Parameters
    ----------
    seed
        Of the splits.
    track
        Wraps the iteration over samples, for progress.
    note
        Takes a line for people, now and then.

    Raises
    ------
    DataUnfit
        One class only, a class that training lacks, a patient in two given splits, or nothing
        left to train on.
    OutputNotWritten
        The cache cannot be written.
    """
    own = [sample for sample in found.samples if sample.split != "external"]
    heads = heads_of(found.questions, [sample.labels for sample in own])
    checks.require_known_classes(found.samples, heads)
    labelled, unlabelled = without_gaps(found.samples, found.questions, config)
    cache = ImageCache(cache_root(config.cache), recipe)
    read = read_through(cache, labelled, recipe, readers=config.readers, track=track, note=note)
    images, unreadable = _images(labelled, read)
    images, repeated, contradicted = without_copies(images)
    images, nearly, near = handle_near_duplicates(images, config.near_duplicates)
    findings = Findings(
        unlabelled=tuple(unlabelled),
        unreadable=tuple(unreadable),
        repeated=tuple(repeated),
        contradicted=tuple(contradicted),
        nearly_repeated=tuple(nearly),
        near_duplicates=near,
    )
    if config.folds:
        images = _with_fold(images, heads, config, seed, number=0)
    else:
        images = _with_splits(images, heads, config, seed)
    return _dataset(images, heads, recipe, config, findings)


def folds(dataset: Dataset, config: DataConfig, *, seed: int) -> Iterator[Dataset]:
    """Yield a dataset for each fold of each repeat; the first is ``dataset`` itself.

    Each fold is the test set once, and validation is drawn from the rest: it chooses the
    checkpoint, so it cannot test. The external images are in every dataset. Heads of values,
    imputed covariates and the fingerprint are each dataset's own.

    Parameters
    ----------
    dataset
        As `build_dataset` returned it, with the same ``config`` and ``seed``.
    """
    assert dataset.findings is not None
    images = [replace(i, split=i.sample.split) for n in SPLITS for i in dataset.images[n]]
    heads = tuple(_unscaled(head) for head in dataset.heads)
    # The order that they were read in, because the folds depend on it.
    yield dataset
    for number in range(1, config.folds * config.repeats):
        split = _with_fold(images, heads, config, seed, number=number)
        yield _dataset(split, heads, dataset.recipe, config, dataset.findings)


def _dataset(
    images: Sequence[Image],
    heads: tuple[Head, ...],
    recipe: Recipe,
    config: DataConfig,
    findings: Findings,
) -> Dataset:
    """Check the images of all splits, and fill what depends on those of training."""
    checks.require_one_split_a_patient(images)
    checks.require_answers(images, heads, findings.excluded)
    filled, covariates = fill_covariates(images, config.missing_covariates)
    by_split = {name: tuple(i for i in filled if i.split == name) for name in SPLITS}
    return Dataset(
        heads=_scaled(heads, by_split["train"]),
        recipe=recipe,
        images=by_split,
        excluded=findings.excluded,
        fingerprint=fingerprint_of(filled),
        patients_known=all(image.patient_known for image in filled),
        covariates=covariates,
        findings=findings,
    )


def _scaled(heads: tuple[Head, ...], train: Sequence[Image]) -> tuple[Head, ...]:
    """Give heads of values the mean and standard deviation of the training images."""
    targets = targets_array(train, heads)
    return tuple(
        replace(head, mean=float(np.nanmean(column)), std=float(np.nanstd(column)))
        if head.kind == "regression"
        else head
        for head, column in zip(heads, targets.T, strict=True)
    )


def _unscaled(head: Head) -> Head:
    return replace(head, mean=Head.mean, std=Head.std)


def _images(
    samples: Sequence[Sample], read: Sequence[Decoded | ScanError]
) -> tuple[list[Image], list[Excluded]]:
    """Return all frames of all samples; what cannot be used with its reason."""
    images: list[Image] = []
    excluded: list[Excluded] = []
    for sample, outcome in zip(samples, read, strict=True):
        if isinstance(outcome, ScanError):
            excluded.append(
                Excluded(
                    source=sample.source,
                    label=sample.label,
                    split=sample.split,
                    reason=outcome.reason,
                )
            )
            continue
        patient = sample.patient or outcome.header.patient_id or own_patient(sample)
        images += [
            Image(
                sample=sample,
                frame=frame,
                decoded=outcome,
                patient=patient,
                split=sample.split,
                covariates=sample.covariates,
                group=patient,
            )
            for frame in range(len(outcome.pixels))
        ]
    return images, excluded


def read_all(
    samples: Sequence[Sample],
    recipe: Recipe,
    *,
    track: Callable[[Iterable], Iterable] = iter,
) -> tuple[list[Image], list[Excluded]]:
    """Read and prepare all frames of all samples anew; what cannot be is listed with its reason."""
    return _images(samples, read_through(ImageCache(None, recipe), samples, recipe, track=track))


def _with_splits(
    images: Sequence[Image], heads: Sequence[Head], config: DataConfig, seed: int
) -> list[Image]:
    """Give a split to what has none: all of it, or validation where only a test set is given."""
    given = {image.split for image in images} - {"external"}
    fractions = {"val": config.val_fraction, "test": config.test_fraction}
    wanted = {name: share for name, share in fractions.items() if name not in given and share}
    if given - {""}:
        wanted.pop("test", None)  # the data's own splits are complete but for validation
        checks.require_an_effect(config, wanted)
    if not wanted:
        return [replace(i, split="train") if not i.split else i for i in images]
    free = [i for i, image in enumerate(images) if image.split in ("", "train")]
    names = split_by_patient(
        labels=strata_of(targets_array([images[i] for i in free], heads), heads),
        patients=np.array([images[i].group for i in free]),
        fractions=wanted,
        seed=seed,
    )
    chosen = dict(zip(free, names, strict=True))
    return [replace(image, split=chosen.get(i, image.split)) for i, image in enumerate(images)]


def _with_fold(
    images: Sequence[Image], heads: Sequence[Head], config: DataConfig, seed: int, *, number: int
) -> list[Image]:
    """Give the splits of one fold; those of a repeat follow each other."""
    repeat, fold = divmod(number, config.folds)
    own = sorted(
        (image for image in images if image.split != "external"),
        key=lambda image: (image.sample.source, image.frame),
    )
    if any(image.split for image in own):
        raise DataUnfit("--folds has no effect: the data say which images are in which split")
    names = folds_by_patient(
        labels=strata_of(targets_array(own, heads), heads),
        patients=np.array([image.group for image in own]),
        folds=config.folds,
        val_fraction=config.val_fraction,
        seed=seed + repeat,
    )[fold]
    external = [image for image in images if image.split == "external"]
    return [*(replace(i, split=n) for i, n in zip(own, names, strict=True)), *external]


def fingerprint_of(images: Iterable[Image]) -> str:
    """Return the SHA-256 over the digest, labels and split of every image, in any order."""
    lines = sorted(f"{i.digest} {i.sample.label} {i.split}" for i in images)
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()
