"""How logits become a finding, and how that is stored."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from medtl_runtime.aggregation import Aggregation
from medtl_runtime.decision import (
    Decision,
    HeadDecision,
    Margin,
    NoveltyCutoffs,
    OperatingPoint,
    Triage,
    plain_decision,
    probabilities,
)
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head

CLASSES = ("healthy", "lesion")
HEADS = (Head(name="label", classes=CLASSES),)
OEDEMA = Head(name="oedema", kind="binary", classes=("absent", "present"))
GRADE = Head(name="grade", kind="ordinal", classes=("1", "2", "3"))
AGE = Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0)
WHOLE = Decision(
    heads=(
        HeadDecision(
            temperature=1.7,
            operating_point=OperatingPoint(
                rule="threshold", positive="lesion", threshold=0.3, chosen="by hand"
            ),
            triage=Triage(error_rate=0.1, thresholds=(0.2, 0.4), images=120),
        ),
    ),
    novelty=NoveltyCutoffs(energy=-1.5, mahalanobis=80.0, false_refusal_rate=0.02, images=120),
)


@pytest.mark.parametrize("decision", [WHOLE, Decision(heads=(HeadDecision(),))])
def test_a_decision_survives_being_written_and_read(decision: Decision) -> None:
    text = json.dumps(decision.to_json())
    assert Decision.from_json(json.loads(text), HEADS) == decision


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
        ({"interval": {"coverage": 0.9, "half_width": 1.0, "images": 9}}, "only a regression"),
        ({"operating_point": {"rule": "median"}}, "expected argmax or threshold for multiclass"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_head_s_decision_that_makes_no_sense_is_refused_by_name(
    change: dict[str, Any], word: str
) -> None:
    document = WHOLE.to_json()
    document["heads"] = [{**document["heads"][0], **change}]
    with pytest.raises(UsageError, match=word):
        Decision.from_json(document, HEADS)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"novelty": {"energy": 1.0}}, "malformed"),
        ({"heads": None}, "malformed"),
        ({"heads": []}, "decision about 0 heads; the model has 1"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused_by_name(
    change: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        Decision.from_json({**WHOLE.to_json(), **change}, HEADS)


@pytest.mark.parametrize(
    ("head", "own", "word"),
    [
        (GRADE, HeadDecision(), "rule is argmax; expected median for ordinal"),
        (AGE, HeadDecision(), "rule is argmax; expected value for regression"),
        (AGE, HeadDecision(operating_point=OperatingPoint(rule="value"), temperature=2), "no temp"),
        (
            AGE,
            HeadDecision(
                operating_point=OperatingPoint(rule="value"),
                triage=Triage(error_rate=0.1, thresholds=(), images=9),
            ),
            "no triage",
        ),
        *[
            (
                AGE,
                HeadDecision(operating_point=OperatingPoint(rule="value"), interval=margin),
                word,
            )
            for margin, word in (
                (Margin(coverage=1.5, half_width=1, images=9), "interval coverage is 1.5"),
                (Margin(coverage=0.9, half_width=-1, images=9), "interval half_width is -1"),
                (Margin(coverage=0.9, half_width=float("inf"), images=9), "half_width is inf"),
                (Margin(coverage=0.9, half_width=1, images=0), "fitted on 0 images"),
            )
        ],
    ],
)
def test_a_decision_has_to_fit_its_kind_of_head(head: Head, own: HeadDecision, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Decision(heads=(own,)).check((head,))


def test_every_kind_of_head_has_a_plain_decision_that_survives_json() -> None:
    heads = (*HEADS, OEDEMA, GRADE, AGE)
    plain = plain_decision(heads)
    assert [one.operating_point.rule for one in plain.heads] == [
        "argmax",
        "argmax",
        "median",
        "value",
    ]
    assert Decision.from_json(json.loads(json.dumps(plain.to_json())), heads) == plain


def test_cutoffs_of_values_alone_have_no_energy() -> None:
    cutoffs = NoveltyCutoffs(energy=None, mahalanobis=9.0, false_refusal_rate=0.1, images=20)
    plain = plain_decision((AGE,))
    dataclasses.replace(plain, novelty=cutoffs).check((AGE,))
    with pytest.raises(UsageError, match="and no head has classes"):
        dataclasses.replace(plain, novelty=WHOLE.novelty).check((AGE,))
    with pytest.raises(UsageError, match="novelty energy is None; expected a number"):
        dataclasses.replace(WHOLE, novelty=cutoffs).check(HEADS)


@pytest.mark.parametrize(
    ("chances", "grade"),
    [((0.6, 0.3, 0.1), "1"), ((0.4, 0.2, 0.4), "2"), ((0.5, 0, 0.5), "1"), ((0, 0.1, 0.9), "3")],
)
def test_the_median_grade_has_half_of_the_probability_up_to_it(chances: tuple, grade: str) -> None:
    point = OperatingPoint(rule="median")
    assert point.decide(GRADE.classes, np.array(chances)) == grade


@pytest.mark.parametrize("field", ["energy", "mahalanobis"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", None])
def test_cutoffs_are_finite_numbers(field: str, value: Any) -> None:
    data = WHOLE.to_json()
    data["novelty"][field] = value
    with pytest.raises(UsageError, match=field):
        Decision.from_json(data, HEADS)


def test_a_missing_field_is_refused() -> None:
    for name in WHOLE.to_json():
        data = WHOLE.to_json()
        del data[name]
        with pytest.raises(UsageError, match=name):
            Decision.from_json(data, HEADS)
    for name in WHOLE.to_json()["heads"][0]:
        data = WHOLE.to_json()
        del data["heads"][0][name]
        with pytest.raises(UsageError, match=name):
            Decision.from_json(data, HEADS)


def test_a_threshold_needs_two_classes() -> None:
    with pytest.raises(UsageError, match="fits no class"):
        WHOLE.check((Head(name="label", classes=(*CLASSES, "cyst")),))


def test_the_prediction_set_holds_what_reaches_its_threshold() -> None:
    triage = Triage(error_rate=0.1, thresholds=(0.2, 0.4), images=120)
    sets = [
        triage.prediction_set(CLASSES, np.array([1 - p, p])) for p in (0.1, 0.4, 0.6, 0.79, 0.81)
    ]
    assert sets == [("healthy",), CLASSES, CLASSES, CLASSES, ("lesion",)]


def test_a_positive_class_may_stand_without_a_threshold() -> None:
    point = OperatingPoint(positive="lesion")
    Decision(heads=(HeadDecision(operating_point=point),)).check(HEADS)


def test_the_most_probable_class_wins_by_argmax() -> None:
    assert OperatingPoint().decide(("a", "b", "c"), np.array([0.2, 0.5, 0.3])) == "b"


@pytest.mark.parametrize(("chance", "finding"), [(0.3, "lesion"), (0.2999, "healthy")])
def test_a_probability_at_the_threshold_is_positive(chance: float, finding: str) -> None:
    point = WHOLE.heads[0].operating_point
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
