"""DeLong's variances are those of the definition, and its test finds what is there."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from medtl_train.scoring.delong import area, paired_p_value


def drawn(
    n: int = 90, seed: int = 0, *, ties: bool = False
) -> tuple[NDArray[np.bool_], NDArray, NDArray]:
    """Return what happened, and two correlated scores for it."""
    rng = np.random.default_rng(seed)
    happened = rng.random(n) < 0.4
    common = rng.normal(size=n)
    scores = [1.0 * happened + common + 0.7 * rng.normal(size=n) for _ in range(2)]
    one, other = (np.round(s, 0) if ties else s for s in scores)
    return happened, one, other


def by_definition(happened: NDArray[np.bool_], scores: list[NDArray]) -> tuple[NDArray, NDArray]:
    """Return areas and covariance by comparing every pair of images (DeLong et al., 1988)."""
    above, below = [], []
    for score in scores:
        pairs = score[happened][:, None] - score[~happened][None, :]
        wins = (pairs > 0) + 0.5 * (pairs == 0)
        above.append(wins.mean(1))
        below.append(wins.mean(0))
    covariance = np.cov(above) / happened.sum() + np.cov(below) / (~happened).sum()
    return np.mean(above, axis=1), covariance


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_area_and_variance_are_those_of_all_pairs(ties: bool, seed: int) -> None:
    happened, one, other = drawn(seed=seed, ties=ties)
    areas, covariance = by_definition(happened, [one, other])
    found = area(happened, one)
    assert found is not None
    assert found.auroc == pytest.approx(roc_auc_score(happened, one))
    assert found.auroc == pytest.approx(areas[0])
    assert found.variance == pytest.approx(covariance[0, 0])


@pytest.mark.parametrize("ties", [False, True])
def test_the_test_of_two_areas_knows_how_they_go_together(ties: bool) -> None:
    happened, one, other = drawn(ties=ties)
    areas, covariance = by_definition(happened, [one, other])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    expected = 2 * norm.sf(abs(areas[1] - areas[0]) / math.sqrt(variance))
    assert paired_p_value(happened, one, other) == pytest.approx(expected)
    apart = 2 * norm.sf(abs(areas[1] - areas[0]) / math.sqrt(covariance.trace()))
    assert paired_p_value(happened, one, other) < apart


def test_under_the_null_one_test_in_twenty_is_below_five_percent() -> None:
    p_values = [paired_p_value(*drawn(120, seed)) for seed in range(400)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


def test_a_better_score_is_found_to_be_better() -> None:
    happened, one, _ = drawn(200)
    assert paired_p_value(happened, one, one + 3 * happened) < 1e-4


def test_a_score_does_not_differ_from_itself() -> None:
    happened, one, _ = drawn()
    assert paired_p_value(happened, one, one) == 1
    assert paired_p_value(happened, one, 10 * one) == 1  # the same order


def test_the_interval_holds_the_area_and_stays_within_the_scale() -> None:
    happened, one, _ = drawn(30)
    found = area(happened, one + 2 * happened)
    assert found is not None
    estimate = found.estimate
    assert 0 <= estimate["low"] < estimate["value"] <= estimate["high"] <= 1


@pytest.mark.parametrize("positives", [0, 1, 29, 30])
def test_with_one_image_on_a_side_there_is_no_variance(positives: int) -> None:
    happened = np.arange(30) < positives
    scores = np.random.default_rng(0).normal(size=30)
    assert area(happened, scores) is None
    assert math.isnan(paired_p_value(happened, scores, -scores))
