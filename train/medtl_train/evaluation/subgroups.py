"""How good a model is on parts of its images: by modality, body part, view, age and covariates.

A mean over all images hides a part that the model fails on (Oakden-Rayner et al., CHIL 2020). Where
what is told leaves the place, as in a model card, it must not be told of a patient: `subgroups`
leaves out small parts, and those from which a small one could be had by subtraction. A run stays
where its data are: `all_groups` has small ones too, and they are marked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.intended_use import values_of
from medtl_runtime.scan import Header
from medtl_train.data.headers import summarise
from medtl_train.scoring.metrics import measure_with_intervals
from medtl_train.scoring.scored import Answers, Scored, part

LEAST_PATIENTS = 5
"""A group of fewer patients is not reported."""

RESAMPLES = 400
"""Of a group's bootstrap; fewer than a split's 1000, because there are many groups. The bounds then
are the tenth values from either end."""

SMALL = 20
"""A group of fewer patients is marked as small: one patient more or less changes its figures."""

METRICS = ("auroc", "balanced_accuracy", "recall", "specificity")
"""Of classes."""

OF_GRADES = ("auroc", "quadratic_weighted_kappa", "within_one_grade", "grade_mae")

OF_VALUES = ("mae", "bias", "r2", "concordance")

CODES = ("Modality", "BodyPartExamined", "ViewPosition")
"""The attributes whose values are groups. Their values are those that `headers.summarise` names:
codes, and no free text."""

AGE = "PatientAge"

MOST_VALUES = 12
"""Of a covariate that are groups of their own."""

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
    """A DICOM keyword, or the name of a covariate."""
    value: str
    """A code, a band of ages, or what the covariate is."""
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


def all_groups(
    headers: Sequence[Header], covariates: Sequence[Mapping[str, str]]
) -> list[Subgroup]:
    """Return the parts of a set of images by header and by covariate, small ones too.

    Parameters
    ----------
    headers, covariates
        One of each for each image; what is empty belongs to no group.

    Returns
    -------
    As `subgroups`, then the covariates by name. Numbers with more than `MOST_VALUES` different
    values are divided in three; of other covariates the most frequent values are groups, so many at
    most.
    """
    masks = _masks(headers)
    for values in masks.values():
        values.pop(_OTHER, None)
    names = dict.fromkeys(name for row in covariates for name in row)
    for name in names:
        masks[name] = _of_covariate(name, [row.get(name, "") for row in covariates])
    return [
        Subgroup(attribute=attribute, value=value, mask=mask)
        for attribute, values in masks.items()
        for value, mask in values.items()
        if len(values) > 1
    ]


def _of_covariate(name: str, texts: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return the images of each value of a covariate."""
    column = np.array(texts)
    values, counts = np.unique(column[column != ""], return_counts=True)
    numbers = _numbers(texts)
    if numbers is None or len(values) <= MOST_VALUES:
        most = values[np.argsort(-counts, kind="stable")[:MOST_VALUES]]
        return {str(value): column == value for value in np.sort(most)}
    if name.lower() == "age":
        bands = np.array([_band(age) or "" for age in numbers])
        return {band: bands == band for _, band in _BANDS if (bands == band).any()}
    low, high = np.nanquantile(numbers, [1 / 3, 2 / 3])
    with np.errstate(invalid="ignore"):
        thirds = {
            f"up to {low:g}": numbers <= low,
            f"{low:g} to {high:g}": (numbers > low) & (numbers <= high),
            f"above {high:g}": numbers > high,
        }
    return {third: mask for third, mask in thirds.items() if mask.any()}


def _numbers(texts: Sequence[str]) -> NDArray[np.float64] | None:
    """Return texts as numbers, NaN where one is empty; None if one is no number."""
    try:
        return np.array([float(text) if text else np.nan for text in texts])
    except ValueError:
        return None


def evaluate_subgroups(
    answers: Answers, groups: Sequence[Subgroup], *, seed: int, resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """Return the metrics of groups of images as JSON values.

    Returns
    -------
    A row for each group with images: ``attribute``, ``value``, ``images``, ``patients``, ``small``
    (fewer than `SMALL` patients), ``resamples``, and ``metrics``: by name, those of `METRICS`,
    `OF_GRADES` or `OF_VALUES`, each with ``value``, ``low`` and ``high``, the 95 % interval of a
    bootstrap over patients (`metrics.measure_with_intervals`); None where one is not defined, such
    as AUROC where all images are of one class.
    """
    return [_row(answers, group, seed, resamples) for group in groups if group.mask.any()]


def evaluate_by_head(
    answers: Mapping[str, Answers],
    targets: NDArray[np.floating],
    groups: Sequence[Subgroup],
    *,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of `evaluate_subgroups` of each head, by its name.

    Parameters
    ----------
    answers
        Of each head, of the images whose target is known.
    targets
        Of all images, N x heads in the order of ``answers``; NaN where one is not known.
    groups
        Of all images.
    """
    rows = {}
    for (head, own), column in zip(answers.items(), targets.T, strict=True):
        known = ~np.isnan(column)
        parts = [replace(group, mask=group.mask[known]) for group in groups]
        rows[head] = evaluate_subgroups(own, parts, seed=seed)
    return rows


def _row(answers: Answers, group: Subgroup, seed: int, resamples: int) -> dict[str, Any]:
    inside = part(answers, group.mask)
    measured = measure_with_intervals(inside, seed=seed, resamples=resamples)
    patients = len(np.unique(inside.patients))
    return {
        "attribute": group.attribute,
        "value": group.value,
        "images": len(inside.patients),
        "patients": patients,
        "small": patients < SMALL,
        "resamples": resamples,
        "metrics": {name: measured[name] for name in metrics_of(answers)},
    }


def metrics_of(answers: Answers) -> tuple[str, ...]:
    """Return the names of the metrics that groups are reported by."""
    if isinstance(answers, Scored):
        return OF_GRADES if answers.is_graded else METRICS
    return OF_VALUES


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
    bands = [_band(header.patient_age) for header in headers]
    masks[AGE] = {
        name: np.array([band == name for band in bands]) for _, name in _BANDS if name in bands
    }
    return masks


def _band(age: float | None) -> str | None:
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
