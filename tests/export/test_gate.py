"""The gate opens for what is surely not worse, and for nothing else."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from medtl_export.errors import GateUndefined
from medtl_export.gate import Difference, Gate, Verdict
from medtl_runtime.decision import OperatingPoint, probabilities
from medtl_train import metrics
from medtl_train.metrics import Scored

HALF = OperatingPoint(rule="threshold", positive="lesion", threshold=0.5)
IMAGES = 200


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spend less time; what is checked here does not hang on how many there are."""
    monkeypatch.setattr(metrics, "differences", partial(metrics.differences, resamples=200))


def logits(noise: float = 0.0, seed: int = 1) -> NDArray[np.float32]:
    """Return logits of a fair model, with noise of its own for each seed."""
    rng = np.random.default_rng(0)
    lesion = rng.normal(size=IMAGES) + 2 * labels()
    lesion += noise * np.random.default_rng(seed).normal(size=IMAGES)
    return np.stack([1 - lesion, lesion - 1], 1).astype(np.float32)


def labels() -> NDArray[np.int64]:
    return np.arange(IMAGES) % 2


def gate(**fields: object) -> Gate:
    reference = Scored(
        labels=labels(),
        probabilities=probabilities(logits(), 1.0),
        patients=np.array([f"p{i // 2}" for i in range(IMAGES)]),
        classes=("healthy", "lesion"),
        point=HALF,
    )
    given = {
        "reference": reference,
        "temperature": 1.0,
        "point": HALF,
        "metric": "auroc",
        "max_drop": 0.005,
    }
    return Gate(**{**given, **fields})  # pyright: ignore[reportArgumentType]


def test_the_same_network_differs_by_nothing_and_is_accepted() -> None:
    found = gate().judge(logits())
    assert found.difference == Difference(value=0.0, low=0.0, high=0.0)
    assert found.flips == 0
    assert found.accepted


def test_where_nothing_may_be_lost_the_same_network_is_accepted_and_a_worse_one_is_not() -> None:
    strict = gate(max_drop=0.0)
    assert strict.judge(logits()).accepted
    assert not strict.judge(logits(noise=1.0)).accepted


def test_the_lower_bound_decides_and_not_the_value() -> None:
    found = gate().judge(logits(noise=0.3))
    assert found.difference is not None
    between = -(found.difference.value + found.difference.low) / 2
    assert found.difference.low < -between < found.difference.value
    assert not gate(max_drop=between).judge(logits(noise=0.3)).accepted
    enough = -found.difference.low
    assert gate(max_drop=enough).judge(logits(noise=0.3)).accepted
    assert not gate(max_drop=0.99 * enough).judge(logits(noise=0.3)).accepted


def test_a_better_network_is_accepted() -> None:
    better = logits() + np.stack([1 - labels(), labels()], 1).astype(np.float32)
    found = gate(max_drop=0.0).judge(better)
    assert found.difference is not None
    assert found.difference.value > 0
    assert found.accepted


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy", "sensitivity"])
def test_each_metric_is_compared_under_its_name(metric: str) -> None:
    worse = logits(noise=2.0)
    found = gate(metric=metric).judge(worse)
    assert found.difference is not None
    name = "recall" if metric == "sensitivity" else metric
    before = gate().judge(logits()).accuracy[name]
    after = found.accuracy[name]
    assert before is not None
    assert after is not None
    assert found.difference.value == pytest.approx(after - before)


@pytest.mark.parametrize("max_drop", [None, 0.005, 1.0])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_logits_that_are_no_numbers_are_never_accepted(
    max_drop: float | None, broken: float
) -> None:
    found = logits()
    found[3, 1] = broken
    assert not gate(max_drop=max_drop).judge(found).accepted


def test_without_a_limit_any_loss_is_accepted() -> None:
    reversed_ = logits()[:, ::-1].copy()
    free = gate(max_drop=None)
    free.check()
    found = free.judge(reversed_)
    assert found.accepted
    assert found.difference is not None
    assert found.difference.high < -0.5
    assert not gate(max_drop=0.5).judge(reversed_).accepted


def one_class() -> Scored:
    return replace(gate().reference, labels=np.ones(IMAGES, np.int64))


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy"])
def test_an_absent_class_is_named_where_it_leaves_the_metric_undefined(metric: str) -> None:
    undefined = gate(reference=one_class(), metric=metric)
    with pytest.raises(GateUndefined, match=r"no validation images of healthy; --max-drop none"):
        undefined.check()
    with pytest.raises(GateUndefined, match=metric.replace("_", " ")):
        undefined.check()
    assert not undefined.judge(logits()).accepted
    assert undefined.judge(logits()).difference is None


def test_an_absent_class_is_no_matter_where_the_metric_does_without_it() -> None:
    gate(reference=one_class(), metric="sensitivity").check()


def test_without_a_limit_an_undefined_metric_is_no_matter() -> None:
    free = gate(reference=one_class(), max_drop=None)
    free.check()
    found = free.judge(logits())
    assert found.accepted
    assert found.difference is None
    assert found.accuracy["auroc"] is None


def test_a_student_is_judged_at_its_own_operating_point() -> None:
    shifted = logits()
    shifted[:, 1] += 2  # the same order, and more confident of lesions
    moved = float(probabilities(np.float32([0, 2]), 1.0)[1])
    there = replace(HALF, threshold=moved)
    at_its_own = gate(metric="balanced_accuracy", point=there).judge(shifted)
    at_the_teacher_s = gate(metric="balanced_accuracy").judge(shifted)
    assert at_its_own.flips == 0
    assert at_its_own.difference == Difference(value=0.0, low=0.0, high=0.0)
    assert at_the_teacher_s.flips > 20
    assert at_the_teacher_s.difference is not None
    assert at_the_teacher_s.difference.value < -0.05


def test_probabilities_are_those_at_the_temperature() -> None:
    # At 2, a logit difference of 2 ln 3 is a probability of 3 / 4.
    point = replace(HALF, threshold=0.75)
    edge = np.zeros((IMAGES, 2), np.float32)
    edge[:, 1] = 2 * np.log(3) + np.where(labels() == 1, 0.01, -0.01)
    found = gate(metric="balanced_accuracy", temperature=2.0, point=point).judge(edge)
    assert found.accuracy["balanced_accuracy"] == 1.0
    assert gate(metric="balanced_accuracy", point=point).judge(edge).accuracy["recall"] == 1.0
    assert gate(metric="balanced_accuracy", point=point).judge(edge).accuracy["specificity"] == 0.0


def test_the_same_logits_are_always_judged_alike() -> None:
    assert gate().judge(logits(noise=0.5)) == gate().judge(logits(noise=0.5))


@pytest.mark.parametrize("reference", [None, one_class()])
def test_a_verdict_survives_json(reference: Scored | None) -> None:
    asked = gate(**({} if reference is None else {"reference": reference}))
    found = asked.judge(logits(noise=0.5))
    assert Verdict.from_json(found.to_json()) == found
