"""The network: canonical image -> normalisation -> backbone -> head -> logits, CAM, embedding."""

import copy
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtl_models.architectures import ARCHITECTURES
from medtl_models.backbones import build_backbone

# The mean and standard deviation per channel that torchvision's ImageNet weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

HeadKind = Literal["linear", "mlp"]
HIDDEN = 1024


class Outputs(NamedTuple):
    """What a network returns for N images; the mean over a class's map is the class's logit."""

    logits: Tensor
    """N x K."""
    cam: Tensor
    """N x K x h x w: class activation maps."""
    embedding: Tensor
    """N x D: the pooled features."""


class CanonicalInput(nn.Module):
    """Canonical image to the backbone's input: zero padding, repeated channels, normalisation.

    The first convolution's padding is done here, *before* the normalisation, so that the border is
    black like the image's background and `fold_input` is exact at the border too.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, padding: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = padding
        self.pad = (columns, columns, rows, rows)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, image_nchw: Tensor) -> Tensor:
        """Return the normalised RGB image with its border, N x 3 x (H + 2p) x (W + 2p)."""
        return (F.pad(image_nchw, self.pad) - self.mean) / self.std


class LinearHead(nn.Module):
    """Global average pooling and a linear layer, in the order that yields the CAM (Zhou 2016)."""

    def __init__(self, width: int, logits: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, logits)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features_nchw: Tensor) -> Outputs:
        """Return logits, CAM and embedding."""
        # Dropping whole channels of the map is dropout on the pooled features.
        weight = self.linear.weight[:, :, None, None]
        cam = F.conv2d(self.dropout(features_nchw), weight, self.linear.bias)
        return Outputs(cam.mean((2, 3)), cam, features_nchw.mean((2, 3)))


class MlpHead(nn.Module):
    """Global average pooling, Dense(1024, ReLU, dropout) and a linear layer, with an exact CAM.

    ReLU is a gate: relu(z) = g z with g in {0, 1}. For the gates that an image sets, the head is
    linear, V = (W2 g) W1, and V applied at every position of the map averages to the logits.
    """

    def __init__(self, width: int, logits: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, HIDDEN)
        self.linear = nn.Linear(HIDDEN, logits)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features_nchw: Tensor) -> Outputs:
        """Return logits, CAM and embedding."""
        embedding = features_nchw.mean((2, 3))
        gate = self.dropout((self.hidden(embedding) > 0).to(embedding.dtype))
        gated_nkh = gate[:, None, :] * self.linear.weight
        effective_nkd = gated_nkh @ self.hidden.weight
        offset_nk = gated_nkh @ self.hidden.bias + self.linear.bias
        flat_ndp = features_nchw.flatten(2)
        cam_nkp = effective_nkd @ flat_ndp + offset_nk[:, :, None]
        cam = cam_nkp.unflatten(2, features_nchw.shape[2:])
        return Outputs(cam.mean((2, 3)), cam, embedding)


class Network(nn.Module):
    """A backbone and a head for canonical images, N x C x H x W in [0, 1]."""

    def __init__(
        self, arch: str, *, logits: int, channels: int, head: HeadKind, dropout: float
    ) -> None:
        super().__init__()
        self.arch, self.channels = arch, channels
        self.backbone = build_backbone(arch)
        stem = self.stem
        self.canonical_input: nn.Module = CanonicalInput(cast(tuple[int, int], stem.padding))
        stem.padding = (0, 0)
        width = ARCHITECTURES[arch].width
        self.head = (LinearHead if head == "linear" else MlpHead)(width, logits, dropout)

    @property
    def stem(self) -> nn.Conv2d:
        """The first convolution."""
        return cast(nn.Conv2d, self.backbone.get_submodule(ARCHITECTURES[self.arch].stem))

    def forward(self, image_nchw: Tensor) -> Outputs:
        """Return logits, CAM and embedding."""
        return self.head(self.backbone(self.canonical_input(image_nchw)))


def fold_input(network: Network) -> Network:
    """Return the same function with normalisation and channel repetition inside the first layer.

    With canonical pixels x, the stem computes W * ((pad(x) - m) / s) + b. That is a convolution
    with W / s (summed over RGB for a grey network) and the bias b - sum(W m / s).
    """
    folded = copy.deepcopy(network)
    stem, given = folded.stem, cast(CanonicalInput, folded.canonical_input)
    mean, std = given.mean.double(), given.std.double()
    scaled = stem.weight.detach().double() / std
    weight = scaled if network.channels == 3 else scaled.sum(1, keepdim=True)
    bias = -(scaled * mean).sum((1, 2, 3))
    if stem.bias is not None:
        bias = bias + stem.bias.detach().double()
    columns, _, rows, _ = given.pad
    new = nn.Conv2d(
        network.channels,
        stem.out_channels,
        cast(tuple[int, int], stem.kernel_size),
        cast(tuple[int, int], stem.stride),
        (rows, columns),
        cast(tuple[int, int], stem.dilation),
    )
    new.weight = nn.Parameter(weight.to(stem.weight.dtype))
    new.bias = nn.Parameter(bias.to(stem.weight.dtype))
    folded.backbone.set_submodule(ARCHITECTURES[network.arch].stem, new)
    folded.canonical_input = nn.Identity()
    return folded.train(network.training)
