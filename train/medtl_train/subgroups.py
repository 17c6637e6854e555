"""How good a classifier is on parts of its images: by modality, body part, view and age.

A mean over all images hides a part that the model fails on (Oakden-Rayner et al., CHIL 2020). What
is told of a part must not be told of a patient: small parts are left out, and so are those from
which a small one could be had by subtraction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.intended_use import values_of
from medtl_runtime.scan import Header
from medtl_train.headers import summarise
from medtl_train.metrics import Scored, measure_with_intervals

LEAST_PATIENTS = 5
"""A group of fewer patients is not reported."""

RESAMPLES = 400
"""Of a group's bootstrap; fewer than a split's 1000, because there are many groups. The bounds then
are the tenth values from either end."""

METRICS = ("auroc", "balanced_accuracy", "recall", "specificity")

CODES = ("Modality", "BodyPartExamined", "ViewPosition")
"""The attributes whose values are groups. Their values are those that `headers.summarise` names:
codes, and no free text."""

AGE = "PatientAge"

# A value that may not be named is a value nonetheless; no code is empty.
_OTHER = ""

# Lowest age in years of each band, and its name. Twenty years wide, because among few patients a
# decade singles one out; children apart, because they are not small adults.
_BANDS = (
    (0, "0 to 17 years"),
    (18, "18 to 39 years"),
    (40, "40 to 59 years"),
    (60, "60 to 79 years"),
    (80, "80 years or more"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subgroup:
    """The images that have one value of one attribute."""

    attribute: str
    """A DICOM keyword."""
    value: str
    """A code, or a band of ages."""
    mask: NDArray[np.bool_]
    """Which images, (N,)."""


def subgroups(
    headers: Sequence[Header],
    patients: NDArray[np.str_],
    *,
    patients_known: bool,
    least_patients: int = LEAST_PATIENTS,
) -> list[Subgroup]:
    """Return the parts of a set of images that may be reported.

    Parameters
    ----------
    headers
        One for each image. Those of PNG, JPEG and NPY are empty and belong to no group.
    patients
        (N,).
    patients_known
        Where patients are not known each image counts as one, and the least number of patients
        protects nobody: there are no groups.
    least_patients
        Groups of fewer are left out. So is an attribute's smallest group, as often as needed, while
        the images of the attribute that are in no group are of fewer patients, but not of none:
        they could be had by subtracting the groups from the whole.

    Returns
    -------
    In the order of `CODES`, then ages, each by value; none of an attribute for which all images
    that have a value have the same.
    """
    found: list[Subgroup] = []
    if not patients_known:
        return found
    for attribute, masks in _masks(headers).items():
        kept = _reportable(masks, patients, least_patients)
        found += [Subgroup(attribute=attribute, value=v, mask=m) for v, m in kept.items()]
    return found


def evaluate_subgroups(
    scored: Scored, groups: Sequence[Subgroup], *, seed: int, resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """Return the metrics of groups of images as JSON values.

    Returns
    -------
    A row for each group: ``attribute``, ``value``, ``images``, ``patients``, ``resamples``, and
    ``metrics``: by name, those of `METRICS`, each with ``value``, ``low`` and ``high``, the 95 %
    interval of a bootstrap over patients (`metrics.measure_with_intervals`); None where one is not
    defined, such as AUROC where all images are of one class.
    """
    return [_row(scored, group, seed, resamples) for group in groups]


def _row(scored: Scored, group: Subgroup, seed: int, resamples: int) -> dict[str, Any]:
    part = replace(
        scored,
        labels=scored.labels[group.mask],
        probabilities=scored.probabilities[group.mask],
        patients=scored.patients[group.mask],
    )
    measured = measure_with_intervals(part, seed=seed, resamples=resamples)
    return {
        "attribute": group.attribute,
        "value": group.value,
        "images": len(part.labels),
        "patients": len(np.unique(part.patients)),
        "resamples": resamples,
        "metrics": {name: measured[name] for name in METRICS},
    }


def _masks(headers: Sequence[Header]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Return the images of each value, by attribute; `_OTHER` stands for all that are no codes."""
    named = summarise(headers)
    masks: dict[str, dict[str, NDArray[np.bool_]]] = {}
    for attribute in CODES:
        values = [set(map(str, values_of(header, attribute))) for header in headers]
        codes = named[attribute]["counts"]
        masks[attribute] = {code: np.array([code in some for some in values]) for code in codes}
        if any(some and not some & set(codes) for some in values):
            masks[attribute][_OTHER] = np.array([bool(v) and not v & set(codes) for v in values])
    bands = [_band(header) for header in headers]
    masks[AGE] = {
        name: np.array([band == name for band in bands]) for _, name in _BANDS if name in bands
    }
    return masks


def _band(header: Header) -> str | None:
    age = header.patient_age
    if age is None or not age >= 0:  # NaN as well
        return None
    return [name for low, name in _BANDS if low <= age][-1]


def _reportable(
    masks: dict[str, NDArray[np.bool_]], patients: NDArray[np.str_], least: int
) -> dict[str, NDArray[np.bool_]]:
    """Return the groups of one attribute that tell nothing of fewer patients than ``least``."""

    def count(mask: NDArray[np.bool_]) -> int:
        return len(np.unique(patients[mask]))

    if len(masks) < 2:
        return {}
    kept = {v: m for v, m in masks.items() if v != _OTHER and count(m) >= least}
    while kept and 0 < count(~np.any(list(kept.values()), axis=0)) < least:
        del kept[min(kept, key=lambda value: (count(kept[value]), value))]
    return kept
