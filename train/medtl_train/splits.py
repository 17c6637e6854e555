"""Splits by patient, so that no patient is in two splits, and stratified by class.

Splitting by image instead puts slices of one patient on both sides, which has inflated published
accuracies by 29 to 55 points.
"""

import math
import warnings
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from medtl_train.errors import DataUnfit


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
        Class index and patient of each image, both of shape (N,).
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


def _held_out(
    labels: NDArray[np.integer], patients: NDArray[np.str_], share: float, seed: int
) -> NDArray[np.intp]:
    """Return the indices of about ``share`` of the images, whole patients only.

    The share is so many folds of so many, as 2 of 5 for 0.4. With few patients there are fewer
    folds, so that each has room for a patient of every class.
    """
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
