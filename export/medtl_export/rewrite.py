"""Rewrites a float graph into the same function in operators that have fast integer kernels."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from medtl_export.topology import Topology, attribute, rebuilt


def with_pooling(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with GlobalAveragePool for means over rows and columns."""
    topology = Topology(model)
    nodes = [_pooling(topology, node) or node for node in topology.nodes]
    return rebuilt(model, nodes, model.graph.initializer)


def _pooling(topology: Topology, node: NodeProto) -> NodeProto | None:
    if node.op_type != "ReduceMean" or attribute(node, "keepdims", 1) != 1:
        return None
    axes = topology.constant(node.input[1]).tolist() if len(node.input) > 1 else []
    if sorted(axes) not in ([2, 3], [-2, -1]):
        return None
    return helper.make_node("GlobalAveragePool", node.input[:1], node.output, name=node.name)


def with_packed_stem(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the first convolution, of stride 2, on 2 x 2 blocks of pixels.

    Integer convolutions gather their input pixel by pixel, all channels of a pixel at once. A stem
    on grey images gathers single bytes; blocks have four. With kernel k and padding p, zeros
    are put around the kernel so that it starts and ends with whole blocks; the function stays.
    A graph whose stem is of another kind is returned as it is.
    """
    topology = Topology(model)
    stem = next(node for node in topology.nodes if node.op_type == "Conv")
    weight = topology.constant(stem.input[1])
    packed = _packed(topology, stem, weight)
    if packed is None:
        return model
    kernel, pads = packed
    channels, rows, columns = weight.shape[1], *_size(model)
    name = stem.name
    made = [
        helper.make_node(
            "Reshape", [stem.input[0], f"{name}_split"], [f"{name}_six"], name=f"{name}_reshape"
        ),
        helper.make_node(
            "Transpose",
            [f"{name}_six"],
            [f"{name}_blocks"],
            name=f"{name}_transpose",
            perm=[0, 3, 5, 1, 2, 4],
        ),
        helper.make_node(
            "Reshape",
            [f"{name}_blocks", f"{name}_join"],
            [f"{name}_packed"],
            name=f"{name}_reshape_blocks",
        ),
        helper.make_node(
            "Conv",
            [f"{name}_packed", f"{name}_packed_weight", *stem.input[2:]],
            stem.output,
            name=name,
            kernel_shape=kernel.shape[2:],
            pads=pads,
            strides=[1, 1],
        ),
    ]
    split = np.array([0, channels, rows // 2, 2, columns // 2, 2], np.int64)
    join = np.array([0, 4 * channels, rows // 2, columns // 2], np.int64)
    # The transposed order is N, row in block, column in block, channel, block row, block column.
    constants = [
        numpy_helper.from_array(split, f"{name}_split"),
        numpy_helper.from_array(join, f"{name}_join"),
        numpy_helper.from_array(kernel, f"{name}_packed_weight"),
    ]
    nodes = [one for node in topology.nodes for one in (made if node is stem else [node])]
    return rebuilt(model, nodes, [*model.graph.initializer, *constants])


def _size(model: onnx.ModelProto) -> tuple[int, int]:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return dims[2].dim_value, dims[3].dim_value


def _packed(
    topology: Topology, stem: NodeProto, weight: NDArray[np.float32]
) -> tuple[NDArray[np.float32], list[int]] | None:
    """Return the kernel on blocks and its padding; None where the stem has none."""
    strides = attribute(stem, "strides", [1, 1])
    pads = cast(list[int], list(cast(Sequence[int], attribute(stem, "pads", [0, 0, 0, 0]))))
    rows, columns = topology.graph.input[0].type.tensor_type.shape.dim[2:]
    graph_input = topology.graph.input[0].name
    if (
        list(cast(Sequence[int], strides)) != [2, 2]
        or attribute(stem, "auto_pad", b"NOTSET") != b"NOTSET"
        or stem.input[0] != graph_input
        or attribute(stem, "group", 1) != 1
        or list(cast(Sequence[int], attribute(stem, "dilations", [1, 1]))) != [1, 1]
        or rows.dim_value % 2
        or columns.dim_value % 2
    ):
        return None
    before, blocks, after = zip(
        *(
            _blocks(size.dim_value, weight.shape[2 + i], pads[i], pads[2 + i])
            for i, size in enumerate((rows, columns))
        ),
        strict=True,
    )
    padded = np.pad(
        weight,
        [(0, 0), (0, 0)]
        + [
            (2 * b - p, 2 * n - k - (2 * b - p))
            for b, n, p, k in zip(before, blocks, pads, weight.shape[2:], strict=False)
        ],
    )
    out, channels = weight.shape[:2]
    split = padded.reshape(out, channels, blocks[0], 2, blocks[1], 2)
    kernel = split.transpose(0, 3, 5, 1, 2, 4).reshape(out, 4 * channels, *blocks)
    return np.ascontiguousarray(kernel), [*before, *after]


def _blocks(size: int, kernel: int, before: int, after: int) -> tuple[int, int, int]:
    """Return blocks of padding before, blocks in the kernel, and blocks of padding after."""
    first = -(-before // 2)
    shift = 2 * first - before  # zeros put before the kernel
    blocks = -(-(shift + kernel) // 2)
    outputs = (size + before + after - kernel) // 2 + 1
    last = outputs - 1 + blocks - first - size // 2
    return first, blocks, last
