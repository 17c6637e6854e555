"""What is fitted between logits and a finding."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss, roc_curve

from medtl_runtime.calibration import (
    LEAST_TEMPERATURE,
    MOST_TEMPERATURE,
    Criterion,
    brier_score,
    choose_operating_point,
    choose_point,
    choose_temperature,
    fit_temperature,
    head_temperature,
    negative_log_likelihood,
)
from medtl_runtime.conformal import conformal_thresholds, images_for
from medtl_runtime.decision import OperatingPoint, Triage, probabilities
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head

CLASSES = ("healthy", "lesion")


def drawn(
    count: int, classes: int = 2, sharpness: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, and labels drawn from softmax(sharpness * logits)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(count, classes))
    chances = probabilities(sharpness * logits, 1.0)
    labels = (chances.cumsum(1) < rng.random((count, 1))).sum(1)
    return logits, np.minimum(labels, classes - 1)


def chances_of(positive: np.ndarray | list[float]) -> np.ndarray:
    positive = np.asarray(positive, float)
    return np.stack([1 - positive, positive], axis=1)


class TestTemperature:
    @pytest.mark.parametrize("classes", [2, 5])
    @pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0])
    def test_it_has_the_least_likelihood_loss(self, classes: int, sharpness: float):
        logits, labels = drawn(400, classes, sharpness)
        found = minimize_scalar(
            lambda log: log_loss(
                labels, probabilities(logits, math.exp(log)), labels=list(range(classes))
            ),
            bounds=(math.log(LEAST_TEMPERATURE), math.log(MOST_TEMPERATURE)),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert fit_temperature(logits, labels) == pytest.approx(math.exp(found.x), rel=1e-4)

    def test_it_finds_how_sharp_the_logits_are(self):
        logits, labels = drawn(20_000, 3, sharpness=0.5)
        assert fit_temperature(logits, labels) == pytest.approx(2, rel=0.05)

    def test_it_does_not_hang_on_a_shift_of_the_logits(self):
        logits, labels = drawn(300, 3, sharpness=0.7)
        shifted = logits + np.linspace(-1e3, 1e3, len(logits))[:, None]
        assert fit_temperature(shifted, labels) == pytest.approx(
            fit_temperature(logits, labels), rel=1e-6
        )

    def test_separated_labels_end_at_the_least(self):
        logits = np.array([[2.0, -1.0], [0.1, 0.3], [1.0, 0.0]])
        assert fit_temperature(logits, logits.argmax(1)) == LEAST_TEMPERATURE

    def test_labels_against_the_logits_end_at_the_most(self):
        logits = np.array([[2.0, -1.0], [0.1, 0.3], [1.0, 0.0]])
        assert fit_temperature(logits, logits.argmin(1)) == MOST_TEMPERATURE

    def test_without_an_error_it_stays_what_it_was(self):
        logits = np.array([[2.0, 1.0], [0.0, 0.5], [1.0, -3.0]], np.float32)
        assert choose_temperature(logits, np.array([0, 1, 0])) == 1.0
        assert choose_temperature(logits, np.array([0, 1, 0]), otherwise=1.7) == 1.7

    def test_with_an_error_it_is_fitted(self):
        logits, labels = drawn(200)
        chosen = choose_temperature(logits, labels, otherwise=1.7)
        assert chosen == fit_temperature(logits, labels) != 1.7


@pytest.mark.parametrize("scores", [1, 2])
@pytest.mark.parametrize("rate", [0.5, 0.3, 0.1, 0.07, 0.05, 0.02, 0.003, 1e-6])
def test_so_many_images_hold_a_rate_and_one_less_does_not(rate: float, scores: int) -> None:
    count = images_for(rate, option="--error-rate", scores=scores)
    assert scores / (count + 1) <= rate * (1 + 1e-12)
    assert scores / count > rate


def test_likelihood_and_brier_score_are_those_of_scikit_learn() -> None:
    logits, labels = drawn(200)
    chances = probabilities(logits, 1.3)
    assert negative_log_likelihood(chances, labels) == pytest.approx(log_loss(labels, chances))
    both = 2 * brier_score_loss(labels, chances[:, 1])  # it counts one class of the two
    assert brier_score(chances, labels) == pytest.approx(both)


def test_a_certain_error_has_a_finite_likelihood() -> None:
    assert 700 < negative_log_likelihood(np.array([[1.0, 0.0]]), np.array([1])) < math.inf


def youden_by_scikit_learn(labels: np.ndarray, scores: np.ndarray) -> float:
    false, true, thresholds = roc_curve(labels == 1, scores, drop_intermediate=False)
    at = float(thresholds[int(np.argmax(true - false))])
    below = scores[scores < at]
    return (min(at, 1.0) + float(below.max())) / 2 if len(below) else at


class TestOperatingPoint:
    @pytest.mark.parametrize("seed", range(60))
    def test_youden_is_that_of_scikit_learn_with_ties(self, seed: int):
        rng = np.random.default_rng(seed)
        count, steps = int(rng.integers(4, 80)), int(rng.integers(1, 12))
        labels = np.append([0, 1], rng.integers(0, 2, count))
        noisy = labels * rng.random() + rng.random(count + 2)
        scores = np.round(noisy / 2 * steps) / steps
        point = choose_operating_point(labels, chances_of(scores), CLASSES, "lesion")
        assert point.threshold == youden_by_scikit_learn(labels, scores)

    def test_it_says_by_what_and_on_how_many(self):
        labels, chances = np.array([0, 0, 1]), chances_of([0.1, 0.2, 0.8])
        point = choose_operating_point(labels, chances, CLASSES, "lesion")
        assert point == OperatingPoint(
            rule="threshold",
            positive="lesion",
            threshold=0.5,
            chosen="Youden's J on 3 validation images",
        )
        local = choose_operating_point(
            labels,
            chances,
            CLASSES,
            "lesion",
            criterion=Criterion.parse("specificity=0.5"),
            cases="local series",
        )
        assert local.chosen == "specificity of at least 0.5 on 3 local series"

    def test_the_first_class_can_be_the_positive_one(self):
        labels, chances = np.array([1, 1, 0]), chances_of([0.9, 0.8, 0.3])
        point = choose_operating_point(labels, chances, CLASSES, "healthy")
        assert point.threshold == pytest.approx(0.45)
        assert [point.decide(CLASSES, row) for row in chances] == ["lesion", "lesion", "healthy"]

    @pytest.mark.parametrize("least", [0.05, 0.2, 0.6, 0.8, 0.95, 1.0])
    @pytest.mark.parametrize("seed", range(8))
    def test_a_share_is_reached_and_no_threshold_reaches_it_and_has_more_of_the_other(
        self, least: float, seed: int
    ):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 20)
        scores = np.round(rng.beta(2, 3, 40) / 2 + labels * 0.25, 2)

        def shares(threshold: float) -> dict[str, float]:
            called = scores >= threshold
            return {
                "sensitivity": float(called[labels == 1].mean()),
                "specificity": float((~called[labels == 0]).mean()),
            }

        everywhere = [shares(at) for at in np.arange(0, 1.0051, 0.005)]
        for name, other in (("sensitivity", "specificity"), ("specificity", "sensitivity")):
            point = choose_operating_point(
                labels,
                chances_of(scores),
                CLASSES,
                "lesion",
                criterion=Criterion.parse(f"{name}={least}"),
            )
            assert point.threshold is not None
            reached = shares(point.threshold)
            assert reached[name] >= least
            assert reached[other] == max(one[other] for one in everywhere if one[name] >= least)

    def test_one_in_five_is_a_fifth(self):
        # 1 - 4 / 5 is less than 0.2 in floating point.
        labels, scores = np.array([0, 0, 0, 0, 0, 1]), np.array([0.1, 0.3, 0.4, 0.5, 0.6, 0.2])
        criterion = Criterion.parse("specificity=0.2")
        point = choose_operating_point(
            labels, chances_of(scores), CLASSES, "lesion", criterion=criterion
        )
        assert point.threshold == pytest.approx(0.15)

    def test_a_specificity_that_no_threshold_has_is_refused(self):
        labels, scores = np.array([0, 0, 1]), np.array([0.2, 1.0, 1.0])
        criterion = Criterion.parse("specificity=1")
        with pytest.raises(UsageError, match="specificity of at least 1: a negative case"):
            choose_operating_point(
                labels, chances_of(scores), CLASSES, "lesion", criterion=criterion
            )

    def test_neighbouring_numbers_are_told_apart(self):
        high = np.nextafter(0.75, 1)
        labels, scores = np.array([0, 1]), np.array([0.75, high])
        point = choose_operating_point(labels, chances_of(scores), CLASSES, "lesion")
        assert point.threshold == high


@pytest.mark.parametrize("text", ["youden", "sensitivity=0.95", "specificity=1"])
def test_a_criterion_is_read(text: str) -> None:
    criterion = Criterion.parse(text)
    name, _, share = text.partition("=")
    assert (criterion.name, criterion.least) == (name, float(share) if share else None)


@pytest.mark.parametrize(
    "text",
    [
        *("", "sensitivity", "sensitivity=", "sensitivity=0", "sensitivity=1.1"),
        *("specificity=nan", "accuracy=0.9", "youden=1", "sensitivity=95%"),
    ],
)
def test_a_criterion_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="criterion"):
        Criterion.parse(text)


class TestTriage:
    def test_the_threshold_is_the_order_statistic_of_the_class(self):
        chances = chances_of(np.append(np.arange(1, 20) / 100, np.arange(31, 50) / 50))
        labels = np.repeat([0, 1], 19)
        # floor(20 * 0.1) = 2: the second smallest of each class.
        thresholds = conformal_thresholds(labels, chances, 0.1)
        assert thresholds == pytest.approx((1 - 0.18, 32 / 50))

    @pytest.mark.parametrize(("count", "excludes"), [(8, False), (9, True)])
    def test_too_few_images_never_exclude_the_class(self, count: int, excludes: bool):
        labels = np.repeat([0, 1], [count, 50])
        chances = chances_of(np.linspace(0.1, 0.9, count + 50))
        assert (conformal_thresholds(labels, chances, 0.1)[0] > 0) == excludes

    @pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan])
    def test_a_rate_that_is_no_share_is_refused(self, rate: float):
        with pytest.raises(UsageError, match="error rate"):
            conformal_thresholds(np.array([0, 1]), chances_of([0.2, 0.7]), rate)

    @pytest.mark.parametrize("classes", [2, 4])
    @pytest.mark.parametrize("rate", [0.05, 0.2])
    def test_of_new_images_of_each_class_at_most_the_rate_lack_it_in_their_set(
        self, classes: int, rate: float
    ):
        # The guarantee is over draws of both the calibration images and the new one.
        missed, seen = np.zeros(classes), np.zeros(classes)
        for seed in range(150):
            logits, labels = drawn(60 * classes, classes, seed=seed)
            new, truth = drawn(400, classes, seed=10_000 + seed)
            thresholds = conformal_thresholds(labels, probabilities(logits, 1.0), rate)
            own = probabilities(new, 1.0)[np.arange(len(new)), truth]
            lacks = own < np.array(thresholds)[truth]
            missed += np.bincount(truth, lacks, minlength=classes)
            seen += np.bincount(truth, minlength=classes)
        shares = missed / seen
        assert (shares <= rate * 1.08).all()  # 8 %: three standard errors of the simulation
        assert (shares >= rate * 0.6).all()  # and no more is given away than by rounding down

    def test_with_two_classes_the_temperature_changes_no_set(self):
        logits, labels = drawn(200, seed=3)
        new, _ = drawn(200, seed=4)
        sets = []
        for temperature in (0.5, 1.0, 4.0):
            thresholds = conformal_thresholds(labels, probabilities(logits, temperature), 0.1)
            triage = Triage(error_rate=0.1, thresholds=thresholds, images=200)
            rows = probabilities(new, temperature)
            sets.append([triage.prediction_set(CLASSES, row) for row in rows])
        assert sets[0] == sets[1] == sets[2]
        assert len(set(sets[0])) > 1


OEDEMA = Head(name="oedema", kind="binary", classes=("absent", "present"))
GRADE = Head(name="grade", kind="ordinal", classes=("1", "2", "3", "4"))
AGE = Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0)


class TestHeads:
    @pytest.mark.parametrize("head", [OEDEMA, GRADE], ids=lambda head: head.kind)
    def test_the_temperature_has_the_least_likelihood_by_the_head_s_own_probabilities(
        self, head: Head
    ):
        rng = np.random.default_rng(1)
        logits = rng.normal(scale=3, size=(400, head.columns))
        chances = head.probabilities(logits, 2.5)
        labels = np.array([rng.choice(len(row), p=row) for row in chances])

        def loss(temperature: float) -> float:
            return negative_log_likelihood(head.probabilities(logits, temperature), labels)

        best = minimize_scalar(loss, bounds=(0.1, 20), method="bounded")
        found = head_temperature(head, logits, labels.astype(float))
        assert found == pytest.approx(best.x, rel=1e-3)
        assert found == pytest.approx(2.5, rel=0.25)

    def test_images_whose_target_is_not_known_have_no_part_in_the_temperature(self):
        logits, labels = drawn(200)
        head = Head(name="label", classes=CLASSES)
        expected = fit_temperature(logits, labels)
        more = np.concatenate([logits, -100 * logits])
        targets = np.concatenate([labels.astype(float), np.full(200, np.nan)])
        assert head_temperature(head, more, targets) == expected

    def test_a_regression_and_a_head_without_targets_have_nothing_to_fit(self):
        assert head_temperature(AGE, np.ones((9, 1)), np.arange(9.0)) == 1
        unknown = np.full(9, np.nan)
        assert head_temperature(OEDEMA, np.ones((9, 1)), unknown, otherwise=1.7) == 1.7

    def test_a_binary_head_looks_for_its_second_class_among_the_known_targets(self):
        chances = chances_of([0.1, 0.2, 0.6, 0.9, 0.95])
        targets = np.array([0, 0, 1, 1, np.nan])
        point = choose_point(OEDEMA, targets, chances)
        assert (point.rule, point.positive, point.threshold) == ("threshold", "present", 0.4)
        assert point.chosen == "Youden's J on 4 validation images"

    def test_other_heads_leave_no_choice(self):
        targets = np.array([0.0, 1, 2])
        assert choose_point(GRADE, targets, np.eye(4)[:3]).rule == "median"
        assert choose_point(AGE, targets, None).rule == "value"
        two = Head(name="label", classes=CLASSES)
        chances = chances_of([0.1, 0.9, 0.8])
        assert choose_point(two, np.array([0.0, 1, 1]), chances).rule == "argmax"


class TestCost:
    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("prevalence", [None, 0.05, 0.6])
    def test_no_other_threshold_has_a_lower_expected_cost(
        self, seed: int, prevalence: float | None
    ):
        rng = np.random.default_rng(seed)
        labels = np.append([0, 1], rng.integers(0, 2, 60))
        scores = np.round((0.6 * labels + rng.random(62)) / 1.7, 2)
        criterion = Criterion(name="cost", costs=(5.0, 1.0), prevalence=prevalence)
        point = choose_operating_point(
            labels, chances_of(scores), CLASSES, "lesion", criterion=criterion
        )
        share = labels.mean() if prevalence is None else prevalence

        def cost(threshold: float) -> float:
            called = scores >= threshold
            missed, alarms = (~called)[labels == 1].mean(), called[labels == 0].mean()
            return share * 5 * missed + (1 - share) * alarms

        assert point.threshold is not None
        assert cost(point.threshold) <= min(map(cost, np.linspace(0, 1, 1001))) + 1e-12

    def test_equal_costs_at_even_prevalence_are_youden(self):
        logits, labels = drawn(300)
        chances = probabilities(logits, 1.0)
        even = Criterion.parse("cost=1:1,prevalence=0.5")
        points = [
            choose_operating_point(labels, chances, CLASSES, "lesion", criterion=one)
            for one in (even, Criterion())
        ]
        assert points[0].threshold == points[1].threshold

    def test_where_alarms_cost_too_much_nothing_is_positive(self):
        labels, chances = np.array([0, 1, 0, 1]), chances_of([0.2, 0.3, 0.6, 0.5])
        criterion = Criterion.parse("cost=1:1000")
        point = choose_operating_point(labels, chances, CLASSES, "lesion", criterion=criterion)
        assert point.threshold == 0.8
        certain = chances_of([0.2, 0.3, 1.0, 0.5])  # an alarm at every threshold, so find the rest
        point = choose_operating_point(labels, certain, CLASSES, "lesion", criterion=criterion)
        assert point.threshold == 0.25

    def test_it_says_what_errors_cost(self):
        assert str(Criterion.parse("cost=5:1")) == (
            "least cost, 5 for a missed case to 1 for a false alarm"
        )
        assert str(Criterion.parse("cost=2.5:1,prevalence=0.1")).endswith("at a prevalence of 0.1")

    @pytest.mark.parametrize(
        "text",
        [
            "cost",
            "cost=5",
            "cost=5:1:2",
            "cost=0:1",
            "cost=5:-1",
            "cost=inf:1",
            "cost=nan:1",
            "cost=5:1,",
            "cost=5:1,prevalence=0",
            "cost=5:1,prevalence=1",
            "cost=5:1,share=0.1",
        ],
    )
    def test_other_words_are_no_cost(self, text: str):
        with pytest.raises(UsageError, match=r"criterion is .* cost=5:1,prevalence=0\.1"):
            Criterion.parse(text)
