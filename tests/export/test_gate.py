"""The gate opens for what is surely not worse, and for nothing else."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from medtl_export.compare import Judgement, Validation
from medtl_export.errors import GateUndefined
from medtl_export.gate import Difference, Gate, Verdict
from medtl_runtime.decision import (
    Decision,
    HeadDecision,
    OperatingPoint,
    plain_decision,
    probabilities,
)
from medtl_runtime.heads import Head
from medtl_train.scoring import metrics

HEADS = (Head(name="label", classes=("healthy", "lesion")),)
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


PATIENTS = np.array([f"p{i // 2}" for i in range(IMAGES)])


def validation(
    point: OperatingPoint = HALF, temperature: float = 1.0, truth: NDArray | None = None
) -> Validation:
    targets = labels() if truth is None else truth
    own = HeadDecision(temperature=temperature, operating_point=point)
    return Validation(
        heads=HEADS,
        targets=targets[:, None].astype(np.float64),
        patients=PATIENTS,
        decision=Decision(heads=(own,)),
    )


def gate(
    *,
    reference: Judgement | None = None,
    point: OperatingPoint = HALF,
    temperature: float = 1.0,
    truth: NDArray | None = None,
    metric: str = "auroc",
    max_drop: float | None = 0.005,
) -> Gate:
    asked = validation(point, temperature, truth)
    return Gate(
        reference=reference or validation(truth=truth).judged(logits()),
        validation=asked,
        metric=metric,
        max_drop=max_drop,
    )


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
    before = gate().judge(logits()).accuracy["label"][name]
    after = found.accuracy["label"][name]
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


ONE_CLASS = np.ones(IMAGES)


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy"])
def test_an_absent_class_is_named_where_it_leaves_the_metric_undefined(metric: str) -> None:
    undefined = gate(truth=ONE_CLASS, metric=metric)
    with pytest.raises(GateUndefined, match=r"no validation images of healthy; --max-drop none"):
        undefined.check()
    with pytest.raises(GateUndefined, match=metric.replace("_", " ")):
        undefined.check()
    assert not undefined.judge(logits()).accepted
    assert undefined.judge(logits()).difference is None


def test_an_absent_class_is_no_matter_where_the_metric_does_without_it() -> None:
    gate(truth=ONE_CLASS, metric="sensitivity").check()


def test_without_a_limit_an_undefined_metric_is_no_matter() -> None:
    free = gate(truth=ONE_CLASS, max_drop=None)
    free.check()
    found = free.judge(logits())
    assert found.accepted
    assert found.difference is None
    assert found.accuracy["label"]["auroc"] is None


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
    assert found.accuracy["label"]["balanced_accuracy"] == 1.0
    at_one = gate(metric="balanced_accuracy", point=point).judge(edge).accuracy["label"]
    assert (at_one["recall"], at_one["specificity"]) == (1.0, 0.0)


def test_the_same_logits_are_always_judged_alike() -> None:
    assert gate().judge(logits(noise=0.5)) == gate().judge(logits(noise=0.5))


@pytest.mark.parametrize("truth", [None, ONE_CLASS])
def test_a_verdict_survives_json(truth: NDArray | None) -> None:
    found = gate(truth=truth).judge(logits(noise=0.5))
    assert Verdict.from_json(found.to_json()) == found


FOUR = (
    Head(name="organ", classes=("a", "b", "c")),
    Head(name="oedema", kind="binary", classes=("absent", "present")),
    Head(name="grade", kind="ordinal", classes=("1", "2", "3")),
    Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0),
)


def of_four() -> tuple[Validation, NDArray[np.float32]]:
    """Return images with some unknown targets, and logits that follow the targets."""
    rng = np.random.default_rng(4)
    targets = np.stack(
        [
            rng.integers(0, 3, IMAGES),
            rng.integers(0, 2, IMAGES),
            rng.integers(0, 3, IMAGES),
            rng.normal(50, 20, IMAGES),
        ],
        axis=1,
    ).astype(np.float64)
    organ, oedema, grade, age = targets.T
    signal = np.stack(
        [
            *(2 * (organ == k) for k in range(3)),
            2 * oedema - 1,
            2 * (grade > 0) - 1,
            2 * (grade > 1) - 1,
            (age - 50) / 20,
        ],
        axis=1,
    )
    found = (signal + 0.7 * rng.normal(size=signal.shape)).astype(np.float32)
    targets[::7, 1] = np.nan
    targets[::5, 3] = np.nan
    asked = Validation(
        heads=FOUR, targets=targets, patients=PATIENTS, decision=plain_decision(FOUR)
    )
    return asked, found


def gate_of_four(**fields: float | None) -> tuple[Gate, NDArray[np.float32]]:
    asked, found = of_four()
    made = Gate(
        reference=asked.judged(found),
        validation=asked,
        metric="auroc",
        **({"max_drop": 0.005} | fields),
    )
    return made, found


def test_the_same_network_of_several_heads_is_accepted() -> None:
    asked, found = gate_of_four()
    verdict = asked.judge(found)
    assert verdict.accepted
    assert (verdict.flips, verdict.difference) == (0, Difference(value=0.0, low=0.0, high=0.0))
    assert list(verdict.accuracy) == ["organ", "oedema", "grade", "age"]
    assert verdict.accuracy["age"].keys() >= {"mae", "r2"}
    assert Verdict.from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize(
    ("head", "columns"),
    [("organ", [0, 1, 2]), ("oedema", [3]), ("grade", [4, 5]), ("age", [6])],
)
def test_one_head_that_loses_is_named_and_closes_the_gate(head: str, columns: list[int]) -> None:
    asked, found = gate_of_four()
    worse = found.copy()
    worse[:, columns] += 1.5 * np.random.default_rng(9).normal(size=(IMAGES, len(columns)))
    verdict = asked.judge(worse)
    assert not verdict.accepted
    assert verdict.head == head
    assert verdict.difference is not None
    name = "r2" if head == "age" else "auroc"
    before, after = (asked.judge(one).accuracy[head][name] for one in (found, worse))
    assert before is not None
    assert after is not None
    assert verdict.difference.value == pytest.approx(after - before)
    assert (verdict.flips > 0) == (head != "age")  # a value is no decision


def test_flips_count_images_whose_target_is_not_known() -> None:
    asked, found = gate_of_four()
    turned = found.copy()
    turned[0, 3] *= -1  # the target of oedema is not known of the first image
    assert np.isnan(asked.validation.targets[0, 1])
    assert asked.judge(turned).flips == 1


def test_a_head_whose_metric_is_not_defined_is_named_and_does_not_decide() -> None:
    asked, found = of_four()
    targets = asked.targets.copy()
    targets[:, 1] = np.where(np.isnan(targets[:, 1]), np.nan, 0.0)
    lacking = replace(asked, targets=targets)
    made = Gate(reference=lacking.judged(found), validation=lacking, metric="auroc", max_drop=0.005)
    made.check()
    assert made.not_judged == ("oedema",)
    worse = found.copy()
    worse[:, 3] = 0
    assert made.judge(worse).accepted
