"""Rates are held on images like the validation images, and what cannot be held is refused."""

import numpy as np
import pytest

from medtl_export import cutoffs
from medtl_export.compare import Outputs
from medtl_runtime.decision import probabilities
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head
from medtl_runtime.novelty import exceeds, score

CLASSES = ("healthy", "lesion")
HEADS = (Head(name="label", classes=CLASSES),)
AGE = Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0)


def outputs(count: int, seed: int, shift: float = 0.0) -> tuple[Outputs, np.ndarray]:
    """Return embeddings about the means of two classes, and logits that follow the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    embeddings = rng.normal(size=(count, 8)) + 3 * labels[:, None] + shift
    logits = rng.normal(size=(count, 2)) + 2 * np.eye(2)[labels]
    made = Outputs(
        logits=logits.astype(np.float32), embeddings=embeddings.astype(np.float32), map_gap=0.0
    )
    return made, labels.astype(np.float64)


def refused(found: Outputs, reference, novelty) -> float:
    scores = [
        score(HEADS, *pair, reference) for pair in zip(found.logits, found.embeddings, strict=True)
    ]
    return float(np.mean([exceeds(one, novelty) is not None for one in scores]))


def test_images_like_the_validation_images_are_refused_at_the_stated_rate() -> None:
    train, labels = outputs(400, seed=0)
    rates = []
    for seed in range(1, 9):
        val, _ = outputs(300, seed=seed)
        reference, novelty = cutoffs.fit_novelty(HEADS, train, labels[:, None], val, 0.1)
        assert novelty.images == 300
        assert novelty.false_refusal_rate <= 0.1
        rates.append(refused(outputs(500, seed=100 + seed)[0], reference, novelty))
        assert refused(outputs(100, seed=99, shift=30)[0], reference, novelty) == 1
    assert 0.03 < np.mean(rates) <= 0.1 + 0.02


def test_few_images_state_the_rate_that_they_hold() -> None:
    (train, labels), (val, _) = outputs(100, seed=0), outputs(30, seed=1)
    _, novelty = cutoffs.fit_novelty(HEADS, train, labels[:, None], val, cutoffs.DEFAULT_RATE)
    assert novelty.false_refusal_rate == pytest.approx(2 / 31)


def test_the_prediction_set_lacks_the_truth_no_more_often_than_stated() -> None:
    missed = []
    for seed in range(8):
        val, labels = outputs(300, seed=seed)
        triage = cutoffs.fit_triage(HEADS[0], val.logits, labels, 1.5, 0.1)
        assert (triage.error_rate, triage.images) == (0.1, 300)
        fresh, truths = outputs(500, seed=100 + seed)
        chances = probabilities(fresh.logits, 1.5)
        sets = [triage.prediction_set(CLASSES, row) for row in chances]
        missed += [
            CLASSES[int(truth)] not in some for truth, some in zip(truths, sets, strict=True)
        ]
    assert 0.05 < np.mean(missed) <= 0.1 + 0.02


LABELS = np.array([0.0] * 30 + [1] * 9)


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"false_refusal_rate": 0.05}, None),  # 2 / (39 + 1)
        ({"false_refusal_rate": 0.049}, "takes 40 validation images; there are 39"),
        ({"false_refusal_rate": 0.0}, None),
        ({"error_rate": 0.1}, None),  # 1 / (9 + 1)
        ({"error_rate": 0.09}, "takes 11 validation images of each class; lesion has 9"),
        ({"error_rate": 1e-320}, "--error-rate is 1e-320; expected 1e-06 or more"),
        ({"false_refusal_rate": 5e-324}, "--false-refusal-rate is 5e-324; expected 1e-06 or more"),
        ({}, None),
    ],
)
def test_rates_that_the_images_cannot_hold_are_refused(rates: dict, words: str | None) -> None:
    given = {"false_refusal_rate": None, "error_rate": None, **rates}
    if words is None:
        cutoffs.require_enough(HEADS, LABELS[:, None], **given)
        return
    with pytest.raises(UsageError, match=words):
        cutoffs.require_enough(HEADS, LABELS[:, None], **given)


@pytest.mark.parametrize(
    ("images", "rate", "wanted", "notes"),
    [(39, None, True, 0), (38, None, False, 1), (19, 0.1, True, 0), (500, 0.0, False, 0)],
)
def test_the_check_is_there_unless_it_is_unwanted_or_would_refuse_too_much(
    images: int, rate: float | None, wanted: bool, notes: int
) -> None:
    told: list[str] = []
    assert cutoffs.wants_novelty(images, rate, told.append) is wanted
    assert len(told) == notes


def test_only_known_targets_count_for_a_rate() -> None:
    unknown = LABELS.copy()
    unknown[-1] = np.nan
    with pytest.raises(UsageError, match="takes 9 validation images of each class; lesion has 8"):
        cutoffs.require_enough(HEADS, unknown[:, None], false_refusal_rate=None, error_rate=0.1)


def test_an_interval_takes_images_as_well() -> None:
    values = np.append(np.arange(8.0), np.nan)[:, None]
    cutoffs.require_enough((AGE,), values, false_refusal_rate=None, error_rate=0.2)
    with pytest.raises(UsageError, match="takes 9 validation images with a known age; there are 8"):
        cutoffs.require_enough((AGE,), values, false_refusal_rate=None, error_rate=0.1)


@pytest.mark.parametrize(("rate", "coverage"), [(None, 0.9), (0.25, 0.75)])
def test_an_interval_holds_the_values_of_fresh_images(rate: float | None, coverage: float) -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(60):
        logits = rng.normal(size=(400, 1)).astype(np.float32)
        targets = AGE.values(logits) + rng.normal(0, 5, 400)
        targets[::9] = np.nan
        margin = cutoffs.fit_interval(AGE, logits[:100], targets[:100], rate)
        assert margin is not None
        assert (margin.coverage, margin.images) == (coverage, 88)
        off = np.abs(targets[100:] - AGE.values(logits[100:]))
        covered.append((off[~np.isnan(off)] <= margin.half_width).mean())
    assert coverage - 0.01 < np.mean(covered) < coverage + 0.03


def test_so_few_values_have_no_interval() -> None:
    assert cutoffs.fit_interval(AGE, np.zeros((8, 1), np.float32), np.zeros(8), None) is None
