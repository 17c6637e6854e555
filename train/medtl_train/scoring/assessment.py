"""All figures of a split, as JSON values of ``metrics.json``; docs/evaluation.md defines them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_train.scoring import delong
from medtl_train.scoring.agreement import limits_of_agreement
from medtl_train.scoring.bootstrap import RESAMPLES, Estimate, Measure, as_estimate, intervals
from medtl_train.scoring.metrics import measurer
from medtl_train.scoring.reliability import calibration_errors, slope_and_intercept, squared_errors
from medtl_train.scoring.scored import Answers, Scored, ScoredValues
from medtl_train.scoring.tables import confusion

RATES = (0.8, 0.9, 0.95)
"""Specificities at which sensitivity is reported, and the reverse."""


def assess(
    answers: Mapping[str, Answers], patients: NDArray[np.str_], *, seed: int
) -> dict[str, Any]:
    """Return the evaluation of a split.

    Parameters
    ----------
    answers
        Of each head, by its name; of the images whose target is known (`score`).
    patients
        Of all images, (N,).

    Returns
    -------
    ``images``, ``patients``, and ``heads``: by name, see `assess_head`.
    """
    return {
        "images": len(patients),
        "patients": len(np.unique(patients)),
        "heads": {name: assess_head(one, seed=seed) for name, one in answers.items()},
    }


def assess_head(answers: Answers, *, seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return the evaluation of a head.

    Returns
    -------
    ``images`` and ``patients`` whose target is known, ``resamples``, and ``metrics``: by name, each
    with ``value``, ``low`` and ``high``, its 95 % interval; None where one is not defined. Of a
    head with classes also ``confusion`` (images of each true class by what they were called) and
    ``delong``: the AUROC with DeLong's interval where that holds, else None.
    """
    metrics = intervals(_all_measures(answers), answers.patients, seed=seed, resamples=resamples)
    found: dict[str, Any] = {
        "images": len(answers.patients),
        "patients": len(np.unique(answers.patients)),
        "resamples": resamples,
        "metrics": metrics,
    }
    if isinstance(answers, ScoredValues):
        return found
    table = confusion(answers.labels, answers.predicted, len(answers.classes))
    metrics |= _without_resampling(answers)
    return {**found, "confusion": table.astype(int).tolist(), "delong": _delong(answers)}


def _all_measures(answers: Answers) -> Measure:
    first, second = measurer(answers, rates=RATES), _further(answers)
    return lambda weights: {**first(weights), **second(weights)}


def _further(answers: Answers) -> Measure:
    if isinstance(answers, Scored):
        return squared_errors(answers)
    return lambda weights: limits_of_agreement(answers.values, answers.predicted, weights)


def _without_resampling(scored: Scored) -> dict[str, Estimate]:
    errors = calibration_errors(scored)
    found = {name: as_estimate(error, np.nan, np.nan) for name, error in errors.items()}
    return found if scored.positive is None else found | slope_and_intercept(scored)


def _delong(scored: Scored) -> Estimate | None:
    """Return the AUROC by DeLong; None where patients have several images, or several AUROCs."""
    if scored.positive is None or not one_image_a_patient(scored.patients):
        return None
    (event,) = scored.events
    found = delong.area(event.happened, event.probability)
    return None if found is None else found.estimate


def one_image_a_patient(patients: NDArray[np.str_]) -> bool:
    """Whether images may be taken as independent; ``patients`` has shape (N,)."""
    return len(np.unique(patients)) == len(patients)
