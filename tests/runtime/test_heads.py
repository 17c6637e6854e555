"""Heads: what columns of logits mean."""

import numpy as np
import pytest

from medtl_runtime.decision import probabilities
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head, columns_of, width

LIVER = Head(name="liver", classes=("cyst", "healthy", "tumour"))
OEDEMA = Head(name="oedema", kind="binary", classes=("absent", "present"))
GRADE = Head(name="grade", kind="ordinal", classes=("1", "2", "3", "4"))
AGE = Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0)
HEADS = (LIVER, OEDEMA, GRADE, AGE)


def test_heads_share_the_columns_in_their_order() -> None:
    assert columns_of(HEADS) == (slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 8))
    assert width(HEADS) == 8


def test_probabilities_of_alternatives_are_a_softmax() -> None:
    logits = np.array([[1.0, 2.0, -3.0], [500.0, 0.0, -500.0]])
    np.testing.assert_array_equal(LIVER.probabilities(logits, 2.0), probabilities(logits, 2.0))


def test_a_binary_head_is_a_softmax_of_nought_and_its_logit() -> None:
    logits = np.array([[-800.0], [-1.5], [0.0], [3.0], [800.0]])
    both = np.concatenate([np.zeros_like(logits), logits], axis=1)
    np.testing.assert_allclose(OEDEMA.probabilities(logits), probabilities(both, 1.0), rtol=1e-12)


def test_grades_have_the_probabilities_of_their_conditions() -> None:
    # P(above 1) = 0.8, P(above 2 | above 1) = 0.5, P(above 3 | above 2) = 0.25
    chances = np.array([0.8, 0.5, 0.25])
    found = GRADE.probabilities(np.log(chances / (1 - chances)))
    np.testing.assert_allclose(found, [0.2, 0.4, 0.3, 0.1])


@pytest.mark.parametrize("head", [LIVER, OEDEMA, GRADE], ids=lambda head: head.kind)
def test_probabilities_add_up_to_1_however_large_the_logits(head: Head) -> None:
    logits = np.random.default_rng(0).normal(scale=300, size=(50, 2, head.columns))
    found = head.probabilities(logits)
    assert found.shape == (50, 2, len(head.classes))
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=-1), 1)


def test_a_regression_gives_values_in_its_unit() -> None:
    np.testing.assert_allclose(AGE.values(np.array([[-1.0], [0.5]])), [30.0, 60.0])


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_a_head_survives_json(head: Head) -> None:
    assert Head.from_json(head.to_json()) == head


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "guess", "classes": ("a", "b")}, "head h is guess; expected multiclass, binary"),
        ({"classes": ("a",)}, "expected two or more"),
        ({"classes": ("a", "a")}, "expected different names"),
        ({"kind": "binary", "classes": ("a", "b", "c")}, "expected two"),
        ({"kind": "regression", "classes": ("a", "b")}, "it has no classes"),
        ({"kind": "regression", "std": 0.0}, "the second above 0"),
        ({"kind": "regression", "mean": float("nan")}, "expected numbers"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(fields: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Head(name="h", **fields)


def test_a_damaged_head_is_refused() -> None:
    with pytest.raises(UsageError, match="malformed head"):
        Head.from_json({**LIVER.to_json(), "colour": "red"})
