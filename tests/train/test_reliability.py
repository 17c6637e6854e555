"""Calibration is counted as defined, and what is too sure is found to be."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from medtl_runtime.decision import OperatingPoint
from medtl_train.scoring.reliability import (
    calibration_errors,
    claims,
    slope_and_intercept,
    squared_errors,
)
from medtl_train.scoring.scored import Scored


def two_classes(
    n: int = 400, *, sharpness: float = 1.0, shift: float = 0.0, images: int = 1, seed: int = 0
) -> Scored:
    """Return a model whose logits are too large by ``sharpness`` and too high by ``shift``."""
    rng = np.random.default_rng(seed)
    true = np.repeat(rng.normal(0, 1.5, n // images), images)
    drawn = np.repeat(rng.random(n // images), images)
    chance = expit(sharpness * true + shift)
    return Scored(
        labels=(drawn < expit(true)).astype(np.int64),
        probabilities=np.stack([1 - chance, chance], 1),
        patients=np.array([f"p{i // images}" for i in range(n)]),
        classes=("healthy", "lesion"),
        point=OperatingPoint(rule="threshold", positive="lesion", threshold=0.5),
    )


def several(n: int = 300, *, graded: bool = False) -> Scored:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, n)
    logits = rng.normal(size=(n, 4)) + 1.5 * np.eye(4)[labels]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Scored(
        labels=labels,
        probabilities=chances,
        patients=np.arange(n).astype(str),
        classes=("a", "b", "c", "d"),
        point=OperatingPoint(rule="median" if graded else "argmax"),
    )


def counted(probability: NDArray, happened: NDArray) -> float:
    bins = np.ceil(probability * 10)
    gaps = [abs((probability - happened)[bins == b].sum()) for b in np.unique(bins)]
    return sum(gaps) / len(probability)


def test_the_error_of_two_classes_is_that_of_the_class_to_find() -> None:
    one = two_classes()
    found = calibration_errors(one)
    assert found["ece"] == pytest.approx(counted(one.probabilities[:, 1], one.labels))


def test_the_error_of_more_classes_is_that_of_the_most_probable_one() -> None:
    one = several()
    right = one.probabilities.argmax(1) == one.labels
    expected = counted(one.probabilities.max(1), right)
    assert calibration_errors(one)["ece"] == pytest.approx(expected)


def test_the_error_of_grades_is_that_of_lying_above_each() -> None:
    one = several(graded=True)
    above = np.concatenate([one.probabilities[:, k:].sum(1) for k in (1, 2, 3)])
    was = np.concatenate([one.labels >= k for k in (1, 2, 3)])
    assert calibration_errors(one)["ece"] == pytest.approx(counted(above, was))
    assert len(claims(one).probability) == 900
    assert np.bincount(claims(one).image).tolist() == [3] * 300


def test_bins_of_equal_counts_hold_equal_counts() -> None:
    one = two_classes()
    assert set(np.bincount(claims(one).equal_bins())) == {40}
    assert calibration_errors(one)["ece_adaptive"] > 0


def test_a_model_that_is_too_sure_has_a_larger_error_and_a_slope_below_one() -> None:
    fair, sure = two_classes(4000), two_classes(4000, sharpness=3)
    assert calibration_errors(sure)["ece"] > calibration_errors(fair)["ece"] + 0.05
    slopes = [slope_and_intercept(one)["calibration_slope"] for one in (fair, sure)]
    assert slopes[0]["low"] < 1 < slopes[0]["high"]
    assert slopes[1]["low"] < 1 / 3 < slopes[1]["high"] < 0.5


def test_probabilities_that_are_too_high_have_an_intercept_below_zero() -> None:
    found = slope_and_intercept(two_classes(4000, shift=1))["calibration_intercept"]
    assert found["low"] < -1 < found["high"] < -0.7


def test_slope_is_that_of_a_logistic_regression_without_penalty() -> None:
    one = two_classes(300, sharpness=1.7, shift=0.4)
    line = logit(one.probabilities[:, 1])[:, None]
    fitted = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(line, one.labels)
    found = slope_and_intercept(one)["calibration_slope"]
    assert found["value"] == pytest.approx(fitted.coef_[0, 0], rel=1e-4)


def test_more_images_of_the_same_patients_make_no_interval_narrower() -> None:
    alone = slope_and_intercept(two_classes(400))["calibration_slope"]
    again = slope_and_intercept(two_classes(2000, images=5))["calibration_slope"]
    assert again["value"] == pytest.approx(alone["value"])
    assert again["high"] - again["low"] == pytest.approx(alone["high"] - alone["low"], rel=1e-6)


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 0, 1, 1]])
def test_where_nothing_can_be_fitted_there_is_no_slope(labels: list[int]) -> None:
    chance = np.array([0.1, 0.2, 0.8, 0.9])
    one = Scored(
        labels=np.array(labels),
        probabilities=np.stack([1 - chance, chance], 1),
        patients=np.arange(4).astype(str),
        classes=("healthy", "lesion"),
        point=OperatingPoint(rule="threshold", positive="lesion", threshold=0.5),
    )
    found = slope_and_intercept(one)["calibration_slope"]
    assert found == {"value": None, "low": None, "high": None}


def test_squared_errors_are_means_over_weighted_images() -> None:
    weights = np.random.default_rng(0).integers(0, 3, 300).astype(float)
    one = two_classes(300)
    expected = np.average((one.probabilities[:, 1] - one.labels) ** 2, weights=weights)
    assert squared_errors(one)(weights) == {"brier": pytest.approx(expected)}
    many = several()
    distances = ((many.probabilities - np.eye(4)[many.labels]) ** 2).sum(1)
    expected = np.average(distances, weights=weights)
    assert squared_errors(many)(weights) == {"brier": pytest.approx(expected)}
    grades = several(graded=True)
    steps = np.cumsum(grades.probabilities - np.eye(4)[grades.labels], axis=1)
    expected = np.average((steps**2).sum(1), weights=weights)
    assert squared_errors(grades)(weights) == {"ranked_probability_score": pytest.approx(expected)}


def test_without_images_nothing_is_defined() -> None:
    nothing = Scored(
        labels=np.zeros(0, np.int64),
        probabilities=np.zeros((0, 3)),
        patients=np.zeros(0, str),
        classes=("a", "b", "c"),
        point=OperatingPoint(),
    )
    assert all(math.isnan(value) for value in calibration_errors(nothing).values())
