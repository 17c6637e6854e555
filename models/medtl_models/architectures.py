"""The backbones by name, and how to take torchvision's models apart. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What medtl has to know of a torchvision model."""

    stem: str
    """Name of the first convolution."""
    stages: tuple[str, ...]
    """The module that each stage after the stem begins with; a stage goes on to the next one.
    Where the network itself names no stages, one begins wherever the resolution is halved."""
    width: int
    """Channels of the feature map."""
    tail: Literal["none", "relu", "layer_norm"] = "none"
    """What torchvision applies between the features and the classifier, outside both."""

    @property
    def stage_names(self) -> tuple[str, ...]:
        """``stem``, ``stage1``, ... in the order in which an image passes through them."""
        return ("stem", *(f"stage{i + 1}" for i in range(len(self.stages))))


_RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")
_DENSENET_STAGES = tuple(f"features.denseblock{i}" for i in range(1, 5))
_REGNET_STAGES = tuple(f"trunk_output.block{i}" for i in range(1, 5))


def _numbered(*starts: int) -> tuple[str, ...]:
    return tuple(f"features.{start}" for start in starts)


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(stem="conv1", stages=_RESNET_STAGES, width=512),
    "resnet34": Architecture(stem="conv1", stages=_RESNET_STAGES, width=512),
    "resnet50": Architecture(stem="conv1", stages=_RESNET_STAGES, width=2048),
    "vgg16": Architecture(stem="features.0", stages=_numbered(5, 10, 17, 24), width=512),
    "densenet121": Architecture(
        stem="features.conv0", stages=_DENSENET_STAGES, width=1024, tail="relu"
    ),
    "mobilenet_v2": Architecture(stem="features.0.0", stages=_numbered(2, 4, 7, 14), width=1280),
    "mobilenet_v3_small": Architecture(
        stem="features.0.0", stages=_numbered(1, 2, 4, 9), width=576
    ),
    "mobilenet_v3_large": Architecture(
        stem="features.0.0", stages=_numbered(2, 4, 7, 13), width=960
    ),
    "efficientnet_b0": Architecture(stem="features.0.0", stages=_numbered(2, 3, 4, 6), width=1280),
    "convnext_tiny": Architecture(
        stem="features.0.0", stages=_numbered(1, 2, 4, 6), width=768, tail="layer_norm"
    ),
    "regnet_y_400mf": Architecture(stem="stem.0", stages=_REGNET_STAGES, width=440),
    "squeezenet1_1": Architecture(stem="features.0", stages=_numbered(3, 6, 9), width=512),
}
