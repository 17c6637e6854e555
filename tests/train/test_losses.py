"""Each kind of head costs what its formula says, and what is not known costs nothing."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medtl_runtime.heads import Head, columns_of, width
from medtl_train.fitting.losses import class_costs, distillation_loss, step_costs, value_costs

NAN = math.nan
LESION = Head(name="lesion", classes=("no", "benign", "malignant"))
EDEMA = Head(name="edema", kind="binary", classes=("absent", "present"))
GRADE = Head(name="grade", kind="ordinal", classes=("0", "1", "2", "3"))
VOLUME = Head(name="volume", kind="regression", unit="mL", mean=50.0, std=20.0)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def ratio(costs: Tensor, counts: Tensor) -> float:
    return float(costs.sum() / counts.sum())


def by_hand(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, smoothing: float) -> float:
    """Cross-entropy with smoothed targets; each image counts by the weight of its class."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    logs = np.log(shifted / shifted.sum(1, keepdims=True))
    classes = logits.shape[1]
    targets = np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes
    return float(-(targets * weights * logs).sum() / weights[labels].sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_alternatives_cost_a_smoothed_weighted_cross_entropy(
    smoothing: float, weights: list[float] | None
) -> None:
    logits, labels = random(9, 3), np.random.default_rng(0).integers(0, 3, 9)
    found = class_costs(
        logits,
        torch.from_numpy(labels).double(),
        weights_k=None if weights is None else torch.tensor(weights, dtype=torch.float64),
        smoothing=smoothing,
    )
    expected = by_hand(logits.numpy(), labels, np.array(weights or [1.0] * 3), smoothing)
    assert ratio(*found) == pytest.approx(expected, rel=1e-9)


def test_a_certain_wrong_answer_costs_what_its_logarithm_says() -> None:
    logits = torch.tensor([[0.0, 20.0]])
    assert class_costs(logits, torch.tensor([0.0])).costs.item() == pytest.approx(20, abs=1e-4)
    found = step_costs(torch.tensor([[20.0]]), torch.tensor([0.0])).costs.item()
    assert found == pytest.approx(20, abs=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_is_the_cross_entropy_times_a_power_of_the_error(gamma: float) -> None:
    logits, labels = random(7, 3), torch.tensor([0.0, 1, 2, 0, 1, 2, 0])
    chances = logits.softmax(1)[torch.arange(7), labels.long()]
    found = class_costs(logits, labels, focal=gamma).costs
    torch.testing.assert_close(found, -((1 - chances) ** gamma) * chances.log())
    column, present = random(7, 1), torch.tensor([0.0, 1, 1, 0, 1, 0, 0])
    right = torch.where(present > 0, column[:, 0].sigmoid(), 1 - column[:, 0].sigmoid())
    found = step_costs(column, present, focal=gamma).costs
    torch.testing.assert_close(found, -((1 - right) ** gamma) * right.log())


def corn_by_hand(logits: np.ndarray, grades: np.ndarray) -> float:
    """The loss of Shi, Cao and Raschka, task by task on its own subset of the images."""
    total, count = 0.0, 0
    for task in range(logits.shape[1]):
        chosen = grades > task - 1
        above = grades[chosen] > task
        chance = 1 / (1 + np.exp(-logits[chosen, task]))
        total -= np.log(np.where(above, chance, 1 - chance)).sum()
        count += chosen.sum()
    return total / count


def test_grades_cost_what_corn_says() -> None:
    logits, grades = random(20, 3), np.random.default_rng(1).integers(0, 4, 20)
    found = step_costs(logits, torch.from_numpy(grades).double())
    assert ratio(*found) == pytest.approx(corn_by_hand(logits.numpy(), grades), rel=1e-9)


def test_a_finding_costs_a_binary_cross_entropy() -> None:
    column, present = random(6, 1), torch.tensor([0.0, 1, 1, 0, 1, 0], dtype=torch.float64)
    soft = present * 0.9 + 0.05
    expected = F.binary_cross_entropy_with_logits(column[:, 0], soft)
    found = step_costs(column, present, smoothing=0.1)
    assert ratio(*found) == pytest.approx(float(expected), rel=1e-9)


def test_weights_of_classes_count_for_findings_and_grades() -> None:
    column, present = random(3, 1), torch.tensor([0.0, 1.0, NAN], dtype=torch.float64)
    weights = torch.tensor([0.5, 4.0], dtype=torch.float64)
    plain = step_costs(column, present)
    found = step_costs(column, present, weights_k=weights)
    torch.testing.assert_close(found.costs, plain.costs * torch.tensor([0.5, 4.0, 0.5]).double())
    assert found.counts.tolist() == [0.5, 4.0, 0.0]


@pytest.mark.parametrize(("kind", "expected"), [("mse", [0.25, 9.0]), ("huber", [0.125, 2.5])])
def test_values_cost_by_their_error_in_standard_deviations(kind: str, expected: list) -> None:
    column = torch.tensor([0.5, 0.0])
    found = value_costs(column, torch.tensor([50.0, 110.0]), VOLUME, kind)  # pyright: ignore
    assert found.costs.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["class", "step", "value"])
def test_unknown_targets_cost_nothing_and_have_no_gradient(kind: str) -> None:
    columns = {"class": 3, "step": 2, "value": 1}[kind]
    logits = random(4, columns).requires_grad_()
    targets = torch.tensor([1.0, NAN, 0.0, NAN], dtype=torch.float64)
    if kind == "value":
        found = value_costs(logits[:, 0], targets, VOLUME, "mse")
    else:
        found = (class_costs if kind == "class" else step_costs)(logits, targets)
    assert (found.costs[[1, 3]] == 0).all()
    assert (found.counts[[1, 3]] == 0).all()
    assert (found.counts[[0, 2]] > 0).all()
    found.costs.sum().backward()
    assert logits.grad is not None
    assert (logits.grad[[1, 3]] == 0).all()
    assert (logits.grad[[0, 2]] != 0).any(1).all()


@pytest.mark.parametrize("head", [LESION, EDEMA, GRADE], ids=lambda head: head.kind)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_divergence_of_the_softened_probabilities(
    head: Head, temperature: float
) -> None:
    student, teacher = random(5, head.columns), random(5, head.columns, seed=1)
    p = head.probabilities(teacher.numpy(), temperature)
    q = head.probabilities(student.numpy(), temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    found = distillation_loss([head], student, teacher, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_a_teachers_values_are_followed_by_the_squared_difference() -> None:
    found = distillation_loss(
        [VOLUME], torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]]), 4
    )
    assert float(found) == pytest.approx(2.5)


def test_a_teacher_of_several_heads_is_followed_in_each() -> None:
    heads = (LESION, EDEMA, GRADE, VOLUME)
    student = random(6, width(heads)).requires_grad_()
    teacher = random(6, width(heads), seed=1)
    found = distillation_loss(heads, student, teacher, 2.0)
    parts = [
        float(distillation_loss([head], student[:, c].detach(), teacher[:, c], 2.0))
        for head, c in zip(heads, columns_of(heads), strict=True)
    ]
    assert found.item() == pytest.approx(np.mean(parts))
    found.backward()
    assert student.grad is not None
    assert (student.grad != 0).all()
    assert float(distillation_loss(heads, teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-12)
