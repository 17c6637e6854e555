"""Splits by patient, so that no patient is in two splits, and stratified by label.

Splitting by image instead puts slices of one patient on both sides, which has inflated published
accuracies by 29 to 55 points.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from medtl_runtime.heads import Head
from medtl_train.errors import DataUnfit

_QUANTILES = 5
"""Of the values of a regression; each is a stratum."""


def strata_of(targets: NDArray[np.floating], heads: Sequence[Head]) -> NDArray[np.int64]:
    """Return what each image counts as when splits are made alike, (N,).

    Of one head with classes it is the class, of one regression the fifth of all values that it
    lies in. Of several heads it is the rarest of an image's answers: findings that are in few
    images are the ones that chance would leave out of a split, and the joint answers of many heads
    are too many to be strata (see Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011, for the rule
    that this shortens).

    Parameters
    ----------
    targets
        N x heads, NaN where unknown; each image has one at least.
    """
    levels = np.full(targets.shape, -1)
    first = 0
    for column, head in enumerate(heads):
        known = ~np.isnan(targets[:, column])
        values = targets[known, column]
        if head.kind == "regression":
            cuts = np.quantile(values, np.arange(1, _QUANTILES) / _QUANTILES)
            values = np.searchsorted(cuts, values, side="right")
        levels[known, column] = first + values.astype(np.int64)
        first += _QUANTILES if head.kind == "regression" else len(head.classes)
    counts = np.bincount(levels[levels >= 0], minlength=first)
    rarity = np.where(levels >= 0, counts[levels], len(targets) + 1)
    return levels[np.arange(len(levels)), rarity.argmin(axis=1)]


def split_by_patient(
    *,
    labels: NDArray[np.integer],
    patients: NDArray[np.str_],
    fractions: Mapping[str, float],
    seed: int,
) -> list[str]:
    """Return the split of every image: ``train``, or a name from ``fractions``.

    Parameters
    ----------
    labels, patients
        Stratum (see `strata_of`) and patient of each image, both of shape (N,).
    fractions
        Share of the images for each split other than training, such as ``{"val": 0.15}``.
    seed
        The same seed gives the same split.

    Raises
    ------
    DataUnfit
        Too few patients.
    """
    splits = np.full(len(labels), "train", dtype=object)
    if len(set(patients.tolist())) < len(fractions) + 1:
        raise DataUnfit(
            f"{len(set(patients.tolist()))} patients cannot make {len(fractions) + 1} splits"
        )
    remaining = np.arange(len(labels))
    left = 1.0
    for name, share in fractions.items():
        held_out = _held_out(labels[remaining], patients[remaining], share / left, seed)
        splits[remaining[held_out]] = name
        remaining = np.delete(remaining, held_out)
        left -= share
    return splits.tolist()


def fold_numbers(
    *, labels: NDArray[np.integer], patients: NDArray[np.str_], folds: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold of every image, 0 to ``folds`` - 1; a patient's are in one.

    Parameters
    ----------
    labels, patients
        As for `split_by_patient`.

    Raises
    ------
    DataUnfit
        Too few patients, or images of one stratum, for so many folds.
    """
    found = len(np.unique(patients))
    if found < folds:
        raise DataUnfit(f"{found} patients cannot make {folds} folds")
    if np.bincount(labels).max() < folds:
        raise DataUnfit(f"no class has {folds} images, one for each fold; ask for fewer")
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    numbers = np.zeros(len(labels), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for number, (_, test) in enumerate(splitter.split(labels, labels, patients)):
            numbers[test] = number
    if len(np.unique(numbers)) < folds:
        raise DataUnfit(f"too few patients for {folds} folds: one of them is empty")
    return numbers


def folds_by_patient(
    *,
    labels: NDArray[np.integer],
    patients: NDArray[np.str_],
    folds: int,
    val_fraction: float,
    seed: int,
) -> list[list[str]]:
    """Return the split of every image for each fold of a cross-validation.

    Every image is in the test set of one fold. Of what is not, ``val_fraction`` of all images is
    drawn for validation, which stops the training and chooses the checkpoint: a fold that did that
    could not test as well.

    Parameters
    ----------
    labels, patients
        As for `split_by_patient`.
    folds
        2 or more.
    val_fraction
        Share of all images.

    Raises
    ------
    DataUnfit
        Fewer patients than folds, or too few to split.
    """
    made = []
    numbers = fold_numbers(labels=labels, patients=patients, folds=folds, seed=seed)
    for number in range(folds):
        splits = np.full(len(labels), "test", dtype=object)
        rest = np.flatnonzero(numbers != number)
        share = val_fraction * len(labels) / len(rest)
        val = {"val": min(share, 0.5)}
        splits[rest] = split_by_patient(
            labels=labels[rest], patients=patients[rest], fractions=val, seed=seed
        )
        made.append(splits.tolist())
    return made


def _held_out(
    labels: NDArray[np.integer], patients: NDArray[np.str_], share: float, seed: int
) -> NDArray[np.intp]:
    """Return the indices of about ``share`` of the images, whole patients only.

    The share is so many folds of so many, as 2 of 5 for 0.4. With few patients there are fewer
    folds, so that each has room for a patient of every class.
    """
    labels = np.unique(labels, return_inverse=True)[1]  # strata may be missing here
    count = len(np.unique(patients))
    if count < 2 or np.bincount(labels).max() < 2:
        raise DataUnfit("too few patients to split; give splits of your own")
    part = Fraction(share).limit_denominator(max(10, math.ceil(1 / share)))
    most = min(count // len(np.unique(labels)), int(np.bincount(labels).max()))
    folds = min(part.denominator, max(2, most))
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        found = list(splitter.split(np.zeros(len(labels)), labels, patients))
    # A rare class may be in a few folds only: it must stay in the rest, and be held out if it can.
    found.sort(key=lambda pair: [-len(np.unique(labels[index])) for index in pair])
    taken = min(max(1, round(share * folds)), folds - 1)
    return np.sort(np.concatenate([held_out for _, held_out in found[:taken]]))
