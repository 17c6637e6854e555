"""Residual branches are dropped in training, image by image, and nothing else changes."""

import copy

import pytest
import torch

from medtl_models.architectures import ARCHITECTURES
from medtl_models.drop_path import set_drop_path, synchronise_norms
from medtl_models.network import Network

RESIDUAL = {
    "resnet18": 8, "resnet34": 16, "resnet50": 16, "mobilenet_v2": 10, "mobilenet_v3_small": 6,
    "mobilenet_v3_large": 10, "efficientnet_b0": 16, "convnext_tiny": 18, "regnet_y_400mf": 16,
}  # fmt: skip


def network_of(arch: str) -> Network:
    torch.manual_seed(0)
    return Network(arch, logits=2, channels=1, head="linear", dropout=0.0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_residual_block_can_be_dropped(arch: str) -> None:
    network = network_of(arch)
    names = list(network.state_dict())
    assert set_drop_path(network, 0.3) == RESIDUAL.get(arch, 0)
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf"])
@torch.no_grad()
def test_evaluation_stays_the_same_and_training_does_not(arch: str) -> None:
    plain = network_of(arch).eval()
    network = copy.deepcopy(plain)
    set_drop_path(network, 0.9)
    images = torch.rand(4, 1, 32, 32)
    assert torch.equal(network(images).logits, plain(images).logits)
    again = network_of(arch)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(images).logits, plain(images).logits)
    torch.manual_seed(1)
    one = network.train()(images).logits
    assert not torch.allclose(one, network(images).logits)


@torch.no_grad()
def test_a_dropped_branch_is_kept_or_left_out_by_image_and_right_on_average() -> None:
    network = network_of("resnet18").train()
    set_drop_path(network, 0.5)
    drop = network.backbone.get_submodule("layer4.1.bn2.drop")
    branch = torch.ones(2000, 1, 1, 1)
    dropped = drop(branch).flatten()
    assert set(dropped.tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.1)


def test_the_chance_rises_with_depth_and_can_be_set_anew() -> None:
    network = network_of("resnet18")
    for highest in (0.4, 0.8, 0.0):
        set_drop_path(network, highest)
        names = [f"layer{i}.{j}.bn2.drop" for i in range(1, 5) for j in range(2)]
        chances = [network.backbone.get_submodule(name).p for name in names]
        assert chances == pytest.approx([highest * k / 8 for k in range(1, 9)])


def test_a_copy_drops_by_itself() -> None:
    network = network_of("resnet18")
    set_drop_path(network, 0.4)
    copied = copy.deepcopy(network)
    set_drop_path(copied, 0.0)
    assert network.backbone.get_submodule("layer4.1.bn2.drop").p == 0.4


def test_norms_over_all_processes_still_drop() -> None:
    """They run on GPUs only; here, what they do to their output is called by itself."""
    network = network_of("resnet18")
    names = list(network.state_dict())
    set_drop_path(network, 0.5)
    synchronise_norms(network)
    synchronise_norms(network)  # as each phase of a training does
    assert list(network.state_dict()) == names
    norms = [one for one in network.modules() if isinstance(one, torch.nn.SyncBatchNorm)]
    dropping = [norm for norm in norms if norm._forward_hooks]
    assert (len(norms), len(dropping)) == (20, 8)
    last = dropping[-1].train()
    (hook,) = last._forward_hooks.values()
    dropped = hook(last, (), torch.ones(2000, 1, 1, 1))
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(hook(last.eval(), (), torch.ones(3, 1, 1, 1)), torch.ones(3, 1, 1, 1))
