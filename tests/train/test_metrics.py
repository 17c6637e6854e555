"""Metrics are scikit-learn's, intervals come from patients, the threshold is Youden's."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics as skm
from numpy.typing import NDArray

from medtl_runtime.calibration import choose_operating_point
from medtl_runtime.decision import OperatingPoint
from medtl_runtime.heads import Head, width
from medtl_train.scoring.assessment import assess_head
from medtl_train.scoring.metrics import (
    NAMES,
    ORDINAL,
    VALUES,
    differences,
    measure,
    measure_with_intervals,
    measurer,
    monitored,
)
from medtl_train.scoring.scored import Scored, ScoredValues, score

BINARY = ("healthy", "lesion")


def scored(
    labels: NDArray,
    probabilities: NDArray,
    *,
    patients: NDArray | None = None,
    positive: str | None = None,
    threshold: float = 0.5,
) -> Scored:
    """Return images with what a model says of them; two classes have a threshold."""
    k = probabilities.shape[1]
    classes = BINARY if k == 2 else tuple(f"class {i}" for i in range(k))
    point = OperatingPoint()
    if k == 2:
        positive = positive or "lesion"
        point = OperatingPoint(rule="threshold", positive=positive, threshold=threshold)
    if patients is None:
        patients = np.array([f"p{i}" for i in range(len(labels))])
    return Scored(
        labels=labels, probabilities=probabilities, patients=patients, classes=classes, point=point
    )


def drawn(n: int, k: int, seed: int = 0, *, ties: bool = False, skill: float = 1.0) -> Scored:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k)) + skill * np.eye(k)[labels]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if ties:
        chances = np.round(chances, 1)
        chances[:, 0] = 1 - chances[:, 1:].sum(1)
    return scored(labels, chances)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("positive", BINARY)
@pytest.mark.parametrize("seed", [0, 1])
def test_two_classes_are_measured_as_by_scikit_learn(
    weighted: bool, ties: bool, positive: str, seed: int
) -> None:
    one = drawn(150, 2, seed, ties=ties)
    one = scored(one.labels, one.probabilities, positive=positive, threshold=0.4)
    weights = np.random.default_rng(9).integers(0, 4, 150).astype(float) if weighted else None
    column = BINARY.index(positive)
    truth, scores = one.labels == column, one.probabilities[:, column]
    called = scores >= 0.4
    given = {"sample_weight": weights}
    assert measure(one, weights) == pytest.approx(
        {
            "auroc": skm.roc_auc_score(truth, scores, **given),
            "average_precision": skm.average_precision_score(truth, scores, **given),
            "accuracy": skm.accuracy_score(truth, called, **given),
            "balanced_accuracy": skm.balanced_accuracy_score(truth, called, **given),
            "f1": skm.f1_score(truth, called, **given),
            "recall": skm.recall_score(truth, called, **given),
            "precision": skm.precision_score(truth, called, **given),
            "specificity": skm.recall_score(~truth, ~called, **given),
        },
        abs=1e-12,
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_several_classes_are_measured_one_against_the_rest(weighted: bool, ties: bool) -> None:
    one = drawn(200, 4, ties=ties)
    weights = np.random.default_rng(9).integers(0, 4, 200).astype(float) if weighted else None
    truth, called = one.labels, one.probabilities.argmax(1)
    given = {"sample_weight": weights}
    specificities = [skm.recall_score(truth != k, called != k, **given) for k in range(4)]
    rankings = {
        name: np.mean([score(truth == k, one.probabilities[:, k], **given) for k in range(4)])
        for name, score in (
            ("auroc", skm.roc_auc_score),
            ("average_precision", skm.average_precision_score),
        )
    }
    assert measure(one, weights) == pytest.approx(
        {
            **rankings,
            "accuracy": skm.accuracy_score(truth, called, **given),
            "balanced_accuracy": skm.balanced_accuracy_score(truth, called, **given),
            "f1": skm.f1_score(truth, called, average="macro", **given),
            "recall": skm.recall_score(truth, called, average="macro", **given),
            "precision": skm.precision_score(truth, called, average="macro", **given),
            "specificity": np.mean(specificities),
        },
        abs=1e-12,
    )
    if not weighted and not ties:
        own = skm.roc_auc_score(truth, one.probabilities, multi_class="ovr", average="macro")
        assert rankings["auroc"] == pytest.approx(own)


def test_names_lists_what_is_measured() -> None:
    assert set(measure(drawn(30, 2))) == set(NAMES)


@pytest.mark.parametrize(("skill", "expected"), [(50.0, 1.0), (-50.0, 0.0)])
def test_a_perfect_order_and_its_reverse_are_the_ends_of_the_scale(
    skill: float, expected: float
) -> None:
    assert measure(drawn(40, 2, skill=skill))["auroc"] == expected


def test_a_model_that_says_one_thing_has_an_auroc_of_one_half() -> None:
    labels = np.array([0, 1, 1, 0, 1])
    found = measure(scored(labels, np.full((5, 2), 0.5)))
    assert found["auroc"] == pytest.approx(0.5)
    assert found["average_precision"] == pytest.approx(3 / 5)


def test_a_class_that_is_never_called_has_no_precision_and_counts_as_zero() -> None:
    labels = np.array([0, 1, 0, 1])
    found = measure(scored(labels, np.array([[0.9, 0.1]] * 4)))
    assert (found["precision"], found["recall"], found["f1"]) == (0, 0, 0)
    assert (found["specificity"], found["accuracy"]) == (1, 0.5)


def test_without_the_other_class_what_needs_it_is_not_a_number() -> None:
    found = measure(scored(np.ones(3, int), np.array([[0.4, 0.6], [0.1, 0.9], [0.7, 0.3]])))
    undefined = {name for name, value in found.items() if math.isnan(value)}
    assert undefined == {"auroc", "average_precision", "balanced_accuracy", "specificity"}
    assert found["recall"] == pytest.approx(2 / 3)


def test_a_class_without_weight_is_as_good_as_missing() -> None:
    one = scored(np.array([0, 1, 1]), np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]))
    assert math.isnan(measure(one, np.array([0.0, 1.0, 2.0]))["auroc"])
    assert measure(one, np.array([1.0, 1.0, 0.0]))["auroc"] == 1


def test_weights_count_images_so_many_times() -> None:
    one = drawn(60, 3)
    weights = np.random.default_rng(2).integers(0, 4, 60)
    again = np.repeat(np.arange(60), weights)
    repeated = scored(one.labels[again], one.probabilities[again])
    assert measure(one, weights.astype(float)) == pytest.approx(measure(repeated), abs=1e-12)


def test_an_interval_holds_its_value_and_has_a_width() -> None:
    found = measure_with_intervals(drawn(80, 2), seed=0, resamples=200)
    for name, metric in found.items():
        assert metric["low"] < metric["value"] < metric["high"], name
        assert metric["low"] >= 0
        assert metric["high"] <= 1


def test_intervals_hang_on_the_seed_alone() -> None:
    one = drawn(50, 2)
    first = measure_with_intervals(one, seed=3, resamples=50)
    assert measure_with_intervals(one, seed=3, resamples=50) == first
    assert measure_with_intervals(one, seed=4, resamples=50) != first


def test_intervals_are_quantiles_over_patients_drawn_with_replacement() -> None:
    one = drawn(40, 2)
    one = scored(
        one.labels, one.probabilities, patients=np.array([f"p{i // 4}" for i in range(40)])
    )
    found = measure_with_intervals(one, seed=0, resamples=4000)["accuracy"]
    right = (one.labels == one.predicted).reshape(10, 4).mean(1)
    draws = np.random.default_rng(1).integers(0, 10, (20000, 10))
    expected = np.quantile(right[draws].mean(1), [0.025, 0.975])
    np.testing.assert_allclose([found["low"], found["high"]], expected, atol=0.026)


def test_more_images_of_the_same_patients_make_no_interval_narrower() -> None:
    one = drawn(60, 2)
    again = np.repeat(np.arange(60), 5)

    def width(patients: NDArray, index: NDArray) -> float:
        given = scored(one.labels[index], one.probabilities[index], patients=patients)
        metric = measure_with_intervals(given, seed=0, resamples=400)["auroc"]
        return metric["high"] - metric["low"]

    alone = width(one.patients, np.arange(60))
    assert width(one.patients[again], again) == pytest.approx(alone)
    as_if_strangers = width(np.arange(300).astype(str), again)
    assert as_if_strangers < 0.6 * alone


def test_ninety_five_percent_intervals_cover_the_truth_about_so_often() -> None:
    distance = 1.2
    truth = statistics.NormalDist().cdf(distance / math.sqrt(2))  # AUROC of two normal densities
    covered = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 40)
        chances = 1 / (1 + np.exp(-(rng.normal(size=80) + distance * labels)))
        one = scored(labels, np.stack([1 - chances, chances], 1))
        metric = measure_with_intervals(one, seed=seed, resamples=150)["auroc"]
        covered += metric["low"] <= truth <= metric["high"]
    assert 0.86 < covered / 150 < 0.995


def test_an_evaluation_is_json_and_undefined_metrics_are_null() -> None:
    labels = np.ones(3, int)
    found = assess_head(scored(labels, np.array([[0.4, 0.6], [0.1, 0.9], [0.7, 0.3]])), seed=0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["metrics"]["auroc"] == {"value": None, "low": None, "high": None}
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert (found["images"], found["patients"]) == (3, 3)


@pytest.mark.parametrize("k", [2, 5])
def test_the_confusion_matrix_has_the_truth_in_its_rows(k: int) -> None:
    one = drawn(100, k)
    expected = skm.confusion_matrix(one.labels, one.predicted, labels=range(k))
    assert assess_head(one, seed=0, resamples=2)["confusion"] == expected.tolist()


def youden(labels: NDArray, scores: NDArray, threshold: float) -> float:
    called = scores >= threshold
    return called[labels == 1].mean() - called[labels == 0].mean()


@pytest.mark.parametrize("positive", BINARY)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_has_a_higher_youden_index(positive: str, ties: bool, seed: int) -> None:
    one = drawn(60, 2, seed, ties=ties)
    point = choose_operating_point(one.labels, one.probabilities, BINARY, positive)
    assert (point.rule, point.positive) == ("threshold", positive)
    scores = one.probabilities[:, BINARY.index(positive)]
    labels = (one.labels == BINARY.index(positive)).astype(int)
    best = max(youden(labels, scores, t) for t in [*np.unique(scores), 2.0])
    assert youden(labels, scores, point.threshold) == pytest.approx(best)
    assert not np.isclose(scores, point.threshold, rtol=0, atol=1e-9).any()
    assert "60 validation images" in point.chosen


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-9])
def test_the_threshold_divides_probabilities_however_small(scale: float) -> None:
    scores = scale * np.array([1.0, 2.0, 3.0, 4.0])
    labels = np.array([0, 0, 1, 1])
    for column in (scores, 1 - scores[::-1]):
        chances = np.stack([1 - column, column], 1)
        point = choose_operating_point(labels, chances, BINARY, "lesion")
        called = [point.decide(BINARY, row) for row in chances]
        assert called == ["healthy", "healthy", "lesion", "lesion"]


def test_a_model_that_says_one_thing_gets_a_threshold_that_can_be_stored() -> None:
    labels = np.array([0, 1, 0, 1])
    point = choose_operating_point(labels, np.full((4, 2), 0.5), BINARY, "lesion")
    assert 0 <= point.threshold <= 1


def test_a_model_that_is_always_wrong_is_not_turned_round() -> None:
    labels = np.array([0, 0, 1, 1])
    scores = np.array([0.9, 0.8, 0.2, 0.1])
    chances = np.stack([1 - scores, scores], 1)
    point = choose_operating_point(labels, chances, BINARY, "lesion")
    assert 0 <= point.threshold <= 1
    assert youden(labels, scores, point.threshold) == 0


# --- two models on the same images ---------------------------------------------------------------


def two_models(n: int = 150, k: int = 2, *, noise: float = 0.4) -> tuple[Scored, Scored]:
    """Return a model and one that says nearly the same, on images of patients with three each."""
    first = drawn(n, k)
    shift = noise * np.random.default_rng(9).normal(size=(n, k))
    other = np.exp(np.log(first.probabilities) + shift)
    other /= other.sum(1, keepdims=True)
    patients = np.array([f"p{i // 3}" for i in range(n)])
    return tuple(scored(first.labels, p, patients=patients) for p in (first.probabilities, other))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("k", [2, 3])
def test_differences_are_those_of_the_metrics_over_patients_drawn_for_both(k: int) -> None:
    before, after = two_models(60, k)
    found = differences(before, after, seed=5, resamples=40)
    rng = np.random.default_rng(5)
    names = sorted(set(before.patients))
    rows = []
    for _ in range(40):
        chosen = [names[i] for i in rng.integers(len(names), size=len(names))]
        index = np.concatenate([np.flatnonzero(before.patients == name) for name in chosen])
        one, other = (
            measure(
                Scored(
                    labels=model.labels[index],
                    probabilities=model.probabilities[index],
                    patients=model.patients[index],
                    classes=model.classes,
                    point=model.point,
                )
            )
            for model in (before, after)
        )
        rows.append({name: other[name] - one[name] for name in NAMES})
    for name in NAMES:
        low, high = np.quantile([row[name] for row in rows], [0.025, 0.975])
        value = measure(after)[name] - measure(before)[name]
        assert found[name]["value"] == pytest.approx(value, abs=1e-12)
        assert found[name]["low"] == pytest.approx(low, abs=1e-12)
        assert found[name]["high"] == pytest.approx(high, abs=1e-12)


def test_a_model_does_not_differ_from_itself_at_all() -> None:
    model, _ = two_models(60)
    found = differences(model, model, seed=0, resamples=50)
    assert all(one == {"value": 0.0, "low": 0.0, "high": 0.0} for one in found.values())


def test_turning_the_comparison_round_turns_the_interval_round() -> None:
    before, after = two_models(60)
    there, back = (differences(*pair, seed=0, resamples=50) for pair in
                   ((before, after), (after, before)))  # fmt: skip
    for name in NAMES:
        for one, other in (("value", "value"), ("low", "high"), ("high", "low")):
            assert there[name][one] == pytest.approx(-(back[name][other] or 0), abs=1e-12)


def test_pairing_makes_the_interval_narrower_than_that_of_two_separate_draws() -> None:
    before, after = two_models()
    paired = differences(before, after, seed=0, resamples=300)["auroc"]
    ends = [measure_with_intervals(model, seed=s, resamples=300)["auroc"]
            for s, model in enumerate((before, after))]  # fmt: skip
    widths = [(one["high"] or 0) - (one["low"] or 0) for one in ends]
    unpaired = math.hypot(*widths)
    assert 0 < (paired["high"] or 0) - (paired["low"] or 0) < 0.6 * unpaired


def test_models_of_other_images_are_not_compared() -> None:
    before, _ = two_models(60)
    with pytest.raises(AssertionError):
        differences(before, drawn(60, 2, seed=1), seed=0, resamples=10)


def test_a_metric_that_is_not_defined_has_no_difference() -> None:
    before, after = two_models(30)
    ill = np.ones(30, np.int64)
    pair = (scored(ill, one.probabilities) for one in (before, after))
    found = differences(*pair, seed=0, resamples=20)
    assert found["auroc"] == {"value": None, "low": None, "high": None}
    assert found["recall"]["value"] is not None
    json.dumps(found, allow_nan=False)


# --- decisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        OperatingPoint(),
        OperatingPoint(rule="median"),
        OperatingPoint(rule="threshold", positive="healthy", threshold=0.3),
        OperatingPoint(rule="threshold", positive="lesion", threshold=0.7),
    ],
)
def test_decisions_are_those_of_the_operating_point(point: OperatingPoint) -> None:
    one = replace(drawn(200, 2, ties=True), point=point)
    expected = [one.classes.index(point.decide(one.classes, row)) for row in one.probabilities]
    assert one.predicted.tolist() == expected


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rate", [0.8, 0.9, 0.95, 1.0])
def test_sensitivity_at_a_specificity_is_the_best_of_all_thresholds(
    rate: float, ties: bool
) -> None:
    one = drawn(120, 2, ties=ties)
    weights = np.random.default_rng(1).integers(0, 3, 120).astype(float)
    found = measurer(one, rates=[rate])(weights)
    fall_out, recall, _ = skm.roc_curve(
        one.labels, one.probabilities[:, 1], sample_weight=weights, drop_intermediate=False
    )
    specificity = 1 - fall_out
    best = recall[specificity >= rate - 1e-12].max()
    assert found[f"sensitivity_at_specificity_{rate:g}"] == pytest.approx(best)
    best = specificity[recall >= rate - 1e-12].max()
    assert found[f"specificity_at_sensitivity_{rate:g}"] == pytest.approx(best)


def test_rates_are_of_two_classes_only() -> None:
    assert set(measurer(drawn(50, 3), rates=[0.9])(np.ones(50))) == set(NAMES)


# --- grades and values ---------------------------------------------------------------------------


def graded(n: int = 200, k: int = 4, seed: int = 0) -> Scored:
    one = drawn(n, k, seed, skill=2.0)
    return replace(one, point=OperatingPoint(rule="median"))


@pytest.mark.parametrize("weighted", [False, True])
def test_grades_are_measured_as_by_scikit_learn(weighted: bool) -> None:
    one = graded()
    weights = np.random.default_rng(9).integers(0, 4, 200).astype(float) if weighted else None
    given = {"sample_weight": weights}
    found = measure(one, weights)
    called = one.predicted
    kappa = skm.cohen_kappa_score(one.labels, called, weights="quadratic", **given)
    assert found["quadratic_weighted_kappa"] == pytest.approx(kappa)
    assert found["grade_mae"] == pytest.approx(skm.mean_absolute_error(one.labels, called, **given))
    near = np.abs(one.labels - called) <= 1
    assert found["within_one_grade"] == pytest.approx(np.average(near, weights=weights))
    assert found["accuracy"] == pytest.approx(skm.accuracy_score(one.labels, called, **given))
    splits = [
        skm.roc_auc_score(one.labels > k, one.probabilities[:, k + 1 :].sum(1), **given)
        for k in range(3)
    ]
    assert found["auroc"] == pytest.approx(np.mean(splits))
    assert set(found) == {*NAMES, *ORDINAL}


def valued(n: int = 120, seed: int = 0) -> ScoredValues:
    rng = np.random.default_rng(seed)
    true = rng.normal(40, 12, n)
    return ScoredValues(
        values=true,
        predicted=0.8 * true + 5 + rng.normal(0, 4, n),
        patients=np.array([f"p{i // 3}" for i in range(n)]),
        unit="a",
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_values_are_measured_as_by_scikit_learn(weighted: bool) -> None:
    one = valued()
    weights = np.random.default_rng(9).integers(0, 4, 120).astype(float) if weighted else None
    given = {"sample_weight": weights}
    true, said = one.values, one.predicted
    covariance = np.cov(true, said, aweights=weights, ddof=0)
    bias = np.average(said - true, weights=weights)
    expected = {
        "mae": skm.mean_absolute_error(true, said, **given),
        "rmse": skm.root_mean_squared_error(true, said, **given),
        "r2": skm.r2_score(true, said, **given),
        "pearson": covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]),
        "concordance": 2 * covariance[0, 1] / (covariance.trace() + bias**2),
        "bias": bias,
    }
    assert measure(one, weights) == pytest.approx(expected)
    assert set(expected) == set(VALUES)


def test_a_shift_lowers_the_concordance_and_leaves_the_correlation() -> None:
    one = valued()
    shifted = replace(one, predicted=one.predicted + 20)
    before, after = measure(one), measure(shifted)
    assert after["pearson"] == pytest.approx(before["pearson"])
    assert after["concordance"] < before["concordance"] - 0.2


def test_values_have_intervals_and_differences_over_patients() -> None:
    one = valued()
    worse = replace(one, predicted=one.predicted + np.resize([4, -4], 120))
    found = measure_with_intervals(one, seed=0, resamples=100)
    assert all(m["low"] < m["value"] < m["high"] for m in found.values())
    change = differences(one, worse, seed=0, resamples=100)["mae"]
    assert 0 < change["low"] < change["value"] < change["high"]


# --- several heads -------------------------------------------------------------------------------

HEADS = (
    Head(name="edema", kind="binary", classes=("absent", "present")),
    Head(name="organ", kind="multiclass", classes=("liver", "lung", "spleen")),
    Head(name="stage", kind="ordinal", classes=("0", "1", "2", "3")),
    Head(name="age", kind="regression", unit="a", mean=50, std=10),
)


def several(n: int = 60) -> tuple[NDArray, NDArray, NDArray]:
    """Return logits, targets and patients of `HEADS`; every fifth target is not known."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(n, width(HEADS)))
    targets = np.stack([rng.integers(0, k, n) for k in (2, 3, 4)] + [rng.normal(50, 10, n)], 1)
    targets[rng.random(targets.shape) < 0.2] = np.nan
    return logits, targets, np.array([f"p{i // 2}" for i in range(n)])


def test_each_head_answers_with_its_columns_for_the_images_whose_target_is_known() -> None:
    logits, targets, patients = several()
    point = OperatingPoint(rule="threshold", positive="present", threshold=0.2)
    found = score(
        HEADS, logits, targets, patients, temperatures={"organ": 2.0}, points={"edema": point}
    )
    assert list(found) == ["edema", "organ", "stage", "age"]
    known = ~np.isnan(targets)
    edema, organ, stage, age = found.values()
    np.testing.assert_allclose(edema.probabilities[:, 1], 1 / (1 + np.exp(-logits[known[:, 0], 0])))
    assert edema.point is point
    np.testing.assert_array_equal(edema.labels, targets[known[:, 0], 0])
    softer = np.exp(logits[known[:, 1], 1:4] / 2)
    np.testing.assert_allclose(organ.probabilities, softer / softer.sum(1, keepdims=True))
    assert (organ.positive, stage.point.rule) == (None, "median")
    np.testing.assert_array_equal(stage.patients, patients[known[:, 2]])
    np.testing.assert_allclose(age.predicted, 50 + 10 * logits[known[:, 3], 7])
    assert age.unit == "a"


def test_a_monitored_metric_is_the_mean_over_the_heads_that_have_it() -> None:
    logits, targets, patients = several()
    by_head = {n: measure(a) for n, a in score(HEADS, logits, targets, patients).items()}
    found = monitored(HEADS, logits, targets)
    aurocs = [by_head[name]["auroc"] for name in ("edema", "organ", "stage")]
    assert found["auroc"] == pytest.approx(np.mean(aurocs))
    assert found["quadratic_weighted_kappa"] == by_head["stage"]["quadratic_weighted_kappa"]
    assert found["r2"] == by_head["age"]["r2"]
    assert found["mae"] == pytest.approx(by_head["age"]["mae"] / 10)  # standard deviations


def test_a_single_regression_is_monitored_in_its_unit() -> None:
    logits, targets, patients = several()
    own = (HEADS[3],)
    (one,) = score(own, logits[:, 7:], targets[:, 3:], patients).values()
    assert monitored(own, logits[:, 7:], targets[:, 3:])["mae"] == measure(one)["mae"]


def test_a_head_without_known_targets_is_left_out_of_what_is_monitored() -> None:
    logits, targets, _ = several()
    targets[:, 0] = np.nan
    found = monitored(HEADS, logits, targets)
    rest = monitored(HEADS[1:], logits[:, 1:], targets[:, 1:])
    assert found["auroc"] == pytest.approx(rest["auroc"])
    nothing = monitored(HEADS, logits, np.full_like(targets, np.nan))
    assert all(math.isnan(value) for value in nothing.values())


def test_the_class_to_find_of_two_can_be_named() -> None:
    head = Head(name="finding", classes=BINARY)
    logits, targets = np.zeros((4, 2)), np.array([[0.0], [1], [0], [1]])
    patients = np.arange(4).astype(str)
    (usual,) = score((head,), logits, targets, patients).values()
    (named,) = score((head,), logits, targets, patients, positive="healthy").values()
    assert (usual.positive, named.positive) == (1, 0)
