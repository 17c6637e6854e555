"""How far a value may be off, and whether there are images enough to say so."""

import numpy as np
import pytest

from medtl_runtime.conformal import (
    conformal_margin,
    require_for_interval,
    require_for_refusals,
)
from medtl_runtime.errors import UsageError


def test_the_half_width_is_an_order_statistic_of_the_absolute_residuals() -> None:
    residuals = np.random.default_rng(0).permutation(np.arange(1.0, 20))
    margin = conformal_margin(np.where(residuals % 2, residuals, -residuals), 0.9)
    assert margin.half_width == 18  # ceil(20 * 0.9) = 18
    assert (margin.coverage, margin.images) == (0.9, 19)


@pytest.mark.parametrize(("count", "held"), [(9, 0.9), (8, 8 / 9), (1, 0.5)])
def test_too_few_images_state_the_coverage_that_they_hold(count: int, held: float) -> None:
    margin = conformal_margin(np.arange(1.0, count + 1), 0.9)
    assert margin.half_width == count  # the largest
    assert margin.coverage == pytest.approx(held)


@pytest.mark.parametrize(("count", "coverage"), [(20, 0.9), (60, 0.8), (200, 0.95)])
def test_of_new_images_at_least_the_stated_share_is_covered(count: int, coverage: float) -> None:
    covered = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        margin = conformal_margin(rng.standard_t(3, size=count), coverage)
        covered.append((np.abs(rng.standard_t(3, size=2000)) <= margin.half_width).mean())
    error = np.std(covered) / np.sqrt(len(covered))
    assert np.mean(covered) >= coverage - 3 * error
    assert np.mean(covered) <= coverage + 1 / count + 3 * error


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, float("nan")])
def test_a_coverage_that_is_no_share_is_refused(coverage: float) -> None:
    with pytest.raises(UsageError, match="coverage is"):
        conformal_margin(np.ones(9), coverage)


def test_a_rate_that_so_few_images_cannot_hold_is_refused_with_how_many_it_takes() -> None:
    require_for_interval(0.1, 9, unit="cases of age")
    with pytest.raises(UsageError, match=r"--error-rate 0\.1 takes 9 cases of age; there are 8"):
        require_for_interval(0.1, 8, unit="cases of age")


def test_one_score_takes_half_as_many_images_as_two() -> None:
    require_for_refusals(0.1, 9, unit="images", scores=1)
    with pytest.raises(UsageError, match="takes 19 images; there are 9"):
        require_for_refusals(0.1, 9, unit="images")
