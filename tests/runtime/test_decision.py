"""How logits become a finding, and how that is stored."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from medtl_runtime.decision import (
    Aggregation,
    Decision,
    NoveltyCutoffs,
    OperatingPoint,
    Triage,
    probabilities,
)
from medtl_runtime.errors import UsageError

CLASSES = ("healthy", "lesion")
WHOLE = Decision(
    temperature=1.7,
    operating_point=OperatingPoint(
        rule="threshold", positive="lesion", threshold=0.3, chosen="by hand"
    ),
    triage=Triage(error_rate=0.1, thresholds=(0.2, 0.4), images=120),
    novelty=NoveltyCutoffs(energy=-1.5, mahalanobis=80.0, false_refusal_rate=0.02, images=120),
)


@pytest.mark.parametrize("decision", [WHOLE, Decision()])
def test_a_decision_survives_being_written_and_read(decision: Decision) -> None:
    text = json.dumps(decision.to_json())
    assert Decision.from_json(json.loads(text), CLASSES) == decision


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": "1"}, "malformed"),
        ({"temperature": True}, "malformed"),
        ({"operating_point": None}, "malformed"),
        ({"operating_point": {"rule": "guess"}}, "rule is guess"),
        ({"operating_point": {"rule": "threshold", "positive": "lesion"}}, "fits no class"),
        (
            {"operating_point": {"rule": "threshold", "positive": "cyst", "threshold": 0.5}},
            "expected a class",
        ),
        ({"operating_point": {"positive": "cyst"}}, "positive is cyst; expected a class"),
        ({"operating_point": {"positive": ["lesion"]}}, "expected a class"),
        ({"operating_point": {"threshold": 0.5}}, "threshold 0.5 for argmax"),
        ({"operating_point": {"chosen": 3}}, "chosen is 3"),
        (
            {"operating_point": {"rule": "threshold", "positive": "lesion", "threshold": True}},
            "fits no class",
        ),
        ({"triage": {"error_rate": 2, "thresholds": [0, 0], "images": 9}}, "error_rate"),
        ({"triage": {"error_rate": 0.1, "thresholds": [0.5], "images": 9}}, "thresholds"),
        ({"triage": {"error_rate": 0.1, "thresholds": [0.5, 2], "images": 9}}, "thresholds"),
        ({"novelty": {"energy": 1.0}}, "malformed"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused_by_name(
    change: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        Decision.from_json({**WHOLE.to_json(), **change}, CLASSES)


@pytest.mark.parametrize("field", ["energy", "mahalanobis"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", None])
def test_cutoffs_are_finite_numbers(field: str, value: Any) -> None:
    data = WHOLE.to_json()
    data["novelty"][field] = value
    with pytest.raises(UsageError, match=field):
        Decision.from_json(data, CLASSES)


def test_a_missing_field_is_refused() -> None:
    for name in WHOLE.to_json():
        data = WHOLE.to_json()
        del data[name]
        with pytest.raises(UsageError, match=name):
            Decision.from_json(data, CLASSES)


def test_a_threshold_needs_two_classes() -> None:
    with pytest.raises(UsageError, match="fits no class"):
        dataclasses.replace(WHOLE, triage=None).check((*CLASSES, "cyst"))


def test_the_prediction_set_holds_what_reaches_its_threshold() -> None:
    triage = Triage(error_rate=0.1, thresholds=(0.2, 0.4), images=120)
    sets = [
        triage.prediction_set(CLASSES, np.array([1 - p, p])) for p in (0.1, 0.4, 0.6, 0.79, 0.81)
    ]
    assert sets == [("healthy",), CLASSES, CLASSES, CLASSES, ("lesion",)]


def test_a_positive_class_may_stand_without_a_threshold() -> None:
    Decision(operating_point=OperatingPoint(positive="lesion")).check(CLASSES)


def test_the_most_probable_class_wins_by_argmax() -> None:
    assert OperatingPoint().decide(("a", "b", "c"), np.array([0.2, 0.5, 0.3])) == "b"


@pytest.mark.parametrize(("chance", "finding"), [(0.3, "lesion"), (0.2999, "healthy")])
def test_a_probability_at_the_threshold_is_positive(chance: float, finding: str) -> None:
    point = WHOLE.operating_point
    assert point.decide(CLASSES, np.array([1 - chance, chance])) == finding
    reversed_classes = CLASSES[::-1]
    assert point.decide(reversed_classes, np.array([chance, 1 - chance])) == finding


@pytest.mark.parametrize(
    ("text", "rule", "k"),
    [("max", "max", None), ("mean", "mean", None), ("top-3-mean", "top-k-mean", 3)],
)
def test_an_aggregation_is_read_from_its_words(text: str, rule: str, k: int | None) -> None:
    aggregation = Aggregation.parse(text)
    assert (aggregation.rule, aggregation.k) == (rule, k)
    assert str(aggregation) == text


@pytest.mark.parametrize("text", ["", "median", "top-0-mean", "top--1-mean", "top-k-mean", "top-3"])
def test_other_words_are_no_aggregation(text: str) -> None:
    with pytest.raises(UsageError, match="aggregation"):
        Aggregation.parse(text)


@pytest.mark.parametrize(
    ("rule", "k", "words"),
    [
        ("sum", None, "aggregation is sum; expected max, mean, top-k-mean"),
        ("max", 2, "aggregation max with a k, 2; only top-k-mean has one"),
        ("mean", False, "aggregation mean with a k, False"),
        ("top-k-mean", None, "k is None; expected 1 or more"),
        ("top-k-mean", 0, "k is 0; expected 1 or more"),
        ("top-k-mean", True, "k is True; expected 1 or more"),
        ("top-k-mean", 1.0, r"k is 1\.0; expected 1 or more"),
    ],
)
def test_top_k_has_a_k_and_nothing_else_has(rule: Any, k: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Aggregation(rule=rule, k=k)


def test_probabilities_add_up_and_flatten_with_temperature() -> None:
    logits = np.array([[3.0, -1.0, 0.5], [1000.0, -1000.0, 0.0]], np.float32)
    sharp, flat = probabilities(logits, 1.0), probabilities(logits, 5.0)
    np.testing.assert_allclose(sharp.sum(axis=1), 1)
    np.testing.assert_allclose(sharp[0], np.exp(logits[0]) / np.exp(logits[0]).sum(), rtol=1e-6)
    assert flat[0].max() < sharp[0].max()
    assert np.isfinite(sharp).all()
