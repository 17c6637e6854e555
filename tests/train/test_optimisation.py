"""Phases, learning rates and optimisers are what their options say."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from medtl_models.network import Network
from medtl_models.stages import parameters_by_stage
from medtl_runtime.errors import UsageError
from medtl_train.config import FitConfig
from medtl_train.fitting.optimisation import (
    Phase,
    freezes_norms,
    learning_rate,
    make_optimizer,
    phases,
    set_rates,
    set_training,
)
from medtl_train.options import config_from

ARCH = "mobilenet_v3_small"
STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "head")
ALL = Phase(name="all", epochs=1, rates=dict.fromkeys(STAGES, 1e-3))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(ARCH, logits=2, channels=1, head="mlp", dropout=0.5)


PLAIN = {"lr_decay": 1.0}
LP_FT = {"mode": "head-then-all"}


@pytest.mark.parametrize(
    ("changes", "pretrained", "expected"),
    [
        ({}, True, [("solved", 1, None), ("all", 29, 3e-4)]),
        ({}, False, [("all", 30, 3e-4)]),
        ({"epochs": 1}, True, [("all", 1, 3e-4)]),
        ({"mode": "head"}, True, [("head", 30, 1e-3)]),
        ({"mode": "head"}, False, [("head", 30, 1e-3)]),
        ({"mode": "all"}, True, [("all", 30, 3e-4)]),
        ({"mode": "features"}, True, [("solved", 1, None)]),
        ({"mode": "features"}, False, [("solved", 1, None)]),
        (LP_FT, False, [("all", 30, 3e-4)]),
        (LP_FT | {"head_epochs": 0}, True, [("all", 30, 3e-4)]),
        (LP_FT | {"epochs": 2}, True, [("head", 1, 1e-3), ("all", 1, 3e-4)]),
        (LP_FT | {"epochs": 1}, True, [("all", 1, 3e-4)]),
        (LP_FT | {"lr": 0.5, "head_lr": 0.25}, True, [("head", 3, 0.25), ("all", 27, 0.5)]),
    ],
)
def test_phases_follow_the_mode(changes: dict, pretrained: bool, expected: list) -> None:
    found = phases(config_from(changes), ARCH, pretrained=pretrained)
    assert [(p.name, p.epochs, None if p.solves else p.peak) for p in found] == expected


def test_gradual_thaws_one_stage_after_the_other_from_the_last() -> None:
    config = config_from({"mode": "gradual", "epochs": 20, "unfreeze_epochs": 2, "head_epochs": 3})
    found = phases(config, ARCH, pretrained=True)
    assert [(p.name, p.epochs) for p in found] == [
        ("head", 3), ("stage4+", 2), ("stage3+", 2), ("stage2+", 2), ("stage1+", 2), ("all", 9),
    ]  # fmt: skip
    moving = [tuple(phase.rates) for phase in found]
    assert moving == [("head",), *(STAGES[k:] for k in (4, 3, 2, 1, 0))]


def test_gradual_needs_epochs_for_all_stages() -> None:
    config = config_from({"mode": "gradual", "epochs": 7})
    with pytest.raises(UsageError, match="--epochs is 7; --mode gradual needs more than the 7"):
        phases(config, ARCH, pretrained=True)


@pytest.mark.parametrize(("freeze", "first"), [("0", 0), ("2", 2), ("stem", 1), ("stage3", 4)])
def test_frozen_stages_are_in_no_phase(freeze: str, first: int) -> None:
    for phase in phases(config_from({"freeze": freeze, **PLAIN}), ARCH, pretrained=True)[1:]:
        assert tuple(phase.rates) == STAGES[first:]


@pytest.mark.parametrize("freeze", ["5", "6", "-1", "stage4", "head", "stage9", ""])
def test_a_stage_that_cannot_be_frozen_is_refused(freeze: str) -> None:
    with pytest.raises(UsageError, match=r"--freeze is .*; expected 0 to 4 of mobilenet_v3_small"):
        phases(config_from({"freeze": freeze}), ARCH, pretrained=True)


def test_each_stage_has_its_share_of_the_next_ones_rate() -> None:
    config = config_from({"mode": "all", "lr": 1.0, "lr_decay": 0.5, "head_ratio": 10.0})
    (phase,) = phases(config, ARCH, pretrained=True)
    expected = dict(zip(STAGES, [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 10.0], strict=True))
    assert phase.rates == expected


def test_the_rates_reach_the_parameters_of_their_stages(network: Network) -> None:
    rates = {stage: 10.0**-k for k, stage in enumerate(STAGES)}
    phase = Phase(name="all", epochs=1, rates=rates)
    optimizer = make_optimizer(network, phase, FitConfig())
    assert set_rates(optimizer, 0, 100, 0.1) == pytest.approx(0.1)  # the first of ten that rise
    lr_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for stage, parameters in parameters_by_stage(network).items():
        expected = [0.1 * rates[stage]] * len(parameters)
        assert [lr_of[id(p)] for p in parameters] == pytest.approx(expected)


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


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop"])
def test_decay_acts_on_weights_and_spares_norms_and_biases(
    network: Network, optimizer: str
) -> None:
    made = make_optimizer(network, ALL, FitConfig(optimizer=optimizer, weight_decay=0.3))
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
        ("adamw", torch.optim.AdamW, {}),
        ("adam", torch.optim.Adam, {}),
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.8}),
    ],
)
def test_the_optimiser_is_the_one_that_was_named(
    network: Network, name: str, kind: type, expected: dict
) -> None:
    made = make_optimizer(network, ALL, FitConfig(optimizer=name, momentum=0.8))
    assert type(made) is kind
    assert {key: made.param_groups[0][key] for key in expected} == expected


def test_sgd_goes_without_momentum(network: Network) -> None:
    made = make_optimizer(network, ALL, FitConfig(optimizer="sgd", momentum=0.0))
    assert made.param_groups[0]["nesterov"] is False


def test_stages_that_stand_still_are_left_to_no_optimiser(network: Network) -> None:
    made = make_optimizer(network, Phase(name="head", epochs=1, rates={"head": 1.0}), FitConfig())
    found = {id(p) for group in made.param_groups for p in group["params"]}
    assert found == {id(p) for p in network.head.parameters()}


def test_what_the_objective_learns_moves_like_the_head_without_decay(network: Network) -> None:
    learned = nn.Parameter(torch.zeros(3, 3))
    phase = Phase(name="all", epochs=1, rates={"stage4": 0.1, "head": 0.7})
    made = make_optimizer(network, phase, FitConfig(weight_decay=0.5), [learned])
    (group,) = (g for g in made.param_groups if any(p is learned for p in g["params"]))
    assert (group["peak"], group["weight_decay"]) == (0.7, 0.0)


def test_decoupled_decay_shrinks_weights_and_leaves_biases(network: Network) -> None:
    phase = Phase(name="head", epochs=1, rates={"head": 0.5})
    optimizer = make_optimizer(network, phase, FitConfig(weight_decay=0.1))
    before = [p.detach().clone() for p in network.head.parameters()]
    for parameter in network.head.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_rates(optimizer, 0, 1, 0.0)
    optimizer.step()
    for parameter, old in zip(network.head.parameters(), before, strict=True):
        factor = 1 - 0.5 * 0.1 if parameter.ndim > 1 else 1
        torch.testing.assert_close(parameter.detach(), factor * old)


@pytest.mark.parametrize("freeze_norms", [False, True])
@torch.no_grad()
def test_norms_of_frozen_stages_and_frozen_norms_keep_their_statistics(
    network: Network, freeze_norms: bool
) -> None:
    before = copy.deepcopy(network.state_dict())
    phase = Phase(name="stage3+", epochs=1, rates=dict.fromkeys(STAGES[3:], 1.0))
    set_training(network, phase, freeze_norms=freeze_norms)
    network(torch.rand(4, 1, 32, 32))
    changed = {n.split(".")[2] for n, t in network.state_dict().items() if not t.equal(before[n])}
    moving = {str(k) for k in range(4, 13)}  # features.4 is the first of stage3
    assert changed == (set() if freeze_norms else moving)


@pytest.mark.parametrize("freeze_norms", [False, True])
def test_gradients_reach_the_moving_stages_only(network: Network, freeze_norms: bool) -> None:
    set_training(network, Phase(name="x", epochs=1, rates={"stage4": 1.0, "head": 1.0}),
                 freeze_norms=freeze_norms)  # fmt: skip
    network(torch.rand(4, 1, 32, 32)).logits.sum().backward()
    by_stage = parameters_by_stage(network)
    for stage, parameters in by_stage.items():
        assert all((p.grad is not None) == (stage in ("stage4", "head")) for p in parameters)


def test_dropout_is_on_where_norms_are_frozen(network: Network) -> None:
    set_training(network, ALL, freeze_norms=True)
    assert network.head.dropout.training
    images = torch.rand(2, 1, 32, 32)
    assert not torch.equal(network(images).logits, network(images).logits)


@pytest.mark.parametrize(
    ("option", "batch", "pretrained", "expected"),
    [
        ("auto", 15, True, True),
        ("auto", 16, True, False),
        ("auto", 4, False, False),
        ("train", 4, True, False),
        ("frozen", 64, True, True),
    ],
)
def test_small_batches_leave_pretrained_statistics_alone(
    option: str, batch: int, pretrained: bool, expected: bool
) -> None:
    config = config_from({"batch_norm": option})
    assert freezes_norms(config, batch, pretrained=pretrained) == expected


@pytest.mark.parametrize(
    ("optimizer", "expected"), [("adamw", 0.05), ("adam", 0.0), ("sgd", 0.0), ("rmsprop", 0.0)]
)
def test_only_decoupled_weight_decay_is_on_by_default(optimizer: str, expected: float) -> None:
    assert FitConfig(optimizer=optimizer).decay == expected  # pyright: ignore
    assert FitConfig(optimizer=optimizer, weight_decay=0.1).decay == 0.1  # pyright: ignore
