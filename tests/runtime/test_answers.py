"""What each head answers, and what is said where no single answer can be."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medtl_runtime import Predictor
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.answers import Interval, answers_of, combined
from medtl_runtime.decision import Decision, HeadDecision, Margin, OperatingPoint, Triage
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head
from medtl_runtime.testing import FakeEngine, describe

Rows = Callable[[str], list[dict[str, Any]]]

LIVER = Head(name="liver", classes=("cyst", "healthy", "tumour"))
OEDEMA = Head(name="oedema", kind="binary", classes=("absent", "present"))
GRADE = Head(name="grade", kind="ordinal", classes=("1", "2", "3"))
AGE = Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0)
FOUR = (LIVER, OEDEMA, GRADE, AGE)
LOGITS = np.array([0, np.log(8), 0, -1.0, np.log(4), -np.log(4), 0.5], np.float32)
NEVER = Triage(error_rate=0.1, thresholds=(0.9, 0.9), images=20)
VALUE = OperatingPoint(rule="value")
DECISION = Decision(
    heads=(
        HeadDecision(),
        HeadDecision(
            operating_point=OperatingPoint(rule="threshold", positive="present", threshold=0.25)
        ),
        HeadDecision(operating_point=OperatingPoint(rule="median")),
        HeadDecision(
            operating_point=VALUE, interval=Margin(coverage=0.9, half_width=12.5, images=80)
        ),
    )
)


def test_each_head_answers_by_its_own_columns_and_decision() -> None:
    found = answers_of(FOUR, DECISION, LOGITS)
    assert list(found) == ["liver", "oedema", "grade", "age"]
    assert found["liver"].finding == "healthy"
    assert found["liver"].probabilities == pytest.approx(
        {"cyst": 0.1, "healthy": 0.8, "tumour": 0.1}
    )
    assert found["oedema"].finding == "present"  # 0.27, at its threshold
    assert found["grade"].probabilities == pytest.approx({"1": 0.2, "2": 0.64, "3": 0.16})
    assert found["grade"].finding == "2"
    assert (found["age"].value, found["age"].unit) == (60, "a")
    assert found["age"].interval == Interval(low=47.5, high=72.5, coverage=0.9)
    assert (found["age"].finding, found["age"].probabilities) == (None, None)


def test_the_temperature_of_a_head_is_its_own() -> None:
    warm = Decision(heads=(HeadDecision(temperature=3.0), *DECISION.heads[1:]))
    before, after = (answers_of(FOUR, one, LOGITS) for one in (DECISION, warm))
    assert after["liver"].probabilities == pytest.approx(
        {"cyst": 0.25, "healthy": 0.5, "tumour": 0.25}
    )
    assert {name: after[name] for name in ("oedema", "grade", "age")} == {
        name: before[name] for name in ("oedema", "grade", "age")
    }


def of_four(decision: Decision = DECISION, logits: np.ndarray = LOGITS) -> Predictor:
    engine = FakeEngine(describe(heads=FOUR, decision=decision), lambda _: logits[None])
    return Predictor(engine=engine)


IMAGE = np.zeros((16, 16), np.uint8)


def test_a_result_of_several_heads_has_answers_and_no_single_finding(rows: Rows) -> None:
    result = of_four()(IMAGE)
    assert result.status == "ok"
    for field in ("finding", "probabilities", "prediction_set"):
        words = r"the model has 4 heads \(liver, oedema, grade, age\), and no single .*answers\["
        with pytest.raises(UsageError, match=words):
            getattr(result, field)
    (row,) = rows(json.dumps(result.to_json(), allow_nan=False))
    assert (row["finding"], row["probabilities"], row["prediction_set"]) == (None, None, None)
    assert row["answers"]["oedema"]["finding"] == "present"
    assert row["answers"]["age"] == {
        "kind": "regression",
        "finding": None,
        "probabilities": None,
        "prediction_set": None,
        "value": 60.0,
        "interval": {"low": 47.5, "high": 72.5, "coverage": 0.9},
        "unit": "a",
    }


def test_a_single_regression_has_a_value_and_says_so(rows: Rows) -> None:
    engine = FakeEngine(describe(heads=(AGE,)), lambda _: np.array([[-1.5]]))
    result = Predictor(engine=engine)(IMAGE)
    assert (result.status, result.answers["age"].value) == ("ok", 20)
    with pytest.raises(UsageError, match="head age is a regression and has no finding"):
        _ = result.finding
    (row,) = rows(json.dumps(result.to_json()))
    assert (row["finding"], row["answers"]["age"]["interval"]) == (None, None)


def test_the_model_abstains_where_no_head_has_an_answer() -> None:
    heads = (Head(name="one", classes=("a", "b")), OEDEMA)
    one = HeadDecision(triage=NEVER)
    logits = np.array([[0.0, 5.0, 0.0]])
    for decisions, status in (((one, one), "ok"), ((one, one), "abstained")):
        given = logits if status == "ok" else 0 * logits
        engine = FakeEngine(
            describe(heads=heads, decision=Decision(heads=decisions)), lambda _, x=given: x
        )
        result = Predictor(engine=engine)(IMAGE)
        assert result.status == status
        assert result.answers["oedema"].finding is None
    assert result.answers["oedema"].why_abstained.startswith("every class is excluded")


def test_a_series_combines_each_head_by_its_kind() -> None:
    slices = [
        answers_of(FOUR, DECISION, LOGITS + np.array([0, 0, 0, 0, 0, 0, shift]))
        for shift in (0.0, 0.1, -2.0)
    ]
    severe = LOGITS.copy()
    severe[3:6] = 4
    slices.append(answers_of(FOUR, DECISION, severe))
    case = combined(FOUR, DECISION, slices, Aggregation())
    assert case["oedema"].probabilities == pytest.approx(slices[3]["oedema"].probabilities)
    assert case["grade"].finding == "3"
    assert case["age"].value == 60  # the median of 60, 62, 20 and 60
    assert case["age"].interval == Interval(low=47.5, high=72.5, coverage=0.9)
    mean = combined(FOUR, DECISION, slices, Aggregation(rule="mean"))
    assert mean["age"].value == pytest.approx((60 + 62 + 20 + 60) / 4)
    assert (mean["liver"].probabilities or {})["healthy"] == pytest.approx(0.8)
