"""Refuses data that cannot be trained on: classes without images, patients in two splits."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.heads import Head
from medtl_train.config import DataConfig
from medtl_train.data.images import Excluded, Image, targets_array
from medtl_train.data.samples import Sample
from medtl_train.errors import DataUnfit

_WORDS = {"train": "training", "val": "validation"}


def require_known_classes(samples: Sequence[Sample], heads: Sequence[Head]) -> None:
    """Refuse classes that are only where nothing is learnt from, before anything is read."""
    if not any(sample.split for sample in samples):
        return
    for column, head in enumerate(heads):
        if head.kind == "regression":
            continue
        known = _answers(samples, column, ("train", ""))
        for split in ("val", "test", "external"):
            unknown = _answers(samples, column, (split,)) - known
            if unknown:
                names = ", ".join(sorted(unknown))
                of = "" if len(heads) == 1 else f" of {head.name}"
                raise DataUnfit(f"class {names}{of} is in {split} and has no training images")


def _answers(samples: Sequence[Sample], column: int, splits: Sequence[str]) -> set[str]:
    return {s.labels[column] for s in samples if s.split in splits} - {""}


def require_one_split_a_patient(images: Sequence[Image]) -> None:
    """Refuse data whose own splits share patients."""
    splits: dict[str, set[str]] = defaultdict(set)
    for image in images:
        # Another hospital may give the same number to another patient.
        if image.split != "external":
            splits[image.patient].add(image.split)
    torn = sorted(patient for patient, names in splits.items() if len(names) > 1)
    if torn:
        shown = ", ".join(torn[:5]) + (" …" if len(torn) > 5 else "")
        raise DataUnfit(f"{len(torn)} patients are in more than one split: {shown}")


def require_an_effect(config: DataConfig, drawn: Mapping[str, float]) -> None:
    """Refuse a changed share for a split that is not drawn, because the data bring their own."""
    for name in ("val", "test"):
        field = f"{name}_fraction"
        if name not in drawn and getattr(config, field) != getattr(DataConfig, field):
            option = f"--{name}-fraction"
            raise DataUnfit(f"{option} has no effect: the data say which images are in which split")


def require_answers(
    images: Sequence[Image], heads: Sequence[Head], excluded: Sequence[Excluded]
) -> None:
    """Refuse splits from which a head cannot be learnt, or the only one not be validated.

    A head among several that validation lacks a class of costs its own figures, and not the run.
    """
    for split in ("train", "val"):
        inside = [image for image in images if image.split == split]
        targets = targets_array(inside, heads)
        for column, head in enumerate(heads):
            if split == "train" or len(heads) == 1:
                _require_head(head, targets[:, column], split, images, excluded)


def _require_head(
    head: Head,
    targets: NDArray[np.float64],
    split: str,
    images: Sequence[Image],
    excluded: Sequence[Excluded],
) -> None:
    known = targets[~np.isnan(targets)]
    if head.kind == "regression":
        if len(np.unique(known)) < 2:
            raise DataUnfit(f"{head.name} has fewer than two different {_WORDS[split]} values")
        return
    if head.kind == "ordinal" and split == "val" and len(np.unique(known)) >= 2:
        return  # an order shows without all of its grades
    for index, name in enumerate(head.classes):
        if index not in known:
            given = any(image.sample.split == split for image in images)
            none = "the data give none" if given else "too few patients for every split"
            why = _most_common_reason(name, excluded) or none
            raise DataUnfit(f"class {name} has no usable {_WORDS[split]} images: {why}")


def _most_common_reason(label: str, excluded: Sequence[Excluded]) -> str:
    reasons = Counter(left.reason for left in excluded if left.label == label)
    if not reasons:
        return ""
    [(reason, count)] = reasons.most_common(1)
    return f"{reasons.total()} were left out, {count} because: {reason}"
