"""The parts of networks that were traced, and of small ones written by hand."""

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from medtl_export import graph
from medtl_export.qdq import PRODUCTS
from medtl_export.rewrite import with_packed_stem, with_pooling
from medtl_export.structure import STAGES, structure_of
from medtl_export.topology import attribute

GraphOf = Callable[..., onnx.ModelProto]
NETWORKS = ("resnet18", "mobilenet", "squeezenet")


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return with_pooling(request.getfixturevalue(request.param))


def names(model: onnx.ModelProto, *kinds: str) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type in kinds]


def test_stages_divide_the_body_and_leave_the_head_out(network: onnx.ModelProto) -> None:
    found = structure_of(network)
    stages = [found.parts[name] for name in found.stages]
    together = [name for stage in stages for name in stage]
    assert len(together) == len(set(together))
    assert set(together) | found.head == {node.name for node in network.graph.node}
    assert not set(together) & found.head
    assert found.head == set(graph.head_nodes(network))


def test_stages_are_by_depth_and_each_has_about_as_many_products(network: onnx.ModelProto) -> None:
    found = structure_of(network)
    products = [name for name in names(network, *PRODUCTS) if name not in found.head]
    order = {node.name: index for index, node in enumerate(network.graph.node)}
    ends = [(min(map(order.get, found.parts[s])), max(map(order.get, found.parts[s])))
            for s in found.stages]  # fmt: skip
    assert found.stages == tuple(f"stage {i + 1}" for i in range(STAGES))
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))
    counts = [len(found.parts[stage].intersection(products)) for stage in found.stages]
    assert max(counts) - min(counts) <= 1


def test_the_stem_is_the_first_convolution_packed_or_not(network: onnx.ModelProto) -> None:
    first = names(network, "Conv")[0]
    assert structure_of(network).parts["stem"] == {first}
    assert structure_of(with_packed_stem(network)).parts["stem"] == {first}


def test_depthwise_convolutions_are_found(mobilenet: onnx.ModelProto) -> None:
    grouped = {n.name for n in mobilenet.graph.node if attribute(n, "group", 1) != 1}
    assert len(grouped) == 11
    assert structure_of(mobilenet).parts["depthwise"] == grouped


def test_gates_are_from_the_pooled_features_to_the_factors(mobilenet: onnx.ModelProto) -> None:
    model = with_pooling(mobilenet)
    gates = structure_of(model).parts["gates"]
    kinds = sorted(node.op_type for node in model.graph.node if node.name in gates)
    blocks = 9
    expected = ["GlobalAveragePool", "Conv", "Relu", "Conv", "HardSigmoid"] * blocks
    assert kinds == sorted(expected)
    assert not gates.intersection(names(model, "Mul"))  # where they meet the features


@pytest.mark.parametrize("name", ["resnet18", "squeezenet"])
def test_networks_without_gates_and_groups_have_no_such_parts(
    request: pytest.FixtureRequest, name: str
) -> None:
    parts = structure_of(with_pooling(request.getfixturevalue(name))).parts
    assert not {"gates", "depthwise"} & set(parts)


def draw(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


BODY = """
    a = Conv(image, w)
    r = Relu(a)
    p = GlobalAveragePool(r)
    f = Conv(p, v)
    s = Sigmoid(f)
    t = Mul(f, s)
    e = Conv(t, v)
    g = Sigmoid(e)
    m = Mul(r, g)
"""
HEAD = """
    cam = Conv(m, v)
    logits = ReduceMean<keepdims=0>(cam, axes)
    embedding = ReduceMean<keepdims=0>(m, axes)
"""
WEIGHTS = {"w": draw(4, 1, 3, 3), "v": draw(4, 4, 1, 1), "axes": np.array([2, 3], np.int64)}
OUTPUTS = {"logits": 2, "cam": 4, "embedding": 2}


def test_gates_with_swish_and_sigmoid_are_found(graph_of: GraphOf) -> None:
    found = structure_of(graph_of(BODY + HEAD, WEIGHTS, outputs=OUTPUTS))
    assert found.parts["gates"] == {"p", "f", "s", "t", "e", "g"}
    assert found.head == {"cam", "logits", "embedding"}
    assert found.nodes(frozenset({"stem", "gates"})) == found.head | found.parts["gates"] | {"a"}
    assert found.nodes(frozenset()) == found.head


def test_a_mean_without_products_behind_it_is_no_gate(graph_of: GraphOf) -> None:
    body = "a = Conv(image, w) p = GlobalAveragePool(a) m = Sub(a, p)"
    found = structure_of(graph_of(body + HEAD, WEIGHTS, outputs=OUTPUTS))
    assert "gates" not in found.parts


def test_a_small_network_has_fewer_stages_and_none_is_empty(graph_of: GraphOf) -> None:
    body = "a = Conv(image, w) r = Relu(a) b = Conv(r, v) c = Relu(b) m = Conv(c, v)"
    found = structure_of(graph_of(body + HEAD, WEIGHTS, outputs=OUTPUTS))
    assert [found.parts[name] for name in found.stages] == [{"a", "r"}, {"b", "c"}, {"m"}]
