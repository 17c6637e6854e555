"""What ``medtl-infer calibrate`` is to fit, and whether there are cases enough for it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medtl_runtime.errors import UsageError

if TYPE_CHECKING:
    from medtl_runtime.decision import HeadDecision
    from medtl_runtime.heads import Head
    from medtl_runtime.local_cases import Labelled, LocalCase
    from medtl_runtime.predictor import Predictor
    from medtl_runtime.refit import Wanted, WantedHead


LEAST_CASES = 10
"""Of each class, and of a regression in all. With fewer, one case moves sensitivity by more than
ten points, and triage at an error rate of 0.1 cannot exclude the class at all."""


@dataclass(frozen=True)
class Asked:
    """The options that say what to fit, as they were given."""

    criterion: str | None
    positive: str | None
    error_rate: float | None
    false_refusal_rate: float | None
    series: bool


def settled(predictor: "Predictor", asked: Asked) -> "Wanted":
    """Return what to fit: what was asked for, else what the model does by its own decision."""
    from medtl_runtime.calibration import Criterion
    from medtl_runtime.refit import Wanted

    _check_two_classes(predictor.description.heads, asked)
    described, own = predictor.description, predictor.decision
    error_rate, refusal_rate = asked.error_rate, asked.false_refusal_rate
    if error_rate == 1 or refusal_rate == 1:
        raise UsageError("a rate of 1 leaves nothing to find; expected less")
    if refusal_rate and described.embedding_reference is None:
        raise UsageError("--false-refusal-rate: the model file holds nothing to score novelty by")
    if refusal_rate is None and own.novelty is not None:
        refusal_rate = own.novelty.false_refusal_rate
    return Wanted(
        heads=tuple(
            _settled_head(head, point, asked)
            for head, point in zip(described.heads, own.heads, strict=True)
        ),
        criterion=Criterion.parse(asked.criterion or "youden"),
        false_refusal_rate=refusal_rate or None,
        aggregation=described.aggregation if asked.series else None,
    )


def _settled_head(head: "Head", own: "HeadDecision", asked: Asked) -> "WantedHead":
    from medtl_runtime.refit import WantedHead

    rate = asked.error_rate
    if rate is None and own.triage is not None:
        rate = own.triage.error_rate
    if rate is None and own.interval is not None:
        rate = 1 - own.interval.coverage
    positive = None
    if _has_two_classes(head):
        positive = asked.positive or own.operating_point.positive
        if head.kind == "binary":
            positive = positive or head.classes[1]
        if asked.criterion and positive is None:
            raise UsageError(
                "--criterion needs --positive: the model does not say which class to find"
            )
    return WantedHead(positive=positive, error_rate=rate or None)


def _has_two_classes(head: "Head") -> bool:
    return len(head.classes) == 2 and head.kind != "ordinal"


def _check_two_classes(heads: "Sequence[Head]", asked: Asked) -> None:
    """Refuse options that no head, or not one alone, can use."""
    if not (asked.criterion or asked.positive):
        return
    two = [head for head in heads if _has_two_classes(head)]
    if not two:
        found = "; ".join(f"{head.name} is {head.kind} with {len(head.classes)}" for head in heads)
        if len(heads) == 1 and heads[0].kind == "multiclass":
            found = f"the model has {len(heads[0].classes)}"
        raise UsageError(f"--criterion and --positive are for two classes; {found}")
    if asked.positive is None:
        return
    if len(two) > 1:
        names = ", ".join(head.name for head in two)
        raise UsageError(f"--positive is for one head of two classes; the model has {names}")
    if asked.positive not in two[0].classes:
        expected = ", ".join(two[0].classes)
        raise UsageError(f"--positive is no class; the classes are {expected}")


def require_cases(
    labelled: "Sequence[Labelled | LocalCase]",
    heads: "Sequence[Head]",
    *,
    left_out: Mapping[str, int] | None = None,
    least: int = LEAST_CASES,
) -> None:
    """Refuse too few cases of a head that some are labelled for; one head has to have some."""
    reasons = f"; left out: {by_reason(left_out)}" if left_out else ""
    for head, counts in zip(heads, counts_of(labelled, heads), strict=True):
        whose = "" if len(heads) == 1 else f" in {head.name}"
        if not sum(counts.values()) and len(heads) > 1:
            continue
        if head.kind == "regression":
            if counts[""] < least:
                found = f"{counts['']} of {head.name}; it takes {LEAST_CASES} cases"
                raise UsageError(f"too few to calibrate: {found}{reasons}")
            continue
        for name, count in counts.items():
            if count < least:
                found = f"{count} of {name}{whose}; it takes {LEAST_CASES} cases of each class"
                raise UsageError(f"too few to calibrate: {found}{reasons}")
    if not any(sum(counts.values()) for counts in counts_of(labelled, heads)):
        raise UsageError(f"too few to calibrate: no case is labelled for a head{reasons}")


def counts_of(
    labelled: "Sequence[Labelled | LocalCase]", heads: "Sequence[Head]"
) -> list[dict[str, int]]:
    """Return how many cases each head has, by class; those of a regression under no name."""
    counts = [dict.fromkeys(head.classes or ("",), 0) for head in heads]
    for case in labelled:
        for head, own, target in zip(heads, counts, case.targets, strict=True):
            if not math.isnan(target):
                own[head.classes[int(target)] if head.classes else ""] += 1
    return counts


def require_rates(asked: Asked, cases: "Sequence[LocalCase]", heads: "Sequence[Head]") -> None:
    """Refuse rates that were asked for and that so few cases cannot hold."""
    from medtl_runtime.conformal import (
        require_for_interval,
        require_for_refusals,
        require_for_triage,
    )

    for head, counts in zip(heads, counts_of(cases, heads), strict=True):
        if not asked.error_rate or not sum(counts.values()):
            continue
        if head.kind == "regression":
            require_for_interval(asked.error_rate, counts[""], unit=f"cases of {head.name}")
        else:
            by_index = dict(enumerate(counts.values()))
            require_for_triage(asked.error_rate, by_index, head.classes, unit="cases")
    if asked.false_refusal_rate:
        images = sum(len(case.logits) for case in cases)
        scores = 1 if all(head.kind == "regression" for head in heads) else 2
        require_for_refusals(asked.false_refusal_rate, images, unit="images", scores=scores)


def by_reason(left_out: Mapping[str, int]) -> str:
    """Return how many were left out, and how many for which reason."""
    reasons = ", ".join(f"{code} {count}" for code, count in sorted(left_out.items()))
    return f"{sum(left_out.values())} ({reasons})"
