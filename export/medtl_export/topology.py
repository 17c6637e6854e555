"""Who makes and who reads the tensors of an ONNX graph, and what its constants hold."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property

import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper


class Topology:
    """Looks up the nodes and constants of a graph; the graph must not change meanwhile."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.nodes: tuple[NodeProto, ...] = tuple(model.graph.node)
        assert len({node.name for node in self.nodes}) == len(self.nodes), "nodes share a name"
        self.outputs = {item.name for item in model.graph.output}

    @cached_property
    def producer(self) -> dict[str, NodeProto]:
        """The node that makes a tensor; graph inputs and constants have none."""
        return {out: node for node in self.nodes for out in node.output}

    @cached_property
    def consumers(self) -> dict[str, list[NodeProto]]:
        """The nodes that read a tensor, in the order of the graph."""
        found: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found[name].append(node)
        return found

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """The graph's constants by name."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    def constant(self, name: str) -> NDArray:
        """Return a constant's values."""
        return numpy_helper.to_array(self.constants[name])

    def data_inputs(self, node: NodeProto) -> list[str]:
        """Return the inputs of a node that are not constants."""
        return [name for name in node.input if name and name not in self.constants]

    def only_consumer(self, tensor: str) -> NodeProto | None:
        """Return the node that alone reads a tensor; None if it is an output, or several do."""
        readers = self.consumers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """Return the value of a node's attribute."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def rebuilt(
    model: onnx.ModelProto,
    nodes: Iterable[NodeProto],
    constants: Iterable[onnx.TensorProto],
) -> onnx.ModelProto:
    """Return a model with other nodes and constants; constants that nobody reads are left out."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes = list(nodes)
    del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
    made.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    made.graph.initializer.extend(tensor for tensor in constants if tensor.name in read)
    return made
