"""Rewritten graphs compute the same function."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from medtl_export.graph import operator_counts
from medtl_export.rewrite import with_packed_stem, with_pooling

GraphOf = Callable[..., onnx.ModelProto]


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(model: onnx.ModelProto, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.asarray(session.run(None, {"image": batch})[0])


def same(before: onnx.ModelProto, after: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """Check that two graphs say the same of one image and of several."""
    onnx.checker.check_model(after, full_check=True)
    for count in (1, 3):
        batch = draw(count, *shape, seed=count)
        expected = run(before, batch)
        found = run(after, batch)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def stem(
    graph_of: GraphOf,
    *,
    kernel: tuple[int, int],
    pads: tuple[int, int, int, int],
    image: tuple[int, int, int],
    bias: bool = True,
    body: str = "Conv<strides=[2,2], kernel_shape={k}, pads={p}>(image, {w}) out = Relu(a)",
) -> onnx.ModelProto:
    given = {"w": draw(5, image[0], *kernel), **({"b": draw(5, seed=1)} if bias else {})}
    text = body.format(k=list(kernel), p=list(pads), w=", ".join(given))
    return graph_of(f"a = {text}", given, image=image)


KERNELS = [(k, k) for k in (1, 2, 3, 4, 5, 7)] + [(3, 7), (5, 2)]
PADS = [(0,) * 4, (1,) * 4, (2,) * 4, (3,) * 4, (0, 1, 1, 0), (1, 0, 2, 3)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize("image", [(1, 16, 16), (3, 16, 12), (1, 14, 18)])
def test_a_packed_stem_is_the_same_function(
    graph_of: GraphOf, kernel: Any, pads: Any, image: Any
) -> None:
    model = stem(graph_of, kernel=kernel, pads=pads, image=image)
    packed = with_packed_stem(model)
    assert packed is not model
    same(model, packed, image)


def test_a_packed_stem_sees_blocks_of_four_pixels(graph_of: GraphOf) -> None:
    packed = with_packed_stem(stem(graph_of, kernel=(7, 7), pads=(3,) * 4, image=(1, 16, 16)))
    weights = {one.name: tuple(one.dims) for one in packed.graph.initializer}
    conv = next(node for node in packed.graph.node if node.op_type == "Conv")
    assert weights[conv.input[1]] == (5, 4, 4, 4)
    assert conv.name == "a"  # as before, for plans that name it
    assert operator_counts(packed) == {"Conv": 1, "Relu": 1, "Reshape": 2, "Transpose": 1}
    assert "w" not in weights


def test_a_stem_without_bias_or_padding_is_packed_too(graph_of: GraphOf) -> None:
    model = stem(graph_of, kernel=(3, 3), pads=(0,) * 4, image=(3, 16, 16), bias=False)
    same(model, with_packed_stem(model), (3, 16, 16))
    bare = "Conv<strides=[2,2]>(image, {w}) out = Relu(a)"
    model = stem(graph_of, kernel=(3, 3), pads=(0,) * 4, image=(1, 16, 16), body=bare)
    same(model, with_packed_stem(model), (1, 16, 16))


@pytest.mark.parametrize(
    ("image", "body"),
    [
        ((1, 15, 16), "Conv<strides=[2,2], pads={p}>(image, {w}) out = Relu(a)"),
        ((1, 16, 15), "Conv<strides=[2,2], pads={p}>(image, {w}) out = Relu(a)"),
        ((1, 16, 16), "Conv<strides=[1,1], pads={p}>(image, {w}) out = Relu(a)"),
        ((1, 16, 16), "Conv<pads={p}>(image, {w}) out = Relu(a)"),
        ((1, 16, 16), "Conv<strides=[4,4], pads={p}>(image, {w}) out = Relu(a)"),
        ((1, 16, 16), "Conv<strides=[2,1], pads={p}>(image, {w}) out = Relu(a)"),
        ((1, 16, 16), "Conv<strides=[2,2], dilations=[2,2], pads={p}>(image, {w}) out = Relu(a)"),
        ((1, 16, 16), 'Conv<strides=[2,2], auto_pad="SAME_UPPER">(image, {w}) out = Relu(a)'),
        ((1, 16, 16), "Abs(image) out = Conv<strides=[2,2], pads={p}>(a, {w})"),
    ],
)
def test_a_stem_that_cannot_be_packed_is_returned_as_it_is(
    graph_of: GraphOf, image: Any, body: str
) -> None:
    model = stem(graph_of, kernel=(3, 3), pads=(1,) * 4, image=image, body=body)
    assert with_packed_stem(model) is model


def test_a_stem_in_groups_is_returned_as_it_is(graph_of: GraphOf) -> None:
    body = "out = Conv<strides=[2,2], group=2>(image, w)"
    model = graph_of(body, {"w": draw(4, 1, 3, 3)}, image=(2, 16, 16))
    assert with_packed_stem(model) is model


def test_rewriting_leaves_the_given_graph_as_it_is(graph_of: GraphOf) -> None:
    model = stem(graph_of, kernel=(3, 3), pads=(1,) * 4, image=(1, 16, 16))
    before = model.SerializeToString(deterministic=True)
    with_packed_stem(with_pooling(model))
    assert model.SerializeToString(deterministic=True) == before


AXES = {name: np.array(axes, np.int64) for name, axes in {
    "rows": [2, 3], "turned": [3, 2], "back": [-1, -2], "channels": [1], "row": [2],
}.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("mean", "becomes"),
    [
        ("ReduceMean(image, rows)", "GlobalAveragePool"),
        ("ReduceMean<keepdims=1>(image, turned)", "GlobalAveragePool"),
        ("ReduceMean(image, back)", "GlobalAveragePool"),
        ("ReduceMean<keepdims=0>(image, rows)", "ReduceMean"),
        ("ReduceMean(image, channels)", "ReduceMean"),
        ("ReduceMean(image, row)", "ReduceMean"),
        ("ReduceMean(image)", "ReduceMean"),
        ("ReduceMax(image, rows)", "ReduceMax"),
    ],
)
def test_means_over_rows_and_columns_become_pooling(
    graph_of: GraphOf, mean: str, becomes: str
) -> None:
    rank = 2 if "keepdims=0" in mean else 4
    model = graph_of(f"out = {mean}", AXES, image=(3, 6, 8), outputs={"out": rank})
    pooled = with_pooling(model)
    assert operator_counts(pooled) == {becomes: 1}
    assert pooled.graph.node[0].name == "out"
    batch = draw(1 if mean == "ReduceMean(image)" else 2, 3, 6, 8)
    np.testing.assert_allclose(run(pooled, batch), run(model, batch), atol=1e-6)


def test_a_network_says_the_same_after_both(mobilenet: onnx.ModelProto) -> None:
    made = with_packed_stem(with_pooling(mobilenet))
    counts = operator_counts(made)
    assert counts["GlobalAveragePool"] == 9
    assert counts["Reshape"] == 2
    same(mobilenet, made, (1, 64, 64))
