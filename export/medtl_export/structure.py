"""The parts of a network that a plan may treat alike: stem, depthwise layers, gates, stages."""

from dataclasses import dataclass

import onnx
from onnx import NodeProto

from medtl_export.graph import head_nodes
from medtl_export.qdq import PRODUCTS
from medtl_export.topology import Topology, attribute

STAGES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """Names of nodes by what they are; see `structure_of`."""

    head: frozenset[str]
    """From the feature map to the outputs: always in float, which keeps activation maps exact."""
    parts: dict[str, frozenset[str]]
    """By name, the first first; a part without nodes is left out."""
    stages: tuple[str, ...]
    """The names of those parts that divide the network by depth."""

    def nodes(self, parts: frozenset[str]) -> frozenset[str]:
        """Return the nodes of several parts, and of the head."""
        return self.head.union(*(self.parts[name] for name in parts))


def structure_of(model: onnx.ModelProto) -> Structure:
    """Return the parts of a network.

    - ``stem``: the first convolution.
    - ``depthwise``: convolutions with more than one group.
    - ``gates``: squeeze-excite, from the pooled features to the factors of the channels (Hu et al.,
      CVPR 2018).
    - ``stage 1`` to ``stage 8``: all other nodes by depth, each with as many convolutions and
      products of matrices as the others.
    """
    topology = Topology(model)
    head = frozenset(head_nodes(model))
    body = [node for node in topology.nodes if node.name not in head]
    products = [node for node in body if node.op_type in PRODUCTS]
    parts = {
        "stem": frozenset(node.name for node in products[:1]),
        "depthwise": frozenset(node.name for node in products if attribute(node, "group", 1) != 1),
        "gates": _gates(topology, body),
    }
    stages = _stages(body, products)
    found = {**parts, **stages}
    return Structure(
        head=head,
        parts={name: nodes for name, nodes in found.items() if nodes},
        stages=tuple(name for name, nodes in stages.items() if nodes),
    )


def _gates(topology: Topology, body: list[NodeProto]) -> frozenset[str]:
    """Return the nodes whose inputs are all made from pooled features, and the pooling."""
    pooled: set[str] = set()
    gates: set[str] = set()
    for node in body:
        is_pooling = node.op_type in ("GlobalAveragePool", "ReduceMean")
        inputs = topology.data_inputs(node)
        if is_pooling or (inputs and pooled.issuperset(inputs)):
            gates.add(node.name)
            pooled.update(node.output)
    has_products = any(n.name in gates and n.op_type in PRODUCTS for n in body)
    return frozenset(gates) if has_products else frozenset()


def _stages(body: list[NodeProto], products: list[NodeProto]) -> dict[str, frozenset[str]]:
    stages: dict[str, set[str]] = {f"stage {i + 1}": set() for i in range(STAGES)}
    names = list(stages)
    seen = 0
    for node in body:
        seen += node.op_type in PRODUCTS
        index = min(max(seen - 1, 0) * STAGES // max(len(products), 1), STAGES - 1)
        stages[names[index]].add(node.name)
    return {name: frozenset(nodes) for name, nodes in stages.items()}
