"""Writes QuantizeLinear and DequantizeLinear (QDQ) into a float graph, where a plan says.

ONNX Runtime and OpenVINO fuse an operator between DequantizeLinear and QuantizeLinear into an
integer kernel. Which of them surround what decides about speed, so they are written here, one by
one, instead of by rules of a library.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from medtl_export.topology import Topology, attribute, rebuilt

PRODUCTS = ("Conv", "MatMul", "Gemm")
"""Operators with weights: they are what integers make faster."""

PASSING = ("MaxPool",)
"""Operators whose output has the grid of their input."""

JOINING = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid")
"""Operators with integer kernels in ONNX Runtime, worth it between operators in integers."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """Which integers stand for activations and weights, and where they are written."""

    signed: bool = False
    """Activations in int8, else in uint8."""
    symmetric: bool = False
    """Activations have the zero point 0, for signed ones only. They express negative values then,
    so that a Relu remains an operator: no grid does its work."""
    exact_pairs: bool = False
    """Weights so small that the sum of two products fits into 16 bits, as x86 processors without
    VNNI add them; else such sums saturate there (`overflowing`)."""
    outputs: bool = True
    """Quantise outputs as well: ONNX Runtime's kernels take integers and return integers. Else only
    inputs of products and sums: OpenVINO and TensorRT fuse what follows a product into it."""
    integer_bias: bool = True
    """Biases in int32, with the product of both scales as theirs; else in float."""

    @property
    def kind(self) -> int:
        """Element type of activations, in ONNX's numbers."""
        return TensorProto.INT8 if self.signed else TensorProto.UINT8


@dataclass(frozen=True, kw_only=True)
class Range:
    """Values of a tensor that its integers have to express."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values that integers stand for: scale * (integer - zero_point)."""

    scale: float
    zero_point: int


def grid_of(values: Range, form: Format) -> Grid:
    """Return the grid over a range; 0 is on it, because convolutions pad with 0."""
    low, high = min(values.low, 0.0), max(values.high, 0.0)
    if form.symmetric:
        assert form.signed, "uint8 around 0 has no negative values"
        return Grid(scale=_positive(max(-low, high) / 127), zero_point=0)
    scale = _positive((high - low) / 255)
    zero_point = int(np.clip(round(-low / scale), 0, 255))
    return Grid(scale=scale, zero_point=zero_point - 128 if form.signed else zero_point)


def _positive(scale: float) -> float:
    """Return the scale, or 1 for a tensor that is always 0."""
    return float(np.float32(scale)) if scale > 1e-20 else 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is quantised, and how."""

    form: Format
    in_float: frozenset[str] = frozenset()
    """Names of nodes that stay in float."""
    operators: frozenset[str] = frozenset((*PRODUCTS, *PASSING, *JOINING))
    biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Corrected biases, by the name of the node."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """What a plan means for a graph."""

    integer: frozenset[str]
    """Names of the nodes that compute in integers."""
    clamps: Mapping[str, NodeProto]
    """By the name of an integer node: the Relu or Clip that its output's grid does."""
    quantised: frozenset[str]
    """Tensors that become integers."""


def result_of(node: NodeProto, clamps: Mapping[str, NodeProto]) -> str:
    """Return the tensor that leaves a node, behind its clamp if it has one."""
    return clamps[node.name].output[0] if node.name in clamps else node.output[0]


def lay_out(topology: Topology, plan: Plan) -> Layout:
    """Return which nodes and tensors of a graph become integers.

    An operator that joins or passes tensors is in integers only if all that it reads comes from
    operators in integers: an island costs two conversions.
    """
    wanted = {
        node.name: node
        for node in topology.nodes
        if node.op_type in plan.operators
        and node.name not in plan.in_float
        and (node.op_type not in PRODUCTS or _has_weights(topology, node))
    }
    clamps = _clamps(topology, wanted)
    while True:
        made = {result_of(node, clamps) for node in wanted.values()}
        islands = [
            name
            for name, node in wanted.items()
            if node.op_type not in PRODUCTS and not made.issuperset(node.input)
        ]
        if not islands:
            break
        for name in islands:
            del wanted[name]
            clamps.pop(name, None)
    if plan.form.symmetric or not plan.form.outputs:
        clamps = {}  # they stay, between the products and the next conversion
    reads = {name for node in wanted.values() for name in topology.data_inputs(node)}
    if plan.form.outputs:
        # A product of matrices is as fast with a float output, which spares the next a conversion.
        made = {result_of(n, clamps) for n in wanted.values() if n.op_type in ("MatMul", "Gemm")}
        writes = {result_of(node, clamps) for node in wanted.values()} - (made - reads)
    else:
        writes = set()
    return Layout(integer=frozenset(wanted), clamps=clamps, quantised=frozenset(reads | writes))


def _has_weights(topology: Topology, node: NodeProto) -> bool:
    constants = topology.constants
    if node.input[1] not in constants or node.input[0] in constants:
        return False
    if any(name and name not in constants for name in node.input[2:]):
        return False
    return node.op_type != "Gemm" or _is_linear_layer(topology, node)


def _is_linear_layer(topology: Topology, node: NodeProto) -> bool:
    """Whether a Gemm is x @ W.T + b, with one bias for each output channel."""
    asked = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    defaults = {**asked, "transB": 0}
    if any(attribute(node, name, defaults[name]) != value for name, value in asked.items()):
        return False
    channels = topology.constants[node.input[1]].dims[0]
    biases = [topology.constants[name].dims for name in node.input[2:] if name]
    return all(list(dims) == [channels] for dims in biases)


def _clamps(topology: Topology, wanted: Mapping[str, NodeProto]) -> dict[str, NodeProto]:
    """Return, by the name of a node, the Relu or Clip from 0 that alone reads its output.

    What a graph returns is not rounded, so it needs its clamp.
    """
    found = {}
    for name, node in wanted.items():
        reader = topology.only_consumer(node.output[0]) if node.op_type in ("Conv", "Add") else None
        if reader is not None and _clamps_at_0(topology, reader):
            found[name] = reader
    return {n: clamp for n, clamp in found.items() if clamp.output[0] not in topology.outputs}


def _clamps_at_0(topology: Topology, node: NodeProto) -> bool:
    if node.op_type == "Clip":
        least = node.input[1] if len(node.input) > 1 else ""
        return least in topology.constants and float(topology.constant(least)) == 0
    return node.op_type == "Relu"


def write(
    topology: Topology, model: onnx.ModelProto, plan: Plan, ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """Return the graph in QDQ form.

    Parameters
    ----------
    topology
        Of ``model``.
    ranges
        Of every tensor that becomes integers, by name; see `lay_out`.
    """
    return _Writer(topology, plan, ranges).write(model)


class _Writer:
    def __init__(self, topology: Topology, plan: Plan, ranges: Mapping[str, Range]) -> None:
        self._topology, self._plan = topology, plan
        self._layout = lay_out(topology, plan)
        self._grids = self._unified({t: grid_of(ranges[t], plan.form) for t in self._quantised})
        self._made = {
            result_of(node, self._layout.clamps)
            for node in topology.nodes
            if node.name in self._layout.integer
        }
        self._constants: list[TensorProto] = []

    @property
    def _quantised(self) -> list[str]:
        return sorted(self._layout.quantised)

    def _unified(self, grids: dict[str, Grid]) -> dict[str, Grid]:
        """Give what passes through an operator the grid of its input."""
        for node in self._topology.nodes:
            passes = node.name in self._layout.integer and node.op_type in PASSING
            if passes and node.output[0] in grids:
                grids[node.output[0]] = grids[node.input[0]]
        return grids

    def write(self, model: onnx.ModelProto) -> onnx.ModelProto:
        nodes: list[NodeProto] = []
        clamped = {clamp.name for clamp in self._layout.clamps.values()}
        for item in model.graph.input:
            nodes += self._conversion(item.name)
        for node in self._topology.nodes:
            if node.name in clamped:
                continue
            if node.name in self._layout.integer:
                nodes += self._integer_node(node)
                nodes += self._conversion(result_of(node, self._layout.clamps))
            else:
                nodes.append(self._float_node(node))
                for out in node.output:
                    nodes += self._conversion(out)
        return rebuilt(model, nodes, [*model.graph.initializer, *self._constants])

    def _conversion(self, tensor: str) -> Iterator[NodeProto]:
        """Yield a tensor's QuantizeLinear and DequantizeLinear, if it becomes integers."""
        if tensor not in self._grids:
            return
        grid = self._grids[tensor]
        kind = np.int8 if self._plan.form.signed else np.uint8
        scale = self._constant(f"{tensor}_scale", np.array(grid.scale, np.float32))
        zero = self._constant(f"{tensor}_zero_point", np.array(grid.zero_point, kind))
        middle, out = f"{tensor}_quantized", f"{tensor}_dequantized"
        yield helper.make_node(
            "QuantizeLinear", [tensor, scale, zero], [middle], name=f"{tensor}_quantize"
        )
        yield helper.make_node(
            "DequantizeLinear", [middle, scale, zero], [out], name=f"{tensor}_dequantize"
        )

    def _constant(self, name: str, values: NDArray) -> str:
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def _float_node(self, node: NodeProto) -> NodeProto:
        """Return a node that reads floats; what integers made is read as the others read it."""
        return _rewired(node, {t: f"{t}_dequantized" for t in self._made & self._grids.keys()})

    def _integer_node(self, node: NodeProto) -> Iterator[NodeProto]:
        wires = {t: f"{t}_dequantized" for t in self._grids}
        if node.op_type not in PRODUCTS:
            yield self._renamed(_rewired(node, wires))
            return
        weight, bias = node.input[1], node.input[2] if len(node.input) > 2 else ""
        changed = NodeProto()
        changed.CopyFrom(_rewired(node, wires))
        values = self._topology.constant(weight)
        axis = 0 if node.op_type in ("Conv", "Gemm") else values.ndim - 1
        biases = self._bias(node, bias)
        entry = self._grids[node.input[0]].scale
        integers, scales = quantised_weights(
            values, axis, self._plan.form, None if biases is None else biases / entry
        )
        changed.input[1] = f"{node.name}_weight_dequantized"
        yield self._weight(node.name, "weight", integers, scales, axis)
        if biases is not None:
            del changed.input[2:]
            if self._plan.form.integer_bias:
                steps = np.rint(biases / (entry * scales)).astype(np.int32)
                yield self._weight(node.name, "bias", steps, entry * scales, 0)
                changed.input.append(f"{node.name}_bias_dequantized")
            else:
                changed.input.append(self._constant(f"{node.name}_bias", biases))
        yield self._renamed(changed)

    def _bias(self, node: NodeProto, name: str) -> NDArray[np.float32] | None:
        if node.name in self._plan.biases:
            return self._plan.biases[node.name]
        if name:
            return self._topology.constant(name).astype(np.float32)
        return None

    def _weight(
        self, node: str, part: str, integers: NDArray, scales: NDArray[np.float32], axis: int
    ) -> NodeProto:
        name = f"{node}_{part}"
        zeros = np.zeros(scales.shape, integers.dtype)
        inputs = [
            self._constant(f"{name}_quantized", integers),
            self._constant(f"{name}_scale", scales.astype(np.float32)),
            self._constant(f"{name}_zero_point", zeros),
        ]
        return helper.make_node(
            "DequantizeLinear",
            inputs,
            [f"{name}_dequantized"],
            name=f"{name}_dequantize",
            axis=axis,
        )

    def _renamed(self, node: NodeProto) -> NodeProto:
        """Return a node whose output is that of its clamp."""
        if node.name in self._layout.clamps:
            node.output[0] = self._layout.clamps[node.name].output[0]
        return node


def _rewired(node: NodeProto, wires: Mapping[str, str]) -> NodeProto:
    changed = NodeProto()
    changed.CopyFrom(node)
    for index, name in enumerate(changed.input):
        changed.input[index] = wires.get(name, name)
    return changed


_MOST_OF_INT32 = 2.0**30
_STEPS = 127
# 128 * 255 fits into an int16; one step is left for rounding.
_PAIR_STEPS = 127


def quantised_weights(
    weight: NDArray[np.float32],
    axis: int,
    form: Format,
    bias_steps: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 weights and a scale for each output channel.

    Parameters
    ----------
    axis
        Of the output channels.
    bias_steps
        Biases / scale of the input, by channel. A channel whose weights are so small that its bias
        would not fit into 32 bits gets a larger scale.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    scales = np.abs(rows).max(axis=1) / _STEPS
    if form.exact_pairs:
        scales = np.maximum(scales, _largest_pairs(rows) / _PAIR_STEPS)
    if bias_steps is not None:
        scales = np.maximum(scales, np.abs(bias_steps) / _MOST_OF_INT32)
    scales = np.where(scales < 1e-20, 1.0, scales).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    integers = np.rint(weight / scales.reshape(shape))
    return np.clip(integers, -_STEPS, _STEPS).astype(np.int8), scales


def _largest_pairs(rows: NDArray) -> NDArray:
    """Return the largest absolute sum of two values of each row, whichever two a kernel adds."""
    if rows.shape[1] < 2:
        return np.abs(rows).max(axis=1)
    ordered = np.sort(rows, axis=1)
    return np.maximum(ordered[:, -2:].clip(0).sum(axis=1), -ordered[:, :2].clip(max=0).sum(axis=1))


def overflowing(model: onnx.ModelProto) -> list[str]:
    """Return the names of int8 weights with which a sum of two products can exceed 16 bits.

    An empty list is a proof: whatever two weights of an output channel a kernel pairs, and whatever
    the image, 255 * (w1 + w2) fits into an int16.
    """
    axes = {
        node.input[0]: attribute(node, "axis", 1)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    found = []
    for tensor in model.graph.initializer:
        if tensor.name in axes and tensor.data_type == TensorProto.INT8:
            values = numpy_helper.to_array(tensor).astype(np.int64)
            axis = cast(int, axes[tensor.name])
            rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
            if _largest_pairs(rows).max() * 255 > np.iinfo(np.int16).max:
                found.append(tensor.name)
    return found
