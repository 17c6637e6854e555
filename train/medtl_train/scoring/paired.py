"""Tests of two models on the same images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm

from medtl_train.scoring import delong
from medtl_train.scoring.assessment import one_image_a_patient
from medtl_train.scoring.scored import Scored


def areas(before: Scored, after: Scored) -> dict[str, Any] | None:
    """Return DeLong's test of two AUROCs; None where it does not hold.

    It takes images as independent and is of one AUROC: where patients have several images, or
    where there is no class to find, the bootstrap stands instead.
    """
    if before.positive is None or not one_image_a_patient(before.patients):
        return None
    (one,), (other,) = before.events, after.events
    p = delong.paired_p_value(one.happened, one.probability, other.probability)
    return {"method": "DeLong", "p": p if np.isfinite(p) else None}


def decisions(before: Scored, after: Scored) -> dict[str, Any]:
    """Return whether one of two models is right more often, by the images where only one is.

    Where each patient has one image, by McNemar's test (Psychometrika 1947), exact. Otherwise by
    the sums of each patient's differences (Durkalski et al., Statistics in Medicine 2003, with
    patients weighted by their images), which is normal with many patients.

    Returns
    -------
    ``method``, ``p``, ``only_first`` and ``only_this``: images that only one has right.
    """
    change = (after.predicted == after.labels).astype(int) - (before.predicted == before.labels)
    only_first, only_this = int((change < 0).sum()), int((change > 0).sum())
    counts = {"only_first": only_first, "only_this": only_this}
    if not only_first + only_this:
        return {"method": "McNemar, exact", "p": 1.0, **counts}
    if one_image_a_patient(before.patients):
        p = binomtest(only_this, only_first + only_this).pvalue
        return {"method": "McNemar, exact", "p": float(p), **counts}
    _, patients = np.unique(before.patients, return_inverse=True)
    sums = np.bincount(patients, change)
    squares = np.square(sums).sum()
    p = 1.0 if squares == 0 else 2 * norm.sf(abs(sums.sum()) / np.sqrt(squares))
    return {"method": "McNemar for patients with several images", "p": float(p), **counts}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted so that all together err at the level (Holm, 1979); None stays."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = highest
    return adjusted
