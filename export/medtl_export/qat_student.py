"""The network that quantisation-aware fine-tuning trains: folded, with rounding at its sites.

trace and fold what the graph folds -> find what becomes integers -> round there -> unfold
"""

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import stochastic_depth

from medtl_models.architectures import ARCHITECTURES
from medtl_models.network import CanonicalInput, Network, fold_input

if TYPE_CHECKING:
    from torchao.quantization.pt2e import FakeQuantize


@dataclass(frozen=True, kw_only=True)
class Sites:
    """How much of a network is quantised; its head never is."""

    convolutions: int
    linears: int
    """ConvNeXt has them in its backbone: MatMul or Gemm in the graph."""
    activations: int
    """Tensors that become integers."""


def quantised_sites(network: Network) -> Sites:
    """Return how much of a network is quantised in fine-tuning; needs no torchao."""
    backbone, _ = _traced(network)
    kinds = [type(module) for _, module in _products(backbone)]
    return Sites(
        convolutions=kinds.count(nn.Conv2d),
        linears=kinds.count(nn.Linear),
        activations=len(_integer_nodes(backbone)),
    )


def _traced(network: Network) -> tuple[fx.GraphModule, dict[str, str]]:
    """Return a copy of the backbone as a graph, folded as the exported one will be.

    Returns
    -------
    The graph, and by the name of a convolution the BatchNorm that is folded into it.
    """
    traced = fx.symbolic_trace(fold_input(network).eval().backbone)
    norms: dict[str, str] = {}
    for node in traced.graph.nodes:
        if node.target is operator.iadd:
            node.target = cast(Any, operator.add)
        module = _module(traced, node)
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010
        if not isinstance(module, nn.BatchNorm2d):
            continue
        before = node.args[0]
        convolution = _module(traced, before)
        if isinstance(convolution, nn.Conv2d) and len(before.users) == 1:
            traced.set_submodule(before.target, fuse_conv_bn_eval(convolution, module))
            norms[before.target] = node.target
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced, norms


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(cast(str, node.target)) if node.op == "call_module" else None


def _products(module: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Conv2d, nn.Linear)
    return [(name, part) for name, part in module.named_modules() if isinstance(part, kinds)]


# The rules of the QDQ writer, in torch's terms.
_CLAMPS = (nn.ReLU, nn.ReLU6, F.relu, torch.relu)
_PASSING = (nn.MaxPool2d, nn.Dropout, nn.Identity, F.max_pool2d, stochastic_depth)
_ADDING = (operator.add, torch.add)
_JOINING = (
    *_ADDING,
    *(operator.mul, torch.mul, torch.cat),
    *(nn.AvgPool2d, nn.AdaptiveAvgPool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
    *(nn.SiLU, nn.Sigmoid, F.silu, torch.sigmoid),
)


def _integer_nodes(traced: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes whose values become integers.

    They are what products read, what convolutions return (behind their ReLU), and what comes of
    such values in operators with integer kernels.
    """

    def kind(node: fx.Node) -> Any:
        return type(_module(traced, node)) if node.op == "call_module" else node.target

    def result(node: fx.Node) -> fx.Node:
        reader = next(iter(node.users)) if len(node.users) == 1 else node
        return reader if kind(reader) in _CLAMPS else node

    made: set[fx.Node] = set()
    read: set[fx.Node] = set()
    for node in traced.graph.nodes:
        inputs = node.all_input_nodes
        if kind(node) in (nn.Conv2d, nn.Linear):
            read.add(inputs[0])
        if kind(node) is nn.Conv2d:
            made.add(result(node))
        elif kind(node) in (*_PASSING, *_JOINING) and made.issuperset(inputs):
            made.add(result(node) if kind(node) in _ADDING else node)
    chosen = made | read
    # What passes keeps the integers that it reads.
    return [
        node
        for node in traced.graph.nodes
        if node in chosen and not (kind(node) in _PASSING and node.all_input_nodes[0] in chosen)
    ]


AVERAGING = 0.01
"""Ranges of activations are averages over batches; the share of the newest one."""


class Student(nn.Module):
    """A folded copy of a network with fake quantisers at weights and activations.

    What the exporter leaves in float, the head included, is in float and in training like the rest.
    """

    def __init__(self, network: Network, *, weight_bits: int, activation_bits: int) -> None:
        super().__init__()
        self.backbone, self.norms = _traced(network)
        self.head = copy.deepcopy(network.head).eval()
        self._quantisers = [
            self._insert(f"activation_quantiser_{index}", node, activation_bits)
            for index, node in enumerate(_integer_nodes(self.backbone))
        ]
        self.backbone.recompile()
        for _, product in _products(self.backbone):
            rounded = _weight_quantiser(weight_bits)
            parametrize.register_parametrization(product, "weight", rounded)
        self.requires_grad_(True)

    def _insert(self, name: str, node: fx.Node, bits: int) -> "FakeQuantize":
        """Round a node's value for everything that reads it."""
        quantiser = _activation_quantiser(bits)
        self.backbone.add_submodule(name, quantiser)
        with self.backbone.graph.inserting_after(node):
            rounded = self.backbone.graph.call_module(name, (node,))
        node.replace_all_uses_with(rounded, lambda reader: reader is not rounded)
        return quantiser

    def forward(self, image_nchw: Tensor) -> Tensor:
        """Return the logits, N x K."""
        return self.head(self.backbone(image_nchw)).logits

    def set_rounding(self, wanted: bool) -> None:
        """Round activations, or let them pass; weights are always rounded."""
        for quantiser in self._quantisers:
            quantiser.enable_fake_quant(wanted)

    def set_observing(self, wanted: bool) -> None:
        """Let the ranges of activations follow what is seen; those of weights always do."""
        for quantiser in self._quantisers:
            quantiser.enable_observer(wanted)

    def set_averaging(self, newest: float = AVERAGING) -> None:
        """Set the share of the newest batch in the ranges of activations."""
        for quantiser in self._quantisers:
            quantiser.activation_post_process.averaging_constant = newest


def _activation_quantiser(bits: int) -> "FakeQuantize":
    from torchao.quantization.pt2e import FakeQuantize, MovingAverageMinMaxObserver

    return FakeQuantize(
        MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=2**bits - 1,
        dtype=torch.uint8,
        qscheme=torch.per_tensor_affine,
        averaging_constant=AVERAGING,
    )


def _weight_quantiser(bits: int) -> "FakeQuantize":
    """Return a quantiser over the largest absolute value of each output channel, as it is now."""
    from torchao.quantization.pt2e import FakeQuantize, MovingAveragePerChannelMinMaxObserver

    steps = 2 ** (bits - 1) - 1
    return FakeQuantize(
        MovingAveragePerChannelMinMaxObserver,
        quant_min=-steps,
        quant_max=steps,
        dtype=torch.int8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        averaging_constant=1.0,
    )


def unfolded(network: Network, student: Student) -> Network:
    """Return a student's weights in a network of the given one's layout.

    What was a BatchNorm behind a convolution is the identity and the convolution's bias.
    """
    result = copy.deepcopy(network).eval()
    own = result.state_dict()
    learned = {
        name.replace("parametrizations.weight.original", "weight"): tensor
        for name, tensor in student.state_dict().items()
    }
    stem = f"backbone.{ARCHITECTURES[network.arch].stem}"
    learned |= _unfolded_stem(network, learned, stem)
    for convolution, norm in student.norms.items():
        bias = learned[f"backbone.{convolution}.bias"]
        eps = cast(nn.BatchNorm2d, result.backbone.get_submodule(norm)).eps
        learned |= {
            f"backbone.{convolution}.bias": torch.zeros_like(bias),
            f"backbone.{norm}.bias": bias,
            f"backbone.{norm}.weight": torch.ones_like(bias),
            f"backbone.{norm}.running_mean": torch.zeros_like(bias),
            f"backbone.{norm}.running_var": torch.full_like(bias, 1 - eps),
        }
    result.load_state_dict(own | {name: t for name, t in learned.items() if name in own})
    return result


def _unfolded_stem(network: Network, learned: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    """Return the first convolution's weight and bias for normalised RGB; undoes `fold_input`."""
    given = cast(CanonicalInput, network.canonical_input)
    folded = learned[f"{stem}.weight"].double().cpu()
    mean, std = given.mean.double().cpu(), given.std.double().cpu()
    # A grey network's stem was the sum over RGB.
    weight = folded * std if network.channels == 3 else folded * std / 3
    bias = learned[f"{stem}.bias"].cpu() + (weight * mean / std).sum((1, 2, 3))
    return {f"{stem}.weight": weight.float(), f"{stem}.bias": bias.float()}
