"""What ``medtl-infer calibrate`` says of a fit: the account in the site file, notes, a table."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from medtl_runtime.calibrate_wanted import by_reason, counts_of

if TYPE_CHECKING:
    from medtl_runtime.decision import Decision, HeadDecision
    from medtl_runtime.heads import Head
    from medtl_runtime.local_cases import Gathered
    from medtl_runtime.refit import Measured, MeasuredValues, Wanted


FEW_CASES = 50
"""Of each class, and of a regression in all; with fewer there is a note."""


def account_of(
    gathered: "Gathered",
    heads: "Sequence[Head]",
    wanted: "Wanted",
    measured: "Mapping[str, Mapping[str, Measured | MeasuredValues]]",
) -> dict[str, Any]:
    """Return what the site file says of the fit; counts and measures, nothing of a patient."""
    from medtl_runtime.refit import summary

    cases = gathered.cases
    patients = {case.patient for case in cases}
    counts = dict(zip((head.name for head in heads), counts_of(cases, heads), strict=True))
    positives = {head.name: own.positive for head, own in zip(heads, wanted.heads, strict=True)}
    return {
        "created": datetime.now(UTC).date().isoformat(),
        "cases": len(cases),
        "images": sum(len(case.logits) for case in cases),
        "patients": None if "" in patients else len(patients),
        "left_out": dict(sorted(gathered.left_out.items())),
        "heads": {
            name: {
                "cases": counts[name][""] if "" in counts[name] else counts[name],
                "criterion": None if positives[name] is None else str(wanted.criterion),
                **{when: summary(one[name]) for when, one in measured.items()},
            }
            for name in measured["after"]
        },
    }


def notes_of(
    account: Mapping[str, Any],
    heads: "Sequence[Head]",
    own: "Decision",
    fitted: "Decision",
    wanted: "Wanted",
) -> Iterator[str]:
    """Yield what is weak about the fit."""
    total, patients = account["cases"], account["patients"]
    for head, before, after in zip(heads, own.heads, fitted.heads, strict=True):
        whose = "" if len(heads) == 1 else f"{head.name}: "
        if head.name not in account["heads"]:
            yield f"{whose}no case is labelled for it; it keeps its decision"
            continue
        for note in _head_notes(account["heads"][head.name]["cases"], before, after, wanted):
            yield f"{whose}{note}"
    if patients is not None and patients < total:
        found = f"{total} cases are of {patients} patients"
        yield f"{found}: they count as if independent, so the rates hold roughly"
    if wanted.aggregation is not None:
        yield "the temperature stays: the label of a series does not say what each slice shows"
        if fitted.novelty is not None:
            yield "slices of a series are alike, so the rate of refusal as novel holds roughly"
    if fitted.novelty is not None and fitted.novelty.false_refusal_rate > (
        wanted.false_refusal_rate or 0
    ):
        rate = fitted.novelty.false_refusal_rate
        yield f"so few images hold no lower rate of refusal as novel than {rate:.3g}"


def _head_notes(
    cases: int | Mapping[str, int],
    own: "HeadDecision",
    fitted: "HeadDecision",
    wanted: "Wanted",
) -> Iterator[str]:
    """Yield what is weak about the fit of one head."""
    if isinstance(cases, int):
        if cases < FEW_CASES:
            yield f"{cases} cases: with fewer than {FEW_CASES} the interval is rough"
        if own.interval and fitted.interval and fitted.interval.coverage < own.interval.coverage:
            found = f"so few cases hold no higher coverage than {fitted.interval.coverage:.3g}"
            yield found
        return
    for name, count in cases.items():
        if count < FEW_CASES:
            yield f"{count} cases of {name}: with fewer than {FEW_CASES} thresholds are rough"
    if wanted.aggregation is None and fitted.temperature == own.temperature:
        yield "the temperature stays: with every image called right there is nothing to fit it to"
    if fitted.triage is not None and 0 in fitted.triage.thresholds:
        yield "a class has too few cases to exclude it at the error rate: it is in every set"


_MEASURES = {
    "negative_log_likelihood": "negative log-likelihood",
    "brier_score": "Brier score",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "findings": "cases with a finding",
    "wrong_findings": "  of which wrong",
    "abstained": "cases abstained from",
    "mean_absolute_error": "mean absolute error",
    "root_mean_square_error": "root mean square error",
    "covered": "within the interval",
    "refused": "cases refused as novel",
}


def table(
    account: Mapping[str, Any], heads: "Sequence[Head]", own: "Decision", fitted: "Decision"
) -> Iterator[str]:
    """Yield the tables of before and after, and how to read them."""
    found = account["heads"]
    by_class = _by_class(found[heads[0].name]["cases"]) if len(heads) == 1 else ""
    yield f"fitted on {account['cases']} cases{by_class}, {account['images']} images"
    if account["left_out"]:
        yield f"left out: {by_reason(account['left_out'])}"
    for head, before, after in zip(heads, own.heads, fitted.heads, strict=True):
        if head.name not in found:
            continue
        measured = found[head.name]
        cases = measured["cases"]
        yield ""
        if len(heads) > 1:
            total = cases if isinstance(cases, int) else sum(cases.values())
            yield f"{head.name}, {total} cases{_by_class(cases)}"
        yield f"{'':28}{'before':>10}{'after':>10}"
        yield from _compared(_settings(head, before, own), _settings(head, after, fitted))
        yield from _compared(*(_measures(measured[when]) for when in ("before", "after")))
    yield ""
    yield 'The figures "after" are of the cases that were fitted on; new cases do a little worse.'


def _by_class(cases: int | Mapping[str, int]) -> str:
    if isinstance(cases, int):
        return ""
    return f" ({', '.join(f'{name} {count}' for name, count in cases.items())})"


_Figures = Mapping[str, float | str | None]


def _compared(before: _Figures, after: _Figures) -> Iterator[str]:
    for name in before:
        yield f"{name:28}{_shown(before[name]):>10}{_shown(after[name]):>10}"


def _measures(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {label: measured[name] for name, label in _MEASURES.items() if name in measured}


def _settings(
    head: "Head", own: "HeadDecision", decision: "Decision"
) -> dict[str, float | str | None]:
    point, triage, novelty = own.operating_point, own.triage, decision.novelty
    refusal = {"rate of false refusal": None if novelty is None else novelty.false_refusal_rate}
    if head.kind == "regression":
        margin = own.interval
        unit = f" ({head.unit})" if head.unit else ""
        return {
            f"interval, plus or minus{unit}"[:27]: None if margin is None else margin.half_width,
            "coverage of the interval": None if margin is None else margin.coverage,
            **refusal,
        }
    return {
        "temperature": own.temperature,
        "operating point": point.threshold if point.rule == "threshold" else point.rule,
        "error rate of triage": None if triage is None else triage.error_rate,
        **refusal,
    }


def _shown(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
