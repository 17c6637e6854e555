"""Bias correction: what rounding shifts on average, put back layer by layer.

Rounded weights and activations change the mean of a layer's output; the difference is known from
the means of its input with and without rounding, and is subtracted from its bias (Nagel et al.,
ICCV 2019, section 4.2). A layer's input depends on the layers before it, so they are corrected one
stage of the network after the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from medtl_export.qdq import PRODUCTS, Plan
from medtl_export.ranges import Probe
from medtl_export.topology import Topology, attribute
from medtl_runtime.recipe import as_batch


def corrected(
    model: onnx.ModelProto,
    plan: Plan,
    stages: Sequence[frozenset[str]],
    pixels: NDArray[np.uint16],
    write: Callable[[Plan], onnx.ModelProto],
) -> Plan:
    """Return the plan with corrected biases.

    Parameters
    ----------
    model
        The float graph.
    stages
        Names of nodes by depth; the biases of a stage are corrected together.
    pixels
        Canonical calibration images, N x C x H x W.
    write
        Returns the quantised graph of a plan.
    """
    topology = Topology(model)
    products = [node for node in topology.nodes if node.op_type in PRODUCTS]
    for stage in stages:
        quantised = write(plan)
        layers = {
            name: weight
            for name, weight in _integer_weights(quantised).items()
            if name in stage and _takes_a_bias(topology, name)
        }
        nodes = [node for node in products if node.name in layers]
        if not nodes:
            continue
        before = _means(model, [node.input[0] for node in nodes], pixels)
        inputs = {node.name: f"{node.input[0]}_dequantized" for node in nodes}
        after = _means(quantised, list(inputs.values()), pixels)
        biases = {
            node.name: _bias(topology, node, plan)
            + _product(node, topology.constant(node.input[1]), before[node.input[0]])
            - _product(node, layers[node.name], after[inputs[node.name]])
            for node in nodes
        }
        plan = replace(plan, biases={**plan.biases, **biases})
    return plan


def _takes_a_bias(topology: Topology, name: str) -> bool:
    node = next(node for node in topology.nodes if node.name == name)
    return node.op_type in ("Conv", "Gemm")


def _bias(topology: Topology, node: NodeProto, plan: Plan) -> NDArray[np.float32]:
    if node.name in plan.biases:
        return plan.biases[node.name]
    if len(node.input) > 2 and node.input[2]:
        return topology.constant(node.input[2])
    return np.zeros(topology.constant(node.input[1]).shape[0], np.float32)


def _integer_weights(quantised: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Return the weights as they are after rounding, by the name of their node."""
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    found = {}
    for node in quantised.graph.node:
        if node.op_type == "DequantizeLinear" and node.name.endswith("_weight_dequantize"):
            integers, scales = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
            shape = [1] * integers.ndim
            shape[int(attribute(node, "axis", 0))] = -1  # pyright: ignore[reportArgumentType]
            name = node.name.removesuffix("_weight_dequantize")
            found[name] = integers.astype(np.float32) * scales.reshape(shape)
    return found


def _means(
    model: onnx.ModelProto, tensors: Sequence[str], pixels: NDArray[np.uint16]
) -> dict[str, NDArray[np.float64]]:
    """Return the mean of each channel of tensors N x C x ..., over images and positions."""
    names = sorted(set(tensors))
    probe, sums = Probe(model, names), dict.fromkeys(names, np.zeros(()))
    for image in pixels:
        for name, values in probe(as_batch([image])).items():
            axes = (0, *range(2, values.ndim))
            sums[name] = sums[name] + values.mean(axis=axes, dtype=np.float64)
    return {name: total / len(pixels) for name, total in sums.items()}


def _product(
    node: NodeProto, weight: NDArray[np.float32], means: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the mean of a layer's output without bias, but for the border: one for each channel.

    Positions under the kernel have nearly the same mean, so a convolution of the means is a sum
    over the kernel.
    """
    if node.op_type == "Gemm":
        return (weight @ means).astype(np.float32)
    summed = weight.astype(np.float64).sum(axis=(2, 3))  # out channels x channels of a group
    groups = int(attribute(node, "group", 1))  # pyright: ignore[reportArgumentType]
    by_group = summed.reshape(groups, -1, summed.shape[1])
    return np.einsum("goc,gc->go", by_group, means.reshape(groups, -1)).ravel().astype(np.float32)
