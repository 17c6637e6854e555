"""torchvision's CNNs without their classifiers: canonical image in, feature map out.

Every backbone keeps torchvision's parameter names, so that a state dict of torchvision's layout
loads as it is.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision import models

from medtl_models.architectures import ARCHITECTURES


class PooledLayerNorm(nn.Module):
    """LayerNorm of the pooled features, applied to the whole map.

    Mean and variance over the channels are taken from the pooled vector, then every position is
    normalised with them. The average of the output is therefore the LayerNorm of the average, as
    in torchvision's ConvNeXt classifier, and class activation maps stay exact.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, features_nchw: Tensor) -> Tensor:
        """Return the normalised map, N x C x H x W."""
        pooled = features_nchw.mean((2, 3), keepdim=True)
        mean = pooled.mean(1, keepdim=True)
        variance = (pooled - mean).square().mean(1, keepdim=True)
        normalised = (features_nchw - mean) * torch.rsqrt(variance + self.eps)
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]


# torchvision's names for what comes after the feature map.
_CLASSIFIER = ("avgpool", "fc", "classifier")


def build_backbone(arch: str) -> nn.Sequential:
    """Return a backbone with torchvision's random initialisation.

    Its input is a normalised RGB image, N x 3 x H x W, its output N x `Architecture.width` x h x w.
    """
    model = models.get_model(arch, weights=None)
    parts = OrderedDict((n, m) for n, m in model.named_children() if n not in _CLASSIFIER)
    match ARCHITECTURES[arch].tail:
        case "relu":
            parts["relu"] = nn.ReLU(inplace=True)
        case "layer_norm":
            parts["norm"] = PooledLayerNorm(ARCHITECTURES[arch].width)
        case "none":
            pass
    return nn.Sequential(parts)
