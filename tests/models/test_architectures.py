"""The table of architectures says of torchvision's models what is true of them."""

import subprocess
import sys

import pytest
from torch import nn
from torchvision import models

from medtl_models.architectures import ARCHITECTURES

PROMISED = (
    "resnet18 resnet34 resnet50 vgg16 densenet121 mobilenet_v2 mobilenet_v3_small "
    "mobilenet_v3_large efficientnet_b0 convnext_tiny regnet_y_400mf squeezenet1_1"
)


def test_the_twelve_promised_backbones_are_there() -> None:
    assert list(ARCHITECTURES) == PROMISED.split()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_stem_is_the_first_convolution_and_takes_rgb(arch: str) -> None:
    model = models.get_model(arch, weights=None, num_classes=2)
    convolutions = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    ]
    name, stem = convolutions[0]
    assert name == ARCHITECTURES[arch].stem
    assert stem.in_channels == 3
    assert stem.groups == 1
    assert stem.padding_mode == "zeros"


def test_the_names_of_the_backbones_cost_no_import_of_torch() -> None:
    check = "import sys, medtl_models.architectures; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
