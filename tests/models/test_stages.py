"""Every parameter is in one stage, and the stages follow the image's way."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from medtl_models.architectures import ARCHITECTURES
from medtl_models.network import Network
from medtl_models.stages import modules_by_stage, parameters_by_stage, stage_names


def network_of(arch: str) -> Network:
    return Network(arch, logits=2, channels=1, head="mlp", dropout=0.0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_parameter_and_module_is_in_one_stage(arch: str) -> None:
    network = network_of(arch)
    parameters, modules = parameters_by_stage(network), modules_by_stage(network)
    assert tuple(parameters) == tuple(modules) == stage_names(arch)
    assert all(parameters.values())
    found = [id(p) for some in parameters.values() for p in some]
    assert sorted(found) == sorted(id(p) for p in network.parameters())
    found = [id(m) for some in modules.values() for m in some]
    expected = [*network.backbone.modules(), *network.head.modules()]
    assert sorted(found) == sorted(map(id, expected))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@torch.no_grad()
def test_stages_run_in_their_order_and_lose_resolution(arch: str) -> None:
    network = network_of(arch).eval()
    stage_of = {id(m): stage for stage, some in modules_by_stage(network).items() for m in some}
    ran: list[str] = []
    sides: dict[str, int] = {}

    def note(module: nn.Module, _: object, output: torch.Tensor) -> None:
        stage = stage_of[id(module)]
        ran.append(stage)
        if output.ndim == 4 and output.shape[-1] > 1:  # not the gates of squeeze-excite
            sides[stage] = output.shape[-1]

    for module in network.backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    network(torch.rand(1, 1, 128, 128))
    backbone = list(stage_names(arch)[:-1])
    assert list(dict.fromkeys(ran)) == backbone
    assert ran == sorted(ran, key=backbone.index)
    assert all(sides[a] > sides[b] for a, b in pairwise(backbone[1:]))


def test_resnets_stages_are_its_layers() -> None:
    network = network_of("resnet18")
    named = {id(p): name for name, p in network.named_parameters()}
    found = {
        stage: {named[id(p)].split(".")[1] for p in some}
        for stage, some in parameters_by_stage(network).items()
    }
    assert found == {
        "stem": {"conv1", "bn1"}, "stage1": {"layer1"}, "stage2": {"layer2"},
        "stage3": {"layer3"}, "stage4": {"layer4"}, "head": {"hidden", "linear"},
    }  # fmt: skip
