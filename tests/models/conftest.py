"""Networks whose every parameter matters, and where real weights lie."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are faster so, above all where other programs compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def lively() -> Callable[[nn.Module], nn.Module]:
    """Return a function that moves every norm and bias away from its plain start."""

    def enliven(network: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(7)
        norms = (nn.BatchNorm2d, nn.LayerNorm)
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, norms):
                    module.weight.uniform_(0.6, 1.4, generator=generator)
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.uniform_(-0.3, 0.3, generator=generator)
                    module.running_var.uniform_(0.5, 1.5, generator=generator)
                if getattr(module, "bias", None) is not None:
                    module.bias.uniform_(-0.2, 0.2, generator=generator)
        return network.eval()

    return enliven


@pytest.fixture(scope="session")
def real_squeezenet() -> Path:
    """Return a file of real ImageNet weights in torchvision's layout."""
    shared = Path(__file__).parents[2].resolve().parent / "shared"
    path = shared / "data" / "weights" / "squeezenet1_1_imagenet.pth"
    if not path.is_file():
        pytest.skip(f"the real weights {path.name} are not here")
    return path
