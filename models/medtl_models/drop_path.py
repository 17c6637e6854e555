"""Stochastic depth: in training, a residual block is left out now and then, image by image."""

from collections.abc import Iterator

from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual as InvertedResidualV2
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
from torchvision.models.regnet import ResBottleneckBlock
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth

from medtl_models.network import Network


class DroppingNorm(nn.BatchNorm2d):
    """A BatchNorm that ends a residual branch, and drops the branch of some images in training.

    It is a BatchNorm under the same name, so that state dicts stay those of torchvision. In
    evaluation it is nothing else.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.drop = StochasticDepth(0.0, "row")

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised map, N x C x H x W; some images' are 0 throughout."""
        return self.drop(super().forward(input))


def synchronise_norms(network: nn.Module) -> None:
    """Let BatchNorm layers take their statistics over all processes; what they drop stays.

    They become `torch.nn.SyncBatchNorm`, which trains on GPUs only.
    """
    nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        # A `DroppingNorm` leaves its parts to what takes its place, but not what it does.
        if isinstance(module, nn.SyncBatchNorm) and hasattr(module, "drop"):
            module.register_forward_hook(_drop)


def _drop(norm: nn.Module, _given: tuple[Tensor, ...], normalised: Tensor) -> Tensor:
    return norm.get_submodule("drop")(normalised)


def set_drop_path(network: Network, highest: float) -> int:
    """Let residual branches be dropped; return how many there are.

    The chance rises with depth from 0 to ``highest`` (the linear rule of Huang et al., ECCV 2016);
    what is kept is divided by its chance. Without a call, torchvision's own chances are in force:
    EfficientNet's and ConvNeXt's, none elsewhere.

    Parameters
    ----------
    network
        Is changed; its state dict is not.
    highest
        Chance of the last block, 0 to less than 1.
    """
    drops = list(_drops(network.backbone))
    for index, drop in enumerate(drops):
        drop.p = highest * (index + 1) / len(drops)
    return len(drops)


def _drops(backbone: nn.Module) -> Iterator[StochasticDepth]:
    """Yield what drops each residual branch, in order; it is put in where there is none yet."""
    for block in list(backbone.modules()):
        if isinstance(block, StochasticDepth):
            yield block
        elif (name := _last_norm(block)) is not None:
            norm = block.get_submodule(name)
            if not isinstance(norm, DroppingNorm):
                assert isinstance(norm, nn.BatchNorm2d)
                norm = DroppingNorm(norm).train(norm.training)
                block.set_submodule(name, norm)
                yield norm.drop


def _last_norm(block: nn.Module) -> str | None:
    """Return the name, within a residual block of torchvision, of the norm that ends its branch."""
    match block:
        case BasicBlock():
            return "bn2"
        case Bottleneck():
            return "bn3"
        case ResBottleneckBlock():
            return "f.c.1"
        case InvertedResidualV2(use_res_connect=True):
            return f"conv.{len(block.conv) - 1}"
        case InvertedResidualV3(use_res_connect=True):
            return f"block.{len(block.block) - 1}.1"
        case _:
            return None
