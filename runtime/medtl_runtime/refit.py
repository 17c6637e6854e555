"""Refits a model's decision to labelled cases, and measures both decisions on them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.aggregation import aggregate, too_few
from medtl_runtime.calibration import (
    Criterion,
    brier_score,
    choose_operating_point,
    choose_temperature,
    conformal_thresholds,
    negative_log_likelihood,
)
from medtl_runtime.decision import (
    Aggregation,
    Decision,
    NoveltyCutoffs,
    Triage,
    probabilities,
)
from medtl_runtime.local_cases import LocalCase
from medtl_runtime.novelty import exceeds, fit_cutoffs


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to fit, as settled from the options and the model's own decision."""

    positive: str | None
    """The class to find, of two; None leaves the operating point at the most probable class."""
    criterion: Criterion
    error_rate: float | None
    """Of triage; None for no triage."""
    false_refusal_rate: float | None
    """Of novelty; None for no refusal."""
    aggregation: Aggregation | None
    """Over the slices of a series; None where each image is a case."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a decision does with labelled cases.

    The first five are of all cases, whether they are refused or abstained from or not; the others
    count cases.
    """

    negative_log_likelihood: float
    brier_score: float
    """0 to 2."""
    accuracy: float
    """Share of the cases whose class at the operating point is right."""
    sensitivity: float | None
    """Of the positive class; None without one."""
    specificity: float | None
    findings: int
    """Cases that get a finding: neither refused nor abstained from."""
    wrong_findings: int
    abstained: int
    refused: int
    """As novel."""


def refit(
    cases: Sequence[LocalCase], classes: Sequence[str], own: Decision, wanted: Wanted
) -> Decision:
    """Return a decision for cases like these.

    1. Novelty: the cut-offs, on all images.
    2. Temperature: on the logits of the images. For series it stays what it was: the label of a
       series does not say what each slice shows. It also stays where every image is called right.
    3. Operating point and triage: on the probabilities of the cases, by the new temperature.

    All cases count in 2 and 3, those that the new cut-offs would refuse as well.

    Parameters
    ----------
    cases
        Some of each class.
    own
        The model's own decision.
    """
    labels = _labels(cases)
    fitted = replace(own, novelty=_cutoffs(cases, wanted.false_refusal_rate), triage=None)
    if wanted.aggregation is None:
        logits = np.concatenate([case.logits for case in cases])
        temperature = choose_temperature(logits, labels, otherwise=own.temperature)
        fitted = replace(fitted, temperature=temperature)
    if wanted.positive is not None:  # it decides how the slices of a series are aggregated
        point = replace(own.operating_point, positive=wanted.positive)
        fitted = replace(fitted, operating_point=point)
    chances = case_probabilities(cases, classes, fitted, wanted)
    if wanted.positive is not None:
        point = choose_operating_point(
            labels,
            chances,
            classes,
            wanted.positive,
            criterion=wanted.criterion,
            cases="local images" if wanted.aggregation is None else "local series",
        )
        fitted = replace(fitted, operating_point=point)
    if wanted.error_rate is not None:
        thresholds = conformal_thresholds(labels, chances, wanted.error_rate)
        triage = Triage(error_rate=wanted.error_rate, thresholds=thresholds, images=len(cases))
        fitted = replace(fitted, triage=triage)
    return fitted


def measure(
    cases: Sequence[LocalCase], classes: Sequence[str], decision: Decision, wanted: Wanted
) -> Measured:
    """Return what a decision does with the cases."""
    labels = _labels(cases)
    chances = case_probabilities(cases, classes, decision, wanted)
    point = decision.operating_point
    called = np.array([classes.index(point.decide(classes, row)) for row in chances])
    refused = np.array([_is_refused(case, decision.novelty) for case in cases])
    unsure = np.array([decision.finding(classes, row)[0] is None for row in chances])
    found = ~refused & ~unsure
    right = called == labels
    k = None if wanted.positive is None else classes.index(wanted.positive)
    return Measured(
        negative_log_likelihood=negative_log_likelihood(chances, labels),
        brier_score=brier_score(chances, labels),
        accuracy=float(right.mean()),
        sensitivity=None if k is None else float(right[labels == k].mean()),
        specificity=None if k is None else float(right[labels != k].mean()),
        findings=int(found.sum()),
        wrong_findings=int((found & ~right).sum()),
        abstained=int((unsure & ~refused).sum()),
        refused=int(refused.sum()),
    )


def case_probabilities(
    cases: Sequence[LocalCase], classes: Sequence[str], decision: Decision, wanted: Wanted
) -> NDArray[np.float64]:
    """Return the probabilities of each case, N x K, as `Predictor` gives them.

    Those of a series leave out the slices that are refused as novel. A series that is refused as a
    whole has none at inference; here it has those of all its slices.
    """
    if wanted.aggregation is None:
        return probabilities(np.concatenate([case.logits for case in cases]), decision.temperature)
    name = decision.operating_point.positive
    positive = None if name is None else classes.index(name)
    rows = []
    for case in cases:
        used = ~_novel(case, decision.novelty)
        logits = case.logits if _is_refused(case, decision.novelty) else case.logits[used]
        chances = probabilities(logits, decision.temperature)
        rows.append(aggregate(chances, wanted.aggregation, positive))
    return np.array(rows)


def summary(measured: Measured) -> dict[str, float | int | None]:
    """Return the measures as JSON values."""
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in asdict(measured).items()
    }


def _labels(cases: Sequence[LocalCase]) -> NDArray[np.int64]:
    return np.array([case.label for case in cases], np.int64)


def _cutoffs(cases: Sequence[LocalCase], rate: float | None) -> NoveltyCutoffs | None:
    if rate is None:
        return None
    scores = [one for case in cases for one in case.novelty]
    return fit_cutoffs(
        np.array([one.energy for one in scores]),
        np.array([one.mahalanobis for one in scores]),
        rate,
    )


def _novel(case: LocalCase, cutoffs: NoveltyCutoffs | None) -> NDArray[np.bool_]:
    """Return which slices are refused, (S,)."""
    if cutoffs is None:
        return np.zeros(len(case.logits), bool)
    return np.array([exceeds(one, cutoffs) is not None for one in case.novelty])


def _is_refused(case: LocalCase, cutoffs: NoveltyCutoffs | None) -> bool:
    return too_few(int((~_novel(case, cutoffs)).sum()), len(case.logits))
