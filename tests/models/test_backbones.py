"""Backbones keep torchvision's parameter names; ConvNeXt's norm keeps class maps exact."""

import pytest
import torch
from torch import nn
from torchvision import models

from medtl_models.architectures import ARCHITECTURES
from medtl_models.backbones import PooledLayerNorm, build_backbone


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_backbone_is_torchvisions_model_without_its_classifier(arch: str) -> None:
    own = build_backbone(arch).state_dict()
    theirs = models.get_model(arch, weights=None, num_classes=2).state_dict()
    shared = {name for name in own if name in theirs}
    assert set(own) - shared == ({"norm.weight", "norm.bias"} if arch == "convnext_tiny" else set())
    assert all(own[name].shape == theirs[name].shape for name in shared)
    assert {name.split(".")[0] for name in theirs.keys() - shared} <= {"fc", "classifier"}


@torch.no_grad()
def test_the_mean_of_the_normed_map_is_the_layer_norm_of_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 16, 5, 4, generator=generator) * 3 + 1
    norm = PooledLayerNorm(16)
    norm.weight.copy_(torch.rand(16, generator=generator))
    norm.bias.copy_(torch.rand(16, generator=generator))
    theirs = nn.LayerNorm(16, eps=1e-6)
    theirs.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(features).mean((2, 3)), theirs(features.mean((2, 3))))
