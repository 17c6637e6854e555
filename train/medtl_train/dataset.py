"""From samples to clean, split canonical images in memory.

read -> leave out what is unreadable, duplicated or contradictory -> split by patient -> check
"""

import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import ScanError
from medtl_runtime.files import write_text
from medtl_runtime.heads import Head
from medtl_runtime.recipe import Recipe
from medtl_runtime.scan import Frame, Header
from medtl_train.config import DataConfig
from medtl_train.errors import DataUnfit
from medtl_train.samples import SPLITS, Sample, class_names
from medtl_train.splits import split_by_patient

# A duplicate is kept where it does the evaluation no harm.
_KEEP_FIRST = {"test": 0, "val": 1, "train": 2, "": 3}


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """One frame of a sample, read and prepared."""

    sample: Sample
    frame: int
    pixels: NDArray[np.uint16]
    """Canonical, C x H x W."""
    digest: str
    """SHA-256 of the modality values and their shape: the same image has the same digest,
    whatever its header or file format says."""
    patient: str
    header: Header
    split: str


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A sample that was left out, and why."""

    source: str
    label: str
    split: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """The images of one split."""

    pixels: NDArray[np.uint16]
    """Canonical, N x C x H x W."""
    targets: NDArray[np.float64]
    """What each head should answer, N x heads; NaN where it is not known. Index of the class, 0 or
    1 of a binary head, index of the grade, or the value of a regression in its unit."""
    patients: NDArray[np.str_]
    """Shape (N,); an image without a known patient is its own."""
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Index of the class, shape (N,), of the only head, multiclass."""
        assert self.targets.shape[1] == 1
        return self.targets[:, 0].astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Everything that training and evaluation use."""

    heads: tuple[Head, ...]
    recipe: Recipe
    images: dict[str, tuple[Image, ...]]
    """By split; ``test`` may be empty."""
    excluded: tuple[Excluded, ...]
    fingerprint: str
    """SHA-256 over the digest, label and split of every image."""
    patients_known: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the only head."""
        (head,) = self.heads
        return head.classes

    def split(self, name: str) -> ImageSet:
        """Return a split as arrays."""
        return image_set(self.images[name], self.heads)


def image_set(images: Sequence[Image], heads: Sequence[Head]) -> ImageSet:
    """Return images as arrays."""
    (head,) = heads
    index = {name: i for i, name in enumerate(head.classes)}
    return ImageSet(
        pixels=np.stack([image.pixels for image in images]),
        targets=np.array([[index[image.sample.label]] for image in images], np.float64),
        patients=np.array([image.patient for image in images]),
        sources=tuple(image.sample.source for image in images),
    )


def build_dataset(
    samples: Sequence[Sample],
    recipe: Recipe,
    config: DataConfig,
    *,
    seed: int,
    track: Callable[[Iterable], Iterable] = iter,
) -> Dataset:
    """Read, clean and split ``samples``.

    Parameters
    ----------
    track
        Wraps the iteration over samples, for progress.

    Raises
    ------
    DataUnfit
        One class only, a class that training lacks, a patient in two given splits, or nothing
        left to train on.
    """
    classes = class_names(samples)
    if len(classes) < 2:
        found = "".join(classes)
        raise DataUnfit(f"one class only ({found}); a classifier needs two or more")
    _require_known_classes(samples)
    read, excluded = read_all(samples, recipe, track=track)
    images, repeated = _without_duplicates(read)
    images = _with_splits(images, classes, config, seed)
    _require_one_split_a_patient(images)
    _require_all_classes(images, classes, [*excluded, *repeated])
    by_split = {name: tuple(image for image in images if image.split == name) for name in SPLITS}
    return Dataset(
        heads=(Head(name=config.label_column, classes=classes),),
        recipe=recipe,
        images=by_split,
        excluded=(*excluded, *repeated),
        fingerprint=fingerprint_of(images),
        patients_known=all(image.patient != _own_patient(image) for image in images),
    )


def read_all(
    samples: Sequence[Sample],
    recipe: Recipe,
    *,
    track: Callable[[Iterable], Iterable] = iter,
) -> tuple[list[Image], list[Excluded]]:
    """Read and prepare all frames of all samples; what cannot be is returned with its reason."""
    images: list[Image] = []
    excluded: list[Excluded] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda sample: _read_one(sample, recipe), samples)
        for result in track(results):
            if isinstance(result, Excluded):
                excluded.append(result)
            else:
                images += result
    return images, excluded


def _read_one(sample: Sample, recipe: Recipe) -> list[Image] | Excluded:
    try:
        scan = sample.read()
        images = []
        for index, frame in enumerate(scan.frames()):
            image = Image(
                sample=sample,
                frame=index,
                pixels=recipe.apply(frame, sample.source).pixels,
                digest=_digest(frame),
                patient=sample.patient or scan.header.patient_id,
                header=scan.header,
                split=sample.split,
            )
            images.append(replace(image, patient=image.patient or _own_patient(image)))
    except ScanError as error:
        return Excluded(
            source=sample.source, label=sample.label, split=sample.split, reason=error.reason
        )
    return images


def _own_patient(image: Image) -> str:
    return f"image:{image.sample.source}"


def _digest(frame: Frame) -> str:
    values = frame.values
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()


def _without_duplicates(images: list[Image]) -> tuple[list[Image], list[Excluded]]:
    """Leave out repeated images, and every copy of one that has two labels."""
    by_digest: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        by_digest[image.digest].append(image)
    kept, excluded = set(), []
    for copies in by_digest.values():
        labels = sorted({image.sample.label for image in copies})
        first, *others = sorted(copies, key=lambda image: _KEEP_FIRST[image.split])
        if len(labels) > 1:
            reason = f"the same pixels are labelled {' and '.join(labels)}"
            excluded += [_left_out(image, reason) for image in copies]
            continue
        kept.add(id(first))
        excluded += [_left_out(i, f"same pixels as {first.sample.source}") for i in others]
    return [image for image in images if id(image) in kept], excluded


def _left_out(image: Image, reason: str) -> Excluded:
    sample = image.sample
    return Excluded(source=sample.source, label=sample.label, split=image.split, reason=reason)


def _require_known_classes(samples: Sequence[Sample]) -> None:
    if not any(sample.split for sample in samples):
        return
    in_training = {sample.label for sample in samples if sample.split in ("train", "")}
    for split in ("val", "test"):
        unknown = {s.label for s in samples if s.split == split} - in_training
        if unknown:
            raise DataUnfit(
                f"class {', '.join(sorted(unknown))} is in {split} and has no training images"
            )


def _require_one_split_a_patient(images: Sequence[Image]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for image in images:
        splits[image.patient].add(image.split)
    torn = sorted(patient for patient, names in splits.items() if len(names) > 1)
    if torn:
        shown = ", ".join(torn[:5]) + (" …" if len(torn) > 5 else "")
        raise DataUnfit(f"{len(torn)} patients are in more than one split: {shown}")


def _with_splits(
    images: list[Image], classes: Sequence[str], config: DataConfig, seed: int
) -> list[Image]:
    """Give a split to what has none: all of it, or validation where only a test set is given."""
    given = {image.split for image in images}
    fractions = {"val": config.val_fraction, "test": config.test_fraction}
    wanted = {name: share for name, share in fractions.items() if name not in given and share}
    if given - {""}:
        wanted.pop("test", None)  # the data's own splits are complete but for validation
        _require_an_effect(config, wanted)
    free = [i for i, image in enumerate(images) if image.split in ("", "train")]
    if not wanted:
        return [replace(i, split="train") if not i.split else i for i in images]
    index = {name: i for i, name in enumerate(classes)}
    names = split_by_patient(
        labels=np.array([index[images[i].sample.label] for i in free]),
        patients=np.array([images[i].patient for i in free]),
        fractions=wanted,
        seed=seed,
    )
    chosen = dict(zip(free, names, strict=True))
    return [replace(image, split=chosen.get(i, image.split)) for i, image in enumerate(images)]


def _require_an_effect(config: DataConfig, drawn: Mapping[str, float]) -> None:
    """Refuse a changed share for a split that is not drawn, because the data bring their own."""
    for name in ("val", "test"):
        field = f"{name}_fraction"
        if name not in drawn and getattr(config, field) != getattr(DataConfig, field):
            option = f"--{name}-fraction"
            raise DataUnfit(f"{option} has no effect: the data say which images are in which split")


def _require_all_classes(
    images: Sequence[Image], classes: Sequence[str], excluded: Sequence[Excluded]
) -> None:
    counts = Counter((image.split, image.sample.label) for image in images)
    for split, word in (("train", "training"), ("val", "validation")):
        for name in classes:
            if not counts[split, name]:
                given = any(image.sample.split == split for image in images)
                none = "the data give none" if given else "too few patients for every split"
                why = _most_common_reason(name, excluded) or none
                raise DataUnfit(f"class {name} has no usable {word} images: {why}")


def _most_common_reason(label: str, excluded: Sequence[Excluded]) -> str:
    reasons = Counter(left.reason for left in excluded if left.label == label)
    if not reasons:
        return ""
    [(reason, count)] = reasons.most_common(1)
    return f"{reasons.total()} were left out, {count} because: {reason}"


def fingerprint_of(images: Iterable[Image]) -> str:
    """Return the SHA-256 over the digest, label and split of every image, in any order."""
    lines = sorted(f"{i.digest} {i.sample.label} {i.split}" for i in images)
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


_CHANGED = "its pixels have changed since training"
_COLUMNS: tuple[str, ...] = ("source", "frame", "label", "patient", "split", "digest", "reason")


def write_splits(path: Path, dataset: Dataset) -> None:
    """Write ``splits.csv``: a row for each image with its split, or the reason it was left out."""
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, _COLUMNS, restval="")
    writer.writeheader()
    for image in (image for name in SPLITS for image in dataset.images[name]):
        writer.writerow(
            {
                "source": _absolute(image.sample.source),
                "frame": image.frame,
                "label": image.sample.label,
                "patient": image.patient,
                "split": image.split,
                "digest": image.digest,
            }
        )
    for left in dataset.excluded:
        row = {"source": _absolute(left.source), "label": left.label, "reason": left.reason}
        writer.writerow(row)
    write_text(path, text.getvalue())


def _absolute(source: str) -> str:
    return str(Path(source).absolute())


def _samples_of(rows: Iterable[dict[str, str]]) -> Iterator[Sample]:
    seen = set()
    for row in rows:
        if row["source"] not in seen:
            seen.add(row["source"])
            yield Sample(
                source=row["source"],
                label=row["label"],
                patient=row["patient"],
                split=row["split"],
            )


def _split_rows(path: Path, split: str) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def read_again(
    path: Path, split: str, recipe: Recipe, *, at_most: int | None = None
) -> tuple[list[Image], list[Excluded]]:
    """Read the images of a split as training saw them; return those that cannot be, too.

    Parameters
    ----------
    path
        A ``splits.csv``.
    at_most
        Read the frames of so many files only: as many of each class as there are, up to an equal
        share, and always the same.

    Returns
    -------
    The images, and what is missing or holds other pixels than it did.
    """
    rows = _split_rows(path, split)
    digests = {(row["source"], int(row["frame"])): row["digest"] for row in rows}
    samples = list(_samples_of(rows))
    if at_most is not None:
        samples = [samples[i] for i in spread([sample.label for sample in samples], at_most)]
    found, missing = read_all(samples, recipe)
    # Frames that are not listed were duplicates.
    images = [image for image in found if (image.sample.source, image.frame) in digests]
    same, changed = [], []
    for image in images:
        unchanged = image.digest == digests[image.sample.source, image.frame]
        (same if unchanged else changed).append(image)
    return same, [*missing, *(_left_out(image, _CHANGED) for image in changed)]


def spread(labels: Sequence[Hashable], at_most: int) -> list[int]:
    """Return the indices of ``at_most`` of the labels, rising and always the same.

    They are drawn from each label in turn, so that a rare one is not missed.
    """
    by_label: dict[Hashable, list[int]] = defaultdict(list)
    for index in np.random.default_rng(0).permutation(len(labels)):
        by_label[labels[index]].append(int(index))
    turns = zip_longest(*by_label.values())
    drawn = [index for turn in turns for index in turn if index is not None]
    return sorted(drawn[:at_most])
