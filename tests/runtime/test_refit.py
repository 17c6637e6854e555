"""A decision is refitted to labelled cases, and both are measured."""

from dataclasses import replace

import numpy as np
import pytest

from medtl_runtime.calibration import (
    Criterion,
    choose_operating_point,
    conformal_thresholds,
    fit_temperature,
)
from medtl_runtime.decision import (
    Aggregation,
    Decision,
    NoveltyCutoffs,
    OperatingPoint,
    Triage,
    probabilities,
)
from medtl_runtime.local_cases import LocalCase
from medtl_runtime.novelty import Novelty
from medtl_runtime.refit import Wanted, case_probabilities, measure, refit, summary

CLASSES = ("healthy", "lesion")
WANTED = Wanted(
    positive="lesion",
    criterion=Criterion(),
    error_rate=0.1,
    false_refusal_rate=0.1,
    aggregation=None,
)
SERIES = replace(WANTED, aggregation=Aggregation())
CUTOFFS = NoveltyCutoffs(energy=0.0, mahalanobis=10.0, false_refusal_rate=0.1, images=50)


def case(label: int, logits: list, distances: list[float] | None = None) -> LocalCase:
    return LocalCase(
        label=label,
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


def test_each_part_is_fitted_to_what_comes_before_it() -> None:
    cases = local_cases(120)
    fitted = refit(cases, CLASSES, Decision(), WANTED)
    logits = np.concatenate([one.logits for one in cases])
    labels = np.array([one.label for one in cases])
    assert fitted.temperature == fit_temperature(logits, labels) != 1
    chances = probabilities(logits, fitted.temperature)
    point = choose_operating_point(labels, chances, CLASSES, "lesion", cases="local images")
    assert fitted.operating_point == point
    assert fitted.triage == Triage(
        error_rate=0.1, thresholds=conformal_thresholds(labels, chances, 0.1), images=120
    )
    distances = sorted(one.novelty[0].mahalanobis for one in cases)
    assert fitted.novelty is not None
    assert fitted.novelty.mahalanobis == distances[114]  # ceil(121 * 0.95) = 115
    fitted.check(CLASSES)


def test_the_temperature_stays_where_every_image_is_called_right() -> None:
    cases = [case(k, [[1.0 - k, float(k)]]) for k in (0, 1) * 20]
    wanted = replace(WANTED, false_refusal_rate=None)
    assert refit(cases, CLASSES, Decision(temperature=1.7), wanted).temperature == 1.7


def test_what_is_not_wanted_is_not_there() -> None:
    own = Decision(
        operating_point=OperatingPoint(chosen="by hand"),
        triage=Triage(error_rate=0.1, thresholds=(0.2, 0.2), images=9),
        novelty=CUTOFFS,
    )
    wanted = replace(WANTED, positive=None, error_rate=None, false_refusal_rate=None)
    fitted = refit(local_cases(60), CLASSES, own, wanted)
    assert (fitted.triage, fitted.novelty) == (None, None)
    assert fitted.operating_point == own.operating_point


def test_more_than_two_classes_keep_the_most_probable_one() -> None:
    cases = local_cases(90, classes=3)
    fitted = refit(cases, ("a", "b", "c"), Decision(), replace(WANTED, positive=None))
    assert fitted.operating_point.rule == "argmax"
    assert fitted.triage is not None
    assert len(fitted.triage.thresholds) == 3
    assert fitted.temperature != 1


class TestSeries:
    def test_the_temperature_stays_and_the_point_is_fitted_to_the_cases(self):
        cases = local_cases(60, slices=5)
        fitted = refit(cases, CLASSES, Decision(temperature=2.0), SERIES)
        assert fitted.temperature == 2
        assert fitted.operating_point.chosen == "Youden's J on 60 local series"
        assert fitted.novelty is not None
        assert fitted.novelty.images == 300
        assert fitted.triage is not None
        assert fitted.triage.images == 60

    def test_the_new_positive_class_decides_how_slices_are_aggregated(self):
        cases = [case(1, [[2.0, 0.0], [0.0, 1.0]], [1, 1])]
        decision = Decision(operating_point=OperatingPoint(positive="lesion"))
        (row,) = case_probabilities(cases, CLASSES, decision, SERIES)
        assert row[1] == pytest.approx(1 / (1 + np.exp(-1)))
        (unguided,) = case_probabilities(cases, CLASSES, Decision(), SERIES)
        assert unguided[1] < row[1]
        fitted = refit([*cases, *local_cases(20, 2)], CLASSES, Decision(), SERIES)
        assert fitted.operating_point.positive == "lesion"

    def test_novel_slices_are_left_out_of_a_case(self):
        decision = Decision(operating_point=OperatingPoint(positive="lesion"), novelty=CUTOFFS)
        slices = [[2.0, 0.0], [0.0, 5.0], [0.0, 1.0]]
        (row,) = case_probabilities([case(1, slices, [1, 99, 1])], CLASSES, decision, SERIES)
        assert row[1] == pytest.approx(1 / (1 + np.exp(-1)))

    def test_a_case_that_is_refused_counts_with_all_its_slices(self):
        decision = Decision(operating_point=OperatingPoint(positive="lesion"), novelty=CUTOFFS)
        healthy = case(0, [[1.0, 0.0]], [1])
        refused = case(1, [[2.0, 0.0], [0.0, 5.0], [0.0, 1.0]], [99, 99, 1])
        (row,) = case_probabilities([refused], CLASSES, decision, SERIES)
        assert row[1] == pytest.approx(1 / (1 + np.exp(-5)))
        assert measure([refused, healthy], CLASSES, decision, SERIES).refused == 1
        half = case(1, [[2.0, 0.0], [0.0, 5.0]], [99, 1])
        assert measure([half, healthy], CLASSES, decision, SERIES).refused == 0


def test_measures_are_counted_as_a_person_would() -> None:
    decision = Decision(
        operating_point=OperatingPoint(rule="threshold", positive="lesion", threshold=0.5),
        triage=Triage(error_rate=0.1, thresholds=(0.3, 0.3), images=9),
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
    found = measure(cases, CLASSES, decision, WANTED)
    assert (found.accuracy, found.sensitivity, found.specificity) == (4 / 6, 1.0, 0.5)
    assert (found.findings, found.wrong_findings) == (3, 1)
    assert (found.abstained, found.refused) == (1, 2)
    unsure = 1 / (1 + np.exp(-0.1))
    likelihoods = [0.9, 0.1, unsure, 0.1, 0.9, unsure]
    assert found.negative_log_likelihood == pytest.approx(-np.log(likelihoods).mean())
    assert found.brier_score == pytest.approx(2 * ((1 - np.array(likelihoods)) ** 2).mean())
    assert summary(found)["accuracy"] == 0.666667
    without = measure(cases, CLASSES, Decision(), replace(WANTED, positive=None))
    assert (without.sensitivity, without.specificity, without.findings) == (None, None, 6)


@pytest.mark.parametrize("slices", [1, 4])
def test_new_cases_get_no_more_wrong_findings_than_the_error_rate(slices: int) -> None:
    wanted = SERIES if slices > 1 else WANTED
    wrong = []
    for seed in range(20):
        fitted = refit(local_cases(100, slices, seed=seed), CLASSES, Decision(), wanted)
        new = measure(local_cases(200, slices, seed=1000 + seed), CLASSES, fitted, wanted)
        wrong.append(new.wrong_findings / 200)
    error = np.std(wrong) / np.sqrt(len(wrong))
    assert 0 < np.mean(wrong) <= 0.1 + 3 * error
