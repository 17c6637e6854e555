"""How the probabilities of slices become those of a case."""

import numpy as np
import pytest

from medtl_runtime.aggregation import Aggregation, aggregate, aggregate_grades, aggregate_values

TWO = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
THREE = np.array([[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]])


def case(rule: str, slices: np.ndarray = TWO, positive: int | None = 1) -> np.ndarray:
    return aggregate(slices, Aggregation.parse(rule), positive)


@pytest.mark.parametrize(
    ("rule", "positive", "expected"),
    [
        ("max", 1, [0.2, 0.8]),
        ("max", 0, [0.9, 0.1]),
        ("mean", 1, [0.6, 0.4]),
        ("top-1-mean", 1, [0.2, 0.8]),
        ("top-2-mean", 1, [0.4, 0.6]),
        ("top-3-mean", 0, [0.7333333333333333, 0.2666666666666667]),
    ],
)
def test_with_a_positive_class_the_rule_applies_to_it(
    rule: str, positive: int, expected: list[float]
):
    np.testing.assert_allclose(case(rule, positive=positive), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("max", [0.8 / 1.9, 0.6 / 1.9, 0.5 / 1.9]),
        ("mean", [1.1 / 3, 1 / 3, 0.3]),
        ("top-2-mean", [0.5 / 1.35, 0.45 / 1.35, 0.4 / 1.35]),
    ],
)
@pytest.mark.parametrize("positive", [None, 0])
def test_with_more_classes_the_rule_applies_to_each_and_the_sum_is_divided_out(
    rule: str, expected: list[float], positive: int | None
):
    np.testing.assert_allclose(case(rule, THREE, positive), expected, rtol=1e-12)


def test_two_classes_without_a_positive_one_are_treated_alike():
    np.testing.assert_allclose(case("max", positive=None), [0.9 / 1.7, 0.8 / 1.7], rtol=1e-12)
    np.testing.assert_allclose(
        case("max", TWO[:, ::-1], positive=None), [0.8 / 1.7, 0.9 / 1.7], rtol=1e-12
    )


def test_a_k_beyond_the_slices_takes_all_of_them():
    assert np.array_equal(case("top-9-mean"), case("mean"))
    assert np.array_equal(case("top-9-mean", THREE), case("mean", THREE))


@pytest.mark.parametrize("rule", ["max", "mean", "top-2-mean"])
@pytest.mark.parametrize("positive", [0, 1, None])
def test_one_slice_is_its_own_case(rule: str, positive: int | None):
    np.testing.assert_allclose(case(rule, TWO[:1], positive), TWO[0], rtol=1e-15)


@pytest.mark.parametrize("rule", ["max", "mean", "top-7-mean"])
@pytest.mark.parametrize(("classes", "positive"), [(2, 1), (2, None), (5, None)])
def test_the_order_of_the_slices_changes_no_bit_and_the_sum_is_one(
    rule: str, classes: int, positive: int | None
):
    generator = np.random.default_rng(5)
    slices = generator.dirichlet(np.ones(classes), size=301)
    expected = case(rule, slices, positive)
    for _ in range(20):
        assert np.array_equal(case(rule, generator.permutation(slices), positive), expected)
    assert abs(expected.sum() - 1) < 1e-12
    assert expected.min() >= 0


def test_the_slices_are_left_as_they_are():
    before = TWO.copy()
    case("top-2-mean")
    assert np.array_equal(TWO, before)


GRADES = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.1, 0.4], [0.9, 0.1, 0.0]])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # P(above 1) is 0.3, 0.9, 0.5, 0.1 and P(above 2) 0.1, 0.3, 0.4, 0 in the slices.
        ("max", [0.1, 0.5, 0.4]),
        ("mean", [0.55, 0.25, 0.2]),
        ("top-2-mean", [0.3, 0.35, 0.35]),
    ],
)
def test_the_rule_applies_to_the_probability_of_lying_above_a_grade(
    rule: str, expected: list[float]
):
    np.testing.assert_allclose(aggregate_grades(GRADES, Aggregation.parse(rule)), expected)


@pytest.mark.parametrize("rule", ["max", "mean", "top-3-mean"])
def test_grades_of_a_case_are_probabilities_whatever_the_slices_say(rule: str):
    slices = np.random.default_rng(0).dirichlet(np.full(6, 0.2), size=(200, 9))
    for some in slices:
        found = aggregate_grades(some, Aggregation.parse(rule))
        assert (found >= 0).all()
        assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize(("rule", "expected"), [("max", 3), ("top-2-mean", 3), ("mean", 5)])
def test_one_odd_slice_does_not_move_the_value_of_a_case_but_by_the_mean(rule: str, expected: int):
    values = np.array([4.0, 2.0, 3.0, 1.0, 15.0])
    assert aggregate_values(values, Aggregation.parse(rule)) == expected
    assert aggregate_values(values[::-1], Aggregation.parse(rule)) == expected
