"""The loss of all heads, its penalties and remedies are what their formulas say."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtl_models.network import Network
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head, columns_of, width
from medtl_train.config import TrainConfig
from medtl_train.fitting.mixing import Part, unmixed
from medtl_train.fitting.objective import Objective, head_weights, penalty, validation_loss
from medtl_train.options import config_from

NAN = math.nan
ORGAN = Head(name="organ", classes=("a", "b", "c"))
CYST = Head(name="cyst", kind="binary", classes=("absent", "present"))
GRADE = Head(name="grade", kind="ordinal", classes=("0", "1", "2", "3"))
SIZE = Head(name="size", kind="regression", unit="mm", mean=30.0, std=10.0)
HEADS = (ORGAN, CYST, GRADE, SIZE)
TARGETS = np.array(
    [[0, 1, 3, 35.0], [2, 0, 0, 20.0], [1, 1, NAN, NAN], [0, NAN, 2, 55.0], [0, 0, 1, 30.0]]
)


def plain(**options: Any) -> TrainConfig:
    return config_from({"label_smoothing": 0.0, **options})


def random_logits(heads: tuple[Head, ...] = HEADS, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, width(heads), generator=generator, dtype=torch.float64)


def loss(config: TrainConfig, heads: tuple[Head, ...] = HEADS, targets: Any = TARGETS) -> float:
    objective = Objective(heads, config, targets).double()
    logits = random_logits(heads, len(targets))
    return float(objective(logits, unmixed(torch.from_numpy(targets))))


def each_alone(config: TrainConfig) -> list[float]:
    logits = random_logits()
    found = []
    for k, (head, columns) in enumerate(zip(HEADS, columns_of(HEADS), strict=True)):
        targets = TARGETS[:, k : k + 1]
        objective = Objective([head], config, targets).double()
        found.append(float(objective(logits[:, columns], unmixed(torch.from_numpy(targets)))))
    return found


def test_the_loss_of_the_only_head_is_the_cross_entropy_as_torch_has_it() -> None:
    targets = np.array([[0.0], [2], [1], [1]])
    logits = random_logits((ORGAN,), 4)
    objective = Objective((ORGAN,), config_from({"label_smoothing": 0.1}), targets)
    expected = F.cross_entropy(logits, torch.tensor([0, 2, 1, 1]), label_smoothing=0.1)
    found = objective(logits, unmixed(torch.from_numpy(targets)))
    torch.testing.assert_close(found, expected)


def test_heads_count_equally_unless_weights_are_given() -> None:
    alone = each_alone(plain())
    assert loss(plain()) == pytest.approx(np.mean(alone))
    given = loss(plain(head_weights="cyst=3,size=0"))
    assert given == pytest.approx(np.average(alone, weights=[1, 3, 1, 0]))


def test_a_head_of_which_nothing_is_known_costs_nothing() -> None:
    targets = TARGETS.copy()
    targets[:, 2] = NAN
    alone = each_alone(plain())
    found = loss(plain(), targets=targets)
    assert found == pytest.approx((alone[0] + alone[1] + alone[3]) / 4)


def test_learned_weights_are_those_of_kendall() -> None:
    config = plain(head_weights="uncertainty")
    objective = Objective(HEADS, config, TARGETS).double()
    assert objective.log_variances is not None
    variances = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    with torch.no_grad():
        objective.log_variances.copy_(variances.log())
    alone = torch.tensor(each_alone(plain()), dtype=torch.float64)
    halves = torch.tensor([1.0, 1.0, 1.0, 0.5])
    expected = (halves * alone / variances + variances.sqrt().log()).mean()
    found = objective(random_logits(), unmixed(torch.from_numpy(TARGETS)))
    torch.testing.assert_close(found, expected)
    found.backward()
    assert objective.log_variances.grad is not None
    assert (objective.log_variances.grad != 0).all()
    assert not list(Objective(HEADS, plain(), TARGETS).parameters())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("liver=2", "--head-weights names liver; the heads are organ, cyst, grade, size"),
        ("organ=0,cyst=0,grade=0,size=0", "--head-weights is 0 for every head"),
    ],
)
def test_weights_that_fit_no_head_are_refused(given: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        head_weights(HEADS, config_from({"head_weights": given}).tasks)


def test_the_loss_of_a_mixture_is_that_of_its_parts_by_their_shares() -> None:
    targets = torch.tensor([[0.0], [2.0]])
    others = torch.tensor([[1.0], [1.0]])
    shares = torch.tensor([0.25, 1.0])
    parts = (
        Part(targets_nh=targets, shares_n=shares),
        Part(targets_nh=others, shares_n=1 - shares),
    )
    logits = random_logits((ORGAN,), 2)
    soft = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    found = Objective((ORGAN,), plain(), targets.numpy())(logits, parts)
    torch.testing.assert_close(found, F.cross_entropy(logits, soft))


def test_the_parts_of_a_batch_add_up_to_it() -> None:
    objective = Objective(HEADS, plain(head_weights="uncertainty"), TARGETS).double()
    logits, targets = random_logits(), torch.from_numpy(TARGETS)
    whole = objective(logits, unmixed(targets))
    known = targets.isfinite().double()
    found = 0.0
    for rows in (slice(0, 2), slice(2, 5)):
        share = known[rows].sum(0) / known.sum(0)
        fraction = (rows.stop - rows.start) / 5
        part = unmixed(targets[rows])
        found += objective(logits[rows], part, fraction=fraction, known_h=share).item()
    assert found == pytest.approx(whole.item())


def test_class_weights_are_by_inverse_frequency() -> None:
    targets = np.array([[0.0]] * 3 + [[1.0], [2.0]])
    weights = torch.tensor([5 / 9, 5 / 3, 5 / 3], dtype=torch.float64)
    expected = F.cross_entropy(
        random_logits((ORGAN,)), torch.from_numpy(targets[:, 0]).long(), weights
    )
    found = loss(plain(imbalance="class-weights"), (ORGAN,), targets)
    assert found == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_logit_adjustment_adds_the_log_of_the_frequencies(tau: float) -> None:
    targets = np.array([[0.0]] * 3 + [[1.0], [2.0]])
    labels = torch.from_numpy(targets[:, 0]).long()
    adjusted = random_logits((ORGAN,)) + tau * torch.tensor([0.6, 0.2, 0.2]).double().log()
    found = loss(plain(imbalance="logit-adjustment", tau=tau), (ORGAN,), targets)
    assert found == pytest.approx(float(F.cross_entropy(adjusted, labels)), rel=1e-6)


def test_adjusted_logits_fit_the_frequencies_without_a_say_of_their_own() -> None:
    targets = np.array([[1.0, 0.0]] * 1 + [[0.0, 1.0]] * 4 + [[0.0, 2.0]] * 3)
    heads = (CYST, Head(name="g", kind="ordinal", classes=("0", "1", "2")))
    objective = Objective(heads, plain(imbalance="logit-adjustment"), targets).double()
    logits = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    objective(logits, unmixed(torch.from_numpy(targets))).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.sum(0), torch.zeros(3).double(), atol=1e-6, rtol=0)


def test_the_validation_loss_is_plain() -> None:
    logits = random_logits().numpy()
    expected = float(np.mean(each_alone(plain())))
    tasks = config_from({"head_weights": "uncertainty"}).tasks
    assert validation_loss(HEADS, tasks, logits, TARGETS) == pytest.approx(expected)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network("mobilenet_v3_small", logits=2, channels=1, head="mlp", dropout=0.0)


def weights_of(module: nn.Module) -> list[np.ndarray]:
    """Return convolution kernels and matrices in double precision."""
    kinds = (nn.Conv2d, nn.Linear)
    return [m.weight.detach().double().numpy() for m in module.modules() if isinstance(m, kinds)]


def test_no_penalty_costs_nothing(network: Network) -> None:
    assert penalty(network, {}, TrainConfig()).item() == 0


@pytest.mark.parametrize("part", ["network", "head"])
def test_l1_and_l2_are_sums_over_the_weights_in_training(network: Network, part: str) -> None:
    network.backbone.requires_grad_(part == "network")
    weights = weights_of(network if part == "network" else network.head)
    l1 = sum(np.abs(w).sum() for w in weights)
    l2 = sum(np.square(w).sum() for w in weights)
    for changes, expected in (
        ({"l1": 0.01}, 0.01 * l1),
        ({"l2": 0.02}, 0.02 * l2),
        ({"l1": 0.01, "l2": 0.02}, 0.01 * l1 + 0.02 * l2),
    ):
        assert penalty(network, {}, config_from(changes)).item() == pytest.approx(
            expected, rel=1e-4
        )


def test_l2_sp_is_the_squared_way_from_the_pretrained_backbone(network: Network) -> None:
    anchor = {name: p.detach().clone() for name, p in network.backbone.named_parameters()}
    config = config_from({"l2_sp": 0.5})
    assert penalty(network, anchor, config).item() == 0
    moved = 0.0
    with torch.no_grad():
        for k, parameter in enumerate(network.backbone.parameters()):
            parameter.add_(0.01 * (k % 3))
            moved += (0.01 * (k % 3)) ** 2 * parameter.numel()
        for parameter in network.head.parameters():
            parameter.add_(1.0)  # new, and not pulled anywhere
    found = penalty(network, anchor, config)
    assert found.item() == pytest.approx(0.5 * moved, rel=1e-3)
    found.backward()
    for name, parameter in network.backbone.named_parameters():
        expected = 2 * 0.5 * (parameter.detach() - anchor[name])
        torch.testing.assert_close(parameter.grad, expected)
    assert all(p.grad is None for p in network.head.parameters())


def test_l2_sp_waits_while_the_backbone_stands_still(network: Network) -> None:
    anchor = {name: torch.zeros_like(p) for name, p in network.backbone.named_parameters()}
    assert penalty(network, anchor, config_from({"l2_sp": 0.5})).item() > 0
    network.backbone.requires_grad_(False)
    assert penalty(network, anchor, config_from({"l2_sp": 0.5})).item() == 0
