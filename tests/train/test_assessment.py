"""The figures of a split are whole, are JSON, and say what holds and what does not."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from medtl_runtime.heads import Head, width
from medtl_train.scoring.assessment import assess, assess_head
from medtl_train.scoring.metrics import NAMES, ORDINAL, VALUES, measure
from medtl_train.scoring.scored import Answers, score

HEADS = {
    "binary": Head(name="edema", kind="binary", classes=("absent", "present")),
    "multiclass": Head(name="organ", classes=("liver", "lung", "spleen")),
    "ordinal": Head(name="stage", kind="ordinal", classes=("0", "1", "2", "3")),
    "regression": Head(name="age", kind="regression", unit="a", mean=50, std=10),
}
RATES = {
    f"{one}_at_{other}_{rate}"
    for one, other in (("sensitivity", "specificity"), ("specificity", "sensitivity"))
    for rate in ("0.8", "0.9", "0.95")
}
CALIBRATION = {"ece", "ece_adaptive"}
EXPECTED = {
    "binary": {*NAMES, *RATES, *CALIBRATION, "brier", "calibration_slope",
               "calibration_intercept"},
    "multiclass": {*NAMES, *CALIBRATION, "brier"},
    "ordinal": {*NAMES, *ORDINAL, *CALIBRATION, "ranked_probability_score"},
    "regression": {*VALUES, "agreement_low", "agreement_high"},
}  # fmt: skip


def answers(kind: str, n: int = 80, *, images: int = 1) -> Answers:
    head = HEADS[kind]
    rng = np.random.default_rng(0)
    targets = rng.normal(50, 10, n) if kind == "regression" else rng.integers(
        0, len(head.classes), n
    )  # fmt: skip
    logits = rng.normal(size=(n, width((head,))))
    if kind != "multiclass" and n:
        logits += 0.5 * (targets[:, None] - targets.mean()) / targets.std()
    patients = np.array([f"p{i // images}" for i in range(n)])
    return score((head,), logits, targets[:, None].astype(float), patients)[head.name]


@pytest.mark.parametrize("kind", HEADS)
def test_each_kind_of_head_has_its_figures(kind: str) -> None:
    one = answers(kind)
    found = assess_head(one, seed=0, resamples=50)
    assert set(found["metrics"]) == EXPECTED[kind]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for name, value in measure(one).items():
        assert found["metrics"][name]["value"] == value
        assert found["metrics"][name]["low"] < found["metrics"][name]["high"]
    for name in CALIBRATION & set(found["metrics"]):
        assert found["metrics"][name]["low"] is None
    assert ("confusion" in found) == (kind != "regression")


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_without_known_targets_has_no_figures_and_no_failure(kind: str) -> None:
    found = assess_head(answers(kind, 0), seed=0, resamples=10)
    assert (found["images"], found["patients"]) == (0, 0)
    values = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert {name for name, value in values.items() if value is not None} == set()


def test_the_limits_of_agreement_hold_nineteen_of_twenty_errors() -> None:
    one = answers("regression", 2000)
    found = assess_head(one, seed=0, resamples=5)["metrics"]
    errors = one.predicted - one.values
    low, high = found["agreement_low"]["value"], found["agreement_high"]["value"]
    assert np.mean((errors > low) & (errors < high)) == pytest.approx(0.95, abs=0.015)
    assert low == pytest.approx(errors.mean() - 1.959964 * errors.std(ddof=1))


def test_delong_is_given_where_each_patient_has_one_image_and_nowhere_else() -> None:
    alone = assess_head(answers("binary"), seed=0, resamples=5)
    auroc = alone["metrics"]["auroc"]["value"]
    assert alone["delong"]["low"] < alone["delong"]["value"] == pytest.approx(auroc)
    assert assess_head(answers("binary", images=2), seed=0, resamples=5)["delong"] is None
    assert assess_head(answers("multiclass"), seed=0, resamples=5)["delong"] is None


def test_a_split_counts_all_images_and_each_head_those_that_it_knows() -> None:
    one = answers("binary")
    few = replace(one, labels=one.labels[:30], probabilities=one.probabilities[:30],
                  patients=one.patients[:30])  # fmt: skip
    found = assess({"edema": few, "other": one}, one.patients, seed=0)
    assert (found["images"], found["patients"]) == (80, 80)
    assert (found["heads"]["edema"]["images"], found["heads"]["other"]["images"]) == (30, 80)


def test_ten_thousand_images_take_seconds_and_not_minutes() -> None:
    one = answers("binary", 10_000, images=2)
    started = time.process_time()
    assess_head(one, seed=0, resamples=100)
    assert time.process_time() - started < 2  # a tenth of a head's thousand resamples
