"""A network's stages: the parts that transfer learning freezes, thaws and paces one by one.

What is general comes first in a network and what is of its task comes last (Yosinski et al.,
NeurIPS 2014), so stages are named and counted from the image on: stem, stage1, ..., head.
"""

from collections.abc import Iterable
from typing import TypeVar

from torch import nn

from medtl_models.architectures import ARCHITECTURES
from medtl_models.network import Network

HEAD = "head"

_Item = TypeVar("_Item")


def stage_names(arch: str) -> tuple[str, ...]:
    """Return the names of all stages in the order of the image's way, ``head`` the last."""
    return (*ARCHITECTURES[arch].stage_names, HEAD)


def parameters_by_stage(network: Network) -> dict[str, list[nn.Parameter]]:
    """Return every parameter of the network, by stage; the stages are in their order."""
    backbone = _by_stage(network.arch, network.backbone.named_parameters())
    return {**backbone, HEAD: list(network.head.parameters())}


def modules_by_stage(network: Network) -> dict[str, list[nn.Module]]:
    """Return every module of backbone and head, by stage; one that holds others is in the first."""
    named: Iterable[tuple[str, nn.Module]] = network.backbone.named_modules()
    return {**_by_stage(network.arch, named), HEAD: list(network.head.modules())}


def _by_stage(arch: str, named: Iterable[tuple[str, _Item]]) -> dict[str, list[_Item]]:
    """Sort what a backbone has into its stages.

    torchvision registers modules in the order in which they are used, so a stage is all that comes
    from its first module up to the first of the next one.
    """
    names, starts = ARCHITECTURES[arch].stage_names, ARCHITECTURES[arch].stages
    found: dict[str, list[_Item]] = {name: [] for name in names}
    reached = 0
    for name, item in named:
        if reached < len(starts) and f"{name}.".startswith(f"{starts[reached]}."):
            reached += 1
        found[names[reached]].append(item)
    return found
