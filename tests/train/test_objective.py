"""The loss, its penalties, the schedule and the optimisers are what their formulas say."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medtl_models.network import Network
from medtl_train.config import FitConfig
from medtl_train.objective import (
    Phase,
    class_weights,
    learning_rate,
    loss_of,
    make_optimizer,
    penalty,
    phases,
    trained_layers,
)

HEAD = Phase(name="head", epochs=1, peak_lr=1e-3)
ALL = Phase(name="all", epochs=1, peak_lr=1e-3)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network("mobilenet_v3_small", logits=2, channels=1, head="mlp", dropout=0.0)


@pytest.mark.parametrize(
    ("changes", "pretrained", "expected"),
    [
        ({}, True, [("head", 3, 1e-3), ("all", 27, 1e-4)]),
        ({}, False, [("all", 30, 1e-4)]),
        ({"mode": "head"}, True, [("head", 30, 1e-3)]),
        ({"mode": "head"}, False, [("head", 30, 1e-3)]),
        ({"mode": "all"}, True, [("all", 30, 1e-4)]),
        ({"head_epochs": 0}, True, [("all", 30, 1e-4)]),
        ({"epochs": 2}, True, [("head", 1, 1e-3), ("all", 1, 1e-4)]),
        ({"epochs": 1}, True, [("all", 1, 1e-4)]),
        ({"lr": 0.5, "head_lr": 0.25}, True, [("head", 3, 0.25), ("all", 27, 0.5)]),
    ],
)
def test_phases_follow_the_mode(changes: dict, pretrained: bool, expected: list) -> None:
    found = phases(FitConfig(**changes), pretrained=pretrained)
    assert [(p.name, p.epochs, p.peak_lr) for p in found] == expected


def test_the_learning_rate_rises_then_falls_along_half_a_cosine() -> None:
    rates = [learning_rate(step, 100, 2.0, 0.1) for step in range(100)]
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:], 1 + np.cos(np.pi * np.arange(90) / 90))
    assert max(rates) == 2.0
    assert 0 < rates[-1] < 0.002
    assert (np.diff(rates[9:]) <= 0).all()


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (2, 0.5), (7, 0.99), (3, 0.05)])
def test_the_learning_rate_is_never_zero_nor_above_its_peak(steps: int, warmup: float) -> None:
    rates = [learning_rate(step, steps, 1.0, warmup) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert learning_rate(0, 10, 3.0, 0.0) == 3.0


def test_a_phase_trains_the_head_or_everything(network: Network) -> None:
    assert trained_layers(network, HEAD) is network.head
    assert trained_layers(network, ALL) is network


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop"])
def test_decay_acts_on_weights_and_spares_norms_and_biases(
    network: Network, optimizer: str
) -> None:
    made = make_optimizer(network, FitConfig(optimizer=optimizer, weight_decay=0.3))
    decayed = {id(p) for g in made.param_groups if g["weight_decay"] == 0.3 for p in g["params"]}
    spared = {id(p) for g in made.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert not decayed & spared
    assert decayed | spared == {id(p) for p in network.parameters()}
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert id(module.weight) in decayed
        if isinstance(module, nn.BatchNorm2d):
            assert id(module.weight) in spared
        if getattr(module, "bias", None) is not None:
            assert id(module.bias) in spared


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("adamw", torch.optim.AdamW, {"lr": 0.01}),
        ("adam", torch.optim.Adam, {"lr": 0.01}),
        ("sgd", torch.optim.SGD, {"lr": 0.01, "momentum": 0.8, "nesterov": True}),
        ("rmsprop", torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.8}),
    ],
)
def test_the_optimiser_is_the_one_that_was_named(
    network: Network, name: str, kind: type, expected: dict
) -> None:
    made = make_optimizer(network.head, FitConfig(optimizer=name, lr=0.01, momentum=0.8))
    assert type(made) is kind
    assert {key: made.param_groups[0][key] for key in expected} == expected


def test_sgd_goes_without_momentum(network: Network) -> None:
    made = make_optimizer(network, FitConfig(optimizer="sgd", momentum=0.0))
    assert made.param_groups[0]["nesterov"] is False


def test_frozen_parameters_are_left_to_no_optimiser(network: Network) -> None:
    network.backbone.requires_grad_(False)
    made = make_optimizer(network, FitConfig())
    found = {id(p) for group in made.param_groups for p in group["params"]}
    assert found == {id(p) for p in network.head.parameters()}


def by_hand(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, smoothing: float) -> float:
    """Cross-entropy with smoothed targets; each image counts by the weight of its class."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    logs = np.log(shifted / shifted.sum(1, keepdims=True))
    classes = logits.shape[1]
    targets = np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes
    return float(-(targets * weights * logs).sum() / weights[labels].sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_the_loss_is_a_smoothed_weighted_cross_entropy(
    smoothing: float, weights: list[float] | None
) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 3)), rng.integers(0, 3, 9)
    found = loss_of(
        torch.from_numpy(logits),
        torch.from_numpy(labels),
        None if weights is None else torch.tensor(weights, dtype=torch.float64),
        FitConfig(label_smoothing=smoothing),
    )
    expected = by_hand(logits, labels, np.array(weights or [1.0] * 3), smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_balanced_weights_average_one_over_the_images() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3, FitConfig(class_weights="balanced"))
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    assert float(weights[labels].mean()) == pytest.approx(1.0)
    assert class_weights(labels, 3, FitConfig()) is None


def weights_of(module: nn.Module) -> list[np.ndarray]:
    """Return convolution kernels and matrices in double precision."""
    kinds = (nn.Conv2d, nn.Linear)
    return [m.weight.detach().double().numpy() for m in module.modules() if isinstance(m, kinds)]


def test_no_penalty_costs_nothing(network: Network) -> None:
    assert penalty(network, network, {}, FitConfig()).item() == 0
    assert penalty(network, network.head, {}, FitConfig()).item() == 0


@pytest.mark.parametrize("part", ["network", "head"])
def test_l1_and_l2_are_sums_over_the_weights_in_training(network: Network, part: str) -> None:
    module = network if part == "network" else network.head
    weights = weights_of(module)
    l1 = sum(np.abs(w).sum() for w in weights)
    l2 = sum(np.square(w).sum() for w in weights)
    for changes, expected in (
        ({"l1": 0.01}, 0.01 * l1),
        ({"l2": 0.02}, 0.02 * l2),
        ({"l1": 0.01, "l2": 0.02}, 0.01 * l1 + 0.02 * l2),
    ):
        found = penalty(network, module, {}, FitConfig(**changes))
        assert found.item() == pytest.approx(expected, rel=1e-4)


def test_l2_sp_is_the_squared_way_from_the_pretrained_backbone(network: Network) -> None:
    anchor = {name: p.detach().clone() for name, p in network.backbone.named_parameters()}
    config = FitConfig(l2_sp=0.5)
    assert penalty(network, network, anchor, config).item() == 0
    moved = 0.0
    with torch.no_grad():
        for k, parameter in enumerate(network.backbone.parameters()):
            parameter.add_(0.01 * (k % 3))
            moved += (0.01 * (k % 3)) ** 2 * parameter.numel()
        for parameter in network.head.parameters():
            parameter.add_(1.0)  # new, and not pulled anywhere
    found = penalty(network, network, anchor, config)
    assert found.item() == pytest.approx(0.5 * moved, rel=1e-3)
    found.backward()
    for name, parameter in network.backbone.named_parameters():
        expected = 2 * 0.5 * (parameter.detach() - anchor[name])
        torch.testing.assert_close(parameter.grad, expected)
    assert all(p.grad is None for p in network.head.parameters())


def test_l2_sp_waits_while_only_the_head_is_trained(network: Network) -> None:
    anchor = {name: torch.zeros_like(p) for name, p in network.backbone.named_parameters()}
    assert penalty(network, network.head, anchor, FitConfig(l2_sp=0.5)).item() == 0
    assert penalty(network, network, anchor, FitConfig(l2_sp=0.5)).item() > 0


def test_decoupled_decay_shrinks_weights_and_leaves_biases(network: Network) -> None:
    module = network.head
    optimizer = make_optimizer(module, FitConfig(weight_decay=0.1, lr=0.5))
    before = [p.detach().clone() for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(module.parameters(), before, strict=True):
        factor = 1 - 0.5 * 0.1 if parameter.ndim > 1 else 1
        torch.testing.assert_close(parameter.detach(), factor * old)


def test_a_certain_wrong_answer_costs_what_its_logarithm_says() -> None:
    logits = torch.tensor([[0.0, 20.0]])
    found = loss_of(logits, torch.tensor([0]), None, FitConfig(label_smoothing=0.0))
    assert float(found) == pytest.approx(20.0, abs=1e-4)
    assert float(F.cross_entropy(logits, torch.tensor([1]))) == pytest.approx(
        math.exp(-20), abs=1e-8
    )


@pytest.mark.parametrize(
    ("optimizer", "expected"), [("adamw", 0.05), ("adam", 0.0), ("sgd", 0.0), ("rmsprop", 0.0)]
)
def test_only_decoupled_weight_decay_is_on_by_default(optimizer: str, expected: float) -> None:
    assert FitConfig(optimizer=optimizer).decay == expected  # pyright: ignore
    assert FitConfig(optimizer=optimizer, weight_decay=0.1).decay == 0.1  # pyright: ignore
