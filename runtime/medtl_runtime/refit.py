"""Refits a model's decision to labelled cases, and measures both decisions on them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.aggregation import Aggregation, aggregate_values, too_few
from medtl_runtime.answers import case_probabilities
from medtl_runtime.calibration import (
    Criterion,
    brier_score,
    choose_point,
    head_temperature,
    negative_log_likelihood,
)
from medtl_runtime.conformal import conformal_margin, conformal_thresholds
from medtl_runtime.decision import Decision, HeadDecision, NoveltyCutoffs, Triage
from medtl_runtime.heads import Head, columns_of
from medtl_runtime.local_cases import LocalCase
from medtl_runtime.novelty import exceeds, fit_cutoffs


@dataclass(frozen=True, kw_only=True)
class WantedHead:
    """What to fit of one head."""

    positive: str | None
    """The class to find, of two; None leaves the operating point as it is by the kind of head."""
    error_rate: float | None
    """Of triage; of a regression, how often its interval may miss. None for neither."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to fit, as settled from the options and the model's own decision."""

    heads: tuple[WantedHead, ...]
    """One for each head of the model."""
    criterion: Criterion
    false_refusal_rate: float | None
    """Of novelty; None for no refusal."""
    aggregation: Aggregation | None
    """Over the slices of a series; None where each image is a case."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a decision does with the cases that a head with classes is labelled for.

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


@dataclass(frozen=True, kw_only=True)
class MeasuredValues:
    """The same of a regression; errors are in its unit, and of all cases."""

    mean_absolute_error: float
    root_mean_square_error: float
    covered: float | None
    """Share of the cases whose true value lies within the interval; None without one."""
    refused: int
    """As novel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """The cases of which it is known what one head should answer."""

    index: int
    """Of the head."""
    head: Head
    columns: slice
    """Of the logits."""
    cases: tuple[LocalCase, ...]
    targets: NDArray[np.float64]
    """(N,), none of them NaN."""


def labels_of(cases: Sequence[LocalCase], heads: Sequence[Head]) -> list[Labels]:
    """Return the labelled cases of each head that has any."""
    found = []
    for index, (head, columns) in enumerate(zip(heads, columns_of(heads), strict=True)):
        known = tuple(case for case in cases if not np.isnan(case.targets[index]))
        if known:
            targets = np.array([case.targets[index] for case in known])
            found.append(
                Labels(index=index, head=head, columns=columns, cases=known, targets=targets)
            )
    return found


def refit(
    cases: Sequence[LocalCase], heads: Sequence[Head], own: Decision, wanted: Wanted
) -> Decision:
    """Return a decision for cases like these.

    1. Novelty: the cut-offs, on all images.
    2. Temperatures: on the logits of the images. For series they stay what they were: the label of
       a series does not say what each slice shows. They also stay where every image is called
       right.
    3. Operating points, triage and intervals: on what is said of the cases, by the new
       temperatures.

    All cases count in 2 and 3, those that the new cut-offs would refuse as well. A head that no
    case is labelled for keeps its decision.

    Parameters
    ----------
    cases
        Some of each class.
    own
        The model's own decision.
    """
    novelty = _cutoffs(cases, wanted.false_refusal_rate)
    fitted = list(own.heads)
    for labels in labels_of(cases, heads):
        fitted[labels.index] = _refit_head(labels, fitted[labels.index], novelty, wanted)
    return Decision(heads=tuple(fitted), novelty=novelty)


def _refit_head(
    labels: Labels, own: HeadDecision, novelty: NoveltyCutoffs | None, wanted: Wanted
) -> HeadDecision:
    head, asked = labels.head, wanted.heads[labels.index]
    if head.kind == "regression":
        values = case_values(labels, novelty, wanted.aggregation)
        rate = asked.error_rate
        interval = conformal_margin(labels.targets - values, 1 - rate) if rate else None
        return replace(own, interval=interval)
    fitted = replace(own, triage=None)
    if wanted.aggregation is None:
        logits = np.concatenate([case.logits[:, labels.columns] for case in labels.cases])
        temperature = head_temperature(head, logits, labels.targets, otherwise=own.temperature)
        fitted = replace(fitted, temperature=temperature)
    if asked.positive is not None:  # it decides how the slices of a series are aggregated
        point = replace(own.operating_point, positive=asked.positive)
        fitted = replace(fitted, operating_point=point)
    chances = head_probabilities(labels, fitted, novelty, wanted.aggregation)
    if asked.positive is not None:
        point = choose_point(
            head,
            labels.targets,
            chances,
            positive=asked.positive,
            criterion=wanted.criterion,
            cases="local images" if wanted.aggregation is None else "local series",
        )
        fitted = replace(fitted, operating_point=point)
    if asked.error_rate is None:
        return fitted
    thresholds = conformal_thresholds(labels.targets.astype(np.int64), chances, asked.error_rate)
    triage = Triage(error_rate=asked.error_rate, thresholds=thresholds, images=len(labels.cases))
    return replace(fitted, triage=triage)


def measure(
    cases: Sequence[LocalCase], heads: Sequence[Head], decision: Decision, wanted: Wanted
) -> dict[str, Measured | MeasuredValues]:
    """Return what a decision does with the cases, by the heads that they are labelled for."""
    return {
        labels.head.name: _measure_values(labels, decision, wanted)
        if labels.head.kind == "regression"
        else _measure_classes(labels, decision, wanted)
        for labels in labels_of(cases, heads)
    }


def _measure_classes(labels: Labels, decision: Decision, wanted: Wanted) -> Measured:
    own, classes = decision.heads[labels.index], labels.head.classes
    truth = labels.targets.astype(np.int64)
    chances = head_probabilities(labels, own, decision.novelty, wanted.aggregation)
    called = np.array([classes.index(own.operating_point.decide(classes, row)) for row in chances])
    refused = np.array([_is_refused(case, decision.novelty) for case in labels.cases])
    unsure = np.array([own.finding(classes, row)[0] is None for row in chances])
    found = ~refused & ~unsure
    right = called == truth
    positive = wanted.heads[labels.index].positive
    k = None if positive is None else classes.index(positive)
    return Measured(
        negative_log_likelihood=negative_log_likelihood(chances, truth),
        brier_score=brier_score(chances, truth),
        accuracy=float(right.mean()),
        sensitivity=None if k is None else float(right[truth == k].mean()),
        specificity=None if k is None else float(right[truth != k].mean()),
        findings=int(found.sum()),
        wrong_findings=int((found & ~right).sum()),
        abstained=int((unsure & ~refused).sum()),
        refused=int(refused.sum()),
    )


def _measure_values(labels: Labels, decision: Decision, wanted: Wanted) -> MeasuredValues:
    values = case_values(labels, decision.novelty, wanted.aggregation)
    errors = np.abs(labels.targets - values)
    margin = decision.heads[labels.index].interval
    return MeasuredValues(
        mean_absolute_error=float(errors.mean()),
        root_mean_square_error=float(np.sqrt((errors**2).mean())),
        covered=None if margin is None else float((errors <= margin.half_width).mean()),
        refused=sum(_is_refused(case, decision.novelty) for case in labels.cases),
    )


def head_probabilities(
    labels: Labels,
    decision: HeadDecision,
    novelty: NoveltyCutoffs | None,
    aggregation: Aggregation | None,
) -> NDArray[np.float64]:
    """Return the probabilities of each case, N x K, as `Predictor` gives them.

    Those of a series leave out the slices that are refused as novel. A series that is refused as a
    whole has none at inference; here it has those of all its slices.
    """
    rows = []
    for logits in _used(labels, novelty, aggregation):
        chances = labels.head.probabilities(logits, decision.temperature)
        alone = aggregation is None
        rows.append(
            chances[0] if alone else case_probabilities(labels.head, decision, chances, aggregation)
        )
    return np.array(rows)


def case_values(
    labels: Labels, novelty: NoveltyCutoffs | None, aggregation: Aggregation | None
) -> NDArray[np.float64]:
    """Return the value of each case, (N,), as `Predictor` gives it; see `head_probabilities`."""
    found = [labels.head.values(logits) for logits in _used(labels, novelty, aggregation)]
    if aggregation is None:
        return np.array([values[0] for values in found])
    return np.array([aggregate_values(values, aggregation) for values in found])


def _used(
    labels: Labels, novelty: NoveltyCutoffs | None, aggregation: Aggregation | None
) -> list[NDArray[np.float32]]:
    """Return the head's columns of the slices of each case that count."""
    found = []
    for case in labels.cases:
        own = case.logits[:, labels.columns]
        if aggregation is not None and not _is_refused(case, novelty):
            own = own[~_novel(case, novelty)]
        found.append(own)
    return found


def summary(measured: Measured | MeasuredValues) -> dict[str, float | int | None]:
    """Return the measures as JSON values."""
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in asdict(measured).items()
    }


def _cutoffs(cases: Sequence[LocalCase], rate: float | None) -> NoveltyCutoffs | None:
    if rate is None:
        return None
    return fit_cutoffs([one for case in cases for one in case.novelty], rate)


def _novel(case: LocalCase, cutoffs: NoveltyCutoffs | None) -> NDArray[np.bool_]:
    """Return which slices are refused, (S,)."""
    if cutoffs is None:
        return np.zeros(len(case.logits), bool)
    return np.array([exceeds(one, cutoffs) is not None for one in case.novelty])


def _is_refused(case: LocalCase, cutoffs: NoveltyCutoffs | None) -> bool:
    return too_few(int((~_novel(case, cutoffs)).sum()), len(case.logits))
