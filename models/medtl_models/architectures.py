"""The backbones by name, and how to take torchvision's models apart. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What medtl has to know of a torchvision model."""

    stem: str
    """Name of the first convolution."""
    width: int
    """Channels of the feature map."""
    tail: Literal["none", "relu", "layer_norm"] = "none"
    """What torchvision applies between the features and the classifier, outside both."""


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(stem="conv1", width=512),
    "resnet34": Architecture(stem="conv1", width=512),
    "resnet50": Architecture(stem="conv1", width=2048),
    "vgg16": Architecture(stem="features.0", width=512),
    "densenet121": Architecture(stem="features.conv0", width=1024, tail="relu"),
    "mobilenet_v2": Architecture(stem="features.0.0", width=1280),
    "mobilenet_v3_small": Architecture(stem="features.0.0", width=576),
    "mobilenet_v3_large": Architecture(stem="features.0.0", width=960),
    "efficientnet_b0": Architecture(stem="features.0.0", width=1280),
    "convnext_tiny": Architecture(stem="features.0.0", width=768, tail="layer_norm"),
    "regnet_y_400mf": Architecture(stem="stem.0", width=440),
    "squeezenet1_1": Architecture(stem="features.0", width=512),
}
