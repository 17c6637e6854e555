"""A decision is refitted to labelled cases, and both are measured."""

from dataclasses import replace

import numpy as np
import pytest

from medtl_runtime.aggregation import Aggregation
from medtl_runtime.calibration import (
    Criterion,
    choose_operating_point,
    fit_temperature,
)
from medtl_runtime.conformal import conformal_thresholds
from medtl_runtime.decision import (
    Decision,
    HeadDecision,
    NoveltyCutoffs,
    OperatingPoint,
    Triage,
    plain_decision,
    probabilities,
)
from medtl_runtime.heads import Head
from medtl_runtime.local_cases import LocalCase
from medtl_runtime.novelty import Novelty
from medtl_runtime.refit import (
    Measured,
    MeasuredValues,
    Wanted,
    WantedHead,
    head_probabilities,
    labels_of,
    measure,
    refit,
    summary,
)

CLASSES = ("healthy", "lesion")
HEADS = (Head(name="label", classes=CLASSES),)
LESION = WantedHead(positive="lesion", error_rate=0.1)
WANTED = Wanted(
    heads=(LESION,),
    criterion=Criterion(),
    false_refusal_rate=0.1,
    aggregation=None,
)
NOTHING = WantedHead(positive=None, error_rate=None)
THREE = (Head(name="label", classes=("a", "b", "c")),)
SERIES = replace(WANTED, aggregation=Aggregation())
CUTOFFS = NoveltyCutoffs(energy=0.0, mahalanobis=10.0, false_refusal_rate=0.1, images=50)


def case(label: int, logits: list, distances: list[float] | None = None) -> LocalCase:
    return LocalCase(
        targets=(float(label),),
        patient="",
        logits=np.array(logits, np.float32),
        novelty=tuple(Novelty(energy=-1.0, mahalanobis=one) for one in distances or ()),
    )


def local_cases(count: int, slices: int = 1, classes: int = 2, seed: int = 0) -> list[LocalCase]:
    rng = np.random.default_rng(seed)
    cases = []
    for index in range(count):
        label = index % classes
        logits = rng.normal(size=(slices, classes), scale=2)
        logits[:, label] += 2
        cases.append(case(label, logits.tolist(), rng.chisquare(4, slices).tolist()))
    return cases


def pooled(cases: list[LocalCase], decision: Decision) -> np.ndarray:
    (labels,) = labels_of(cases, HEADS)
    return head_probabilities(labels, decision.heads[0], decision.novelty, Aggregation())


def measured_classes(cases: list[LocalCase], decision: Decision, wanted: Wanted) -> Measured:
    found = measure(cases, HEADS, decision, wanted)["label"]
    assert isinstance(found, Measured)
    return found


def test_each_part_is_fitted_to_what_comes_before_it() -> None:
    cases = local_cases(120)
    fitted = refit(cases, HEADS, Decision(heads=(HeadDecision(),)), WANTED)
    logits = np.concatenate([one.logits for one in cases])
    labels = np.array([int(one.targets[0]) for one in cases])
    assert fitted.heads[0].temperature == fit_temperature(logits, labels) != 1
    chances = probabilities(logits, fitted.heads[0].temperature)
    point = choose_operating_point(labels, chances, CLASSES, "lesion", cases="local images")
    assert fitted.heads[0].operating_point == point
    assert fitted.heads[0].triage == Triage(
        error_rate=0.1, thresholds=conformal_thresholds(labels, chances, 0.1), images=120
    )
    distances = sorted(one.novelty[0].mahalanobis for one in cases)
    assert fitted.novelty is not None
    assert fitted.novelty.mahalanobis == distances[114]  # ceil(121 * 0.95) = 115
    fitted.check(HEADS)


def test_the_temperature_stays_where_every_image_is_called_right() -> None:
    cases = [case(k, [[1.0 - k, float(k)]]) for k in (0, 1) * 20]
    wanted = replace(WANTED, false_refusal_rate=None)
    assert (
        refit(cases, HEADS, Decision(heads=(HeadDecision(temperature=1.7),)), wanted)
        .heads[0]
        .temperature
        == 1.7
    )


def test_what_is_not_wanted_is_not_there() -> None:
    own = Decision(
        heads=(
            HeadDecision(
                operating_point=OperatingPoint(chosen="by hand"),
                triage=Triage(error_rate=0.1, thresholds=(0.2, 0.2), images=9),
            ),
        ),
        novelty=CUTOFFS,
    )
    wanted = replace(WANTED, heads=(NOTHING,), false_refusal_rate=None)
    fitted = refit(local_cases(60), HEADS, own, wanted)
    assert (fitted.heads[0].triage, fitted.novelty) == (None, None)
    assert fitted.heads[0].operating_point == own.heads[0].operating_point


def test_more_than_two_classes_keep_the_most_probable_one() -> None:
    cases = local_cases(90, classes=3)
    fitted = refit(
        cases,
        THREE,
        Decision(heads=(HeadDecision(),)),
        replace(WANTED, heads=(replace(LESION, positive=None),)),
    )
    assert fitted.heads[0].operating_point.rule == "argmax"
    assert fitted.heads[0].triage is not None
    assert len(fitted.heads[0].triage.thresholds) == 3
    assert fitted.heads[0].temperature != 1


class TestSeries:
    def test_the_temperature_stays_and_the_point_is_fitted_to_the_cases(self):
        cases = local_cases(60, slices=5)
        fitted = refit(cases, HEADS, Decision(heads=(HeadDecision(temperature=2.0),)), SERIES)
        assert fitted.heads[0].temperature == 2
        assert fitted.heads[0].operating_point.chosen == "Youden's J on 60 local series"
        assert fitted.novelty is not None
        assert fitted.novelty.images == 300
        assert fitted.heads[0].triage is not None
        assert fitted.heads[0].triage.images == 60

    def test_the_new_positive_class_decides_how_slices_are_aggregated(self):
        cases = [case(1, [[2.0, 0.0], [0.0, 1.0]], [1, 1])]
        decision = Decision(
            heads=(HeadDecision(operating_point=OperatingPoint(positive="lesion")),)
        )
        (row,) = pooled(cases, decision)
        assert row[1] == pytest.approx(1 / (1 + np.exp(-1)))
        (unguided,) = pooled(cases, Decision(heads=(HeadDecision(),)))
        assert unguided[1] < row[1]
        fitted = refit(
            [*cases, *local_cases(20, 2)], HEADS, Decision(heads=(HeadDecision(),)), SERIES
        )
        assert fitted.heads[0].operating_point.positive == "lesion"

    def test_novel_slices_are_left_out_of_a_case(self):
        decision = Decision(
            heads=(HeadDecision(operating_point=OperatingPoint(positive="lesion")),),
            novelty=CUTOFFS,
        )
        slices = [[2.0, 0.0], [0.0, 5.0], [0.0, 1.0]]
        (row,) = pooled([case(1, slices, [1, 99, 1])], decision)
        assert row[1] == pytest.approx(1 / (1 + np.exp(-1)))

    def test_a_case_that_is_refused_counts_with_all_its_slices(self):
        decision = Decision(
            heads=(HeadDecision(operating_point=OperatingPoint(positive="lesion")),),
            novelty=CUTOFFS,
        )
        healthy = case(0, [[1.0, 0.0]], [1])
        refused = case(1, [[2.0, 0.0], [0.0, 5.0], [0.0, 1.0]], [99, 99, 1])
        (row,) = pooled([refused], decision)
        assert row[1] == pytest.approx(1 / (1 + np.exp(-5)))
        assert measure([refused, healthy], HEADS, decision, SERIES)["label"].refused == 1
        half = case(1, [[2.0, 0.0], [0.0, 5.0]], [99, 1])
        assert measure([half, healthy], HEADS, decision, SERIES)["label"].refused == 0


def test_measures_are_counted_as_a_person_would() -> None:
    decision = Decision(
        heads=(
            HeadDecision(
                operating_point=OperatingPoint(rule="threshold", positive="lesion", threshold=0.5),
                triage=Triage(error_rate=0.1, thresholds=(0.3, 0.3), images=9),
            ),
        ),
        novelty=CUTOFFS,
    )
    logit = np.log(0.9 / 0.1)
    cases = [
        case(0, [[logit, 0]], [1]),  # 0.9 healthy: right
        case(0, [[0, logit]], [1]),  # wrong
        case(0, [[0.1, 0]], [1]),  # right, but abstained from
        case(0, [[0, logit]], [99]),  # wrong, and refused
        case(1, [[0, logit]], [1]),  # right
        case(1, [[0, 0.1]], [99]),  # right, unsure, and refused: that comes first
    ]
    found = measured_classes(cases, decision, WANTED)
    assert (found.accuracy, found.sensitivity, found.specificity) == (4 / 6, 1.0, 0.5)
    assert (found.findings, found.wrong_findings) == (3, 1)
    assert (found.abstained, found.refused) == (1, 2)
    unsure = 1 / (1 + np.exp(-0.1))
    likelihoods = [0.9, 0.1, unsure, 0.1, 0.9, unsure]
    assert found.negative_log_likelihood == pytest.approx(-np.log(likelihoods).mean())
    assert found.brier_score == pytest.approx(2 * ((1 - np.array(likelihoods)) ** 2).mean())
    assert summary(found)["accuracy"] == 0.666667
    without = measured_classes(
        cases,
        Decision(heads=(HeadDecision(),)),
        replace(WANTED, heads=(replace(LESION, positive=None),)),
    )
    assert (without.sensitivity, without.specificity, without.findings) == (None, None, 6)


@pytest.mark.parametrize("slices", [1, 4])
def test_new_cases_get_no_more_wrong_findings_than_the_error_rate(slices: int) -> None:
    wanted = SERIES if slices > 1 else WANTED
    wrong = []
    for seed in range(20):
        fitted = refit(
            local_cases(100, slices, seed=seed), HEADS, Decision(heads=(HeadDecision(),)), wanted
        )
        new = measured_classes(local_cases(200, slices, seed=1000 + seed), fitted, wanted)
        wrong.append(new.wrong_findings / 200)
    error = np.std(wrong) / np.sqrt(len(wrong))
    assert 0 < np.mean(wrong) <= 0.1 + 3 * error


AGE = (Head(name="age", kind="regression", unit="a", mean=50.0, std=10.0),)
AGED = replace(WANTED, heads=(WantedHead(positive=None, error_rate=0.2),), false_refusal_rate=None)


def aged(count: int, slices: int = 1) -> list[LocalCase]:
    rng = np.random.default_rng(3)
    made = []
    for _ in range(count):
        value = rng.normal(50, 15)
        logits = (value - 50 + rng.normal(0, 4, (slices, 1))) / 10
        made.append(LocalCase(targets=(value,), patient="", logits=logits, novelty=()))
    return made


@pytest.mark.parametrize(("slices", "aggregation"), [(1, None), (5, Aggregation())])
def test_the_interval_of_a_value_is_fitted_to_the_errors_of_the_cases(
    slices: int, aggregation: Aggregation | None
) -> None:
    cases = aged(49, slices)
    wanted = replace(AGED, aggregation=aggregation)
    fitted = refit(cases, AGE, plain_decision(AGE), wanted)
    values = [float(np.median(50 + 10 * one.logits.astype(float))) for one in cases]
    errors = sorted(abs(v - one.targets[0]) for v, one in zip(values, cases, strict=True))
    margin = fitted.heads[0].interval
    assert margin is not None
    assert margin.half_width == pytest.approx(errors[39])  # ceil(50 * 0.8) = 40
    found = measure(cases, AGE, fitted, wanted)["age"]
    assert isinstance(found, MeasuredValues)
    assert found.mean_absolute_error == pytest.approx(np.mean(errors))
    assert found.root_mean_square_error == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert found.covered == pytest.approx(40 / 49)


def test_a_head_without_labels_keeps_its_decision() -> None:
    heads = (*HEADS, *AGE)
    cases = [
        replace(one, targets=(*one.targets, np.nan), logits=np.pad(one.logits, ((0, 0), (0, 1))))
        for one in local_cases(60)
    ]
    own = plain_decision(heads)
    wanted = replace(WANTED, heads=(LESION, NOTHING))
    fitted = refit(cases, heads, own, wanted)
    assert fitted.heads[0] == refit(local_cases(60), HEADS, plain_decision(HEADS), WANTED).heads[0]
    assert fitted.heads[1] == own.heads[1]
    assert list(measure(cases, heads, fitted, wanted)) == ["label"]
