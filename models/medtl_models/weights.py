"""Loads pretrained weights: torchvision's, a file of its layout, or another network's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision import models

from medtl_models.architectures import ARCHITECTURES
from medtl_models.network import Network
from medtl_runtime.errors import UsageError

# torchvision renames these when it loads DenseNet files of 2017: `norm.1` is `norm1` today.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\.")

# torchvision's ConvNeXt counts its last norm to the classifier.
_NORM = "classifier.0."


class WeightsUnfit(UsageError):
    """The file holds no weights, or those of another architecture."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was taken from a file of weights, and what was left."""

    source: str
    tensors: int
    skipped: tuple[str, ...]
    """Every tensor of the file that was not used, with its shape and the reason."""
    head: bool = False
    """Whether the head was taken, too, of a network for the same classes."""


def imagenet_file(arch: str) -> Path:
    """Return where torchvision's ImageNet weights lie in torch's hub cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(_imagenet_url(arch)).path).name


def _imagenet_url(arch: str) -> str:
    return models.get_model_weights(arch).DEFAULT.url  # pyright: ignore[reportAttributeAccessIssue]


def fetch_imagenet(arch: str, *, offline: bool) -> Path:
    """Return the file of torchvision's ImageNet weights, downloaded into the hub cache if need be.

    Raises
    ------
    WeightsUnfit
        They are not in the cache and cannot be downloaded; says which file to put where.
    """
    file, url = imagenet_file(arch), _imagenet_url(arch)
    if not file.is_file():
        remedy = f"download {url} elsewhere and put it at {file}, or use --weights none or a file"
        if offline:
            raise WeightsUnfit(f"ImageNet weights are not on this machine (--offline): {remedy}")
        try:
            torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as cause:
            raise WeightsUnfit(f"ImageNet weights cannot be downloaded: {remedy}") from cause
    return file


def load_imagenet(network: Network, *, offline: bool) -> Loaded:
    """Load torchvision's ImageNet weights; see `fetch_imagenet` and `load_file`."""
    file = fetch_imagenet(network.arch, offline=offline)
    return load_file(network, file, source=f"imagenet ({file.name})")


def load_file(network: Network, path: Path, source: str | None = None) -> Loaded:
    """Load a state dict of torchvision's layout (``.pth``); its classifier is skipped.

    Raises
    ------
    WeightsUnfit
        The file cannot be read or does not fit the architecture.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as cause:
        raise WeightsUnfit(f"{path}: no such file of weights") from cause
    except Exception as cause:  # torch raises many kinds on damaged files
        raise WeightsUnfit(f"{path} cannot be read as a state dict") from cause
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise WeightsUnfit(f"{path} is not a state dict of torchvision's layout")
    renamed = {_renamed(name, network.arch): tensor for name, tensor in state.items()}
    return load_backbone(network, renamed, source=source or str(path))


def _renamed(name: str, arch: str) -> str:
    name = _OLD_DENSENET.sub(r"\1\2.", name)
    if ARCHITECTURES[arch].tail == "layer_norm" and name.startswith(_NORM):
        return "norm." + name.removeprefix(_NORM)
    return name


def load_backbone(network: Network, state: Mapping[str, Tensor], *, source: str) -> Loaded:
    """Load a backbone's tensors by name; all of them must be there with the right shapes.

    Raises
    ------
    WeightsUnfit
        Names and shapes are those of another architecture.
    """
    own = network.backbone.state_dict()
    missing = [
        name
        for name, tensor in own.items()
        if (name not in state or state[name].shape != tensor.shape)
        and not name.endswith("num_batches_tracked")
    ]
    if missing:
        raise WeightsUnfit(
            f"{source} does not fit {network.arch}: {len(missing)} of {len(own)} tensors are "
            f"missing or of another shape, the first is {missing[0]}"
        )
    network.backbone.load_state_dict({n: t for n, t in state.items() if n in own}, strict=False)
    skipped = tuple(
        f"{name} {tuple(tensor.shape)}: not part of the backbone"
        for name, tensor in state.items()
        if name not in own
    )
    return Loaded(source=source, tensors=len(state) - len(skipped), skipped=skipped)


def load_network(
    network: Network, state: Mapping[str, Tensor], *, source: str, same_classes: bool
) -> Loaded:
    """Load another medtl network's backbone, and its head where it fits.

    A head that was trained for other classes is dropped even where its shapes fit.

    Raises
    ------
    WeightsUnfit
        The backbone is of another architecture.
    """
    prefix = "backbone."
    backbone = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    loaded = load_backbone(network, backbone, source=source)
    head = {n.removeprefix("head."): t for n, t in state.items() if n.startswith("head.")}
    misfits = _misfits(network.head, head)
    if misfits or not same_classes:
        other = "its head does not fit" if misfits else "trained for other classes"
        skipped = tuple(
            f"head.{name} {tuple(tensor.shape)}: {misfits.get(name, other)}"
            for name, tensor in head.items()
        )
        return Loaded(source=source, tensors=loaded.tensors, skipped=loaded.skipped + skipped)
    network.head.load_state_dict(head)
    count = loaded.tensors + len(head)
    return Loaded(source=source, tensors=count, skipped=loaded.skipped, head=True)


def _misfits(head: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return which tensors keep ``state`` from loading into ``head``, with the reason."""
    own = head.state_dict()
    reasons = {}
    for name in own.keys() | state.keys():
        if name not in state or name not in own:
            reasons[name] = "another kind of head"
        elif own[name].shape != state[name].shape:
            reasons[name] = f"{tuple(own[name].shape)} is expected"
    return reasons
