"""Every number of the integer graph, against simple arithmetic and against ONNX Runtime."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from medtl_export import graph, ranges
from medtl_export.qdq import (
    PRODUCTS,
    Format,
    Grid,
    Layout,
    Plan,
    Range,
    grid_of,
    lay_out,
    overflowing,
    quantised_weights,
    write,
)
from medtl_export.topology import Topology, attribute
from medtl_runtime.engines import Session
from medtl_runtime.recipe import as_batch

GraphOf = Callable[..., onnx.ModelProto]

FORMS = {
    "cpu": Format(),
    "cpu-avx2": Format(exact_pairs=True),
    "arm": Format(signed=True),
    "symmetric": Format(signed=True, symmetric=True),
    "openvino": Format(outputs=False),
    "tensorrt": Format(signed=True, symmetric=True, outputs=False, integer_bias=False),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images(count: int = 4, channels: int = 1, size: int = 16) -> NDArray[np.uint16]:
    shape = (count, channels, size, size)
    return np.random.default_rng(7).integers(0, 65536, shape).astype(np.uint16)


def constants(model: onnx.ModelProto) -> dict[str, NDArray]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


def laid_out(model: onnx.ModelProto, **plan: Any) -> Layout:
    return lay_out(Topology(model), Plan(**{"form": Format(), **plan}))


def written(model: onnx.ModelProto, pixels: NDArray[np.uint16], **fields: Any) -> onnx.ModelProto:
    """Return the checked QDQ graph, with ranges from the images."""
    plan, topology = Plan(**{"form": Format(), **fields}), Topology(model)
    spreads = ranges.collect(model, lay_out(topology, plan).quantised, pixels)
    made = write(topology, model, plan, ranges.ranges_of(spreads, "min-max"))
    onnx.checker.check_model(made, full_check=True)
    return made


def run(
    model: onnx.ModelProto, batch: NDArray[np.float32], *tensors: str, plainly: bool = False
) -> list[NDArray[np.float32]]:
    """Return outputs, or other tensors; ``plainly`` computes node by node, without fusions."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {item.name for item in opened.graph.output}
    opened.graph.output.extend(onnx.ValueInfoProto(name=t) for t in tensors if t not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if plainly:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(opened.SerializeToString(), options)
    found = session.run(list(tensors) or None, {"image": batch})
    return [np.asarray(one) for one in found]


def optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Return how often each operator occurs in what ONNX Runtime computes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    made = onnx.load(folder / "optimised.onnx")
    return Counter(node.op_type for node in made.graph.node)


# --- grids ---------------------------------------------------------------------------------------

RANGES = [
    (-1, 3),
    (0, 6),
    (2, 5),
    (-4, -1),
    (0, 0),
    (-1e-9, 3e-9),
    (-7e8, 1),
    (-0.3, 0.3),
    (0, 1e-3),
]


@every_form
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_a_grid_has_zero_on_it_and_covers_the_range(form: Format, low: float, high: float) -> None:
    grid = grid_of(Range(low=low, high=high), form)
    least, most = (-128, 127) if form.signed else (0, 255)
    assert isinstance(grid.zero_point, int)
    assert least <= grid.zero_point <= most  # so that 0.0 is scale * (zero_point - zero_point)
    assert grid.scale == np.float32(grid.scale) > 0
    slack = 0.51 * grid.scale  # the zero point is rounded
    assert grid.scale * (least - grid.zero_point) <= min(low, 0) + slack
    assert grid.scale * (most - grid.zero_point) >= max(high, 0) - slack
    if low != high:
        width = max(high, 0) - min(low, 0)
        assert grid.scale <= 1.01 * (2 * max(-low, high) if form.symmetric else width) / 254


def test_a_symmetric_grid_has_the_zero_point_zero() -> None:
    form = Format(signed=True, symmetric=True)
    assert grid_of(Range(low=-1, high=127), form) == Grid(scale=1.0, zero_point=0)
    assert grid_of(Range(low=-254, high=3), form) == Grid(scale=2.0, zero_point=0)


def test_a_relu_s_range_uses_all_integers_of_either_kind() -> None:
    assert grid_of(Range(low=0, high=255), Format()) == Grid(scale=1.0, zero_point=0)
    assert grid_of(Range(low=0, high=255), Format(signed=True)) == Grid(scale=1.0, zero_point=-128)


def test_symmetric_grids_are_signed_because_uint8_has_no_negative_values() -> None:
    with pytest.raises(AssertionError):
        grid_of(Range(low=-1, high=1), Format(symmetric=True))


# --- weights -------------------------------------------------------------------------------------


def restored(integers: NDArray, scales: NDArray, axis: int) -> NDArray[np.float64]:
    shape = [1] * integers.ndim
    shape[axis] = -1
    return integers.astype(np.float64) * scales.reshape(shape)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((8, 3, 3, 3), 0), ((16, 1, 3, 3), 0), ((5, 9), 1)])
def test_weights_are_rounded_to_the_nearest_step_of_their_channel(
    shape: tuple[int, ...], axis: int, pairs: bool
) -> None:
    weight = draw(*shape) * 10 ** draw(shape[axis], seed=1).reshape(
        [-1 if i == axis else 1 for i in range(len(shape))]
    )
    integers, scales = quantised_weights(weight, axis, Format(exact_pairs=pairs))
    assert integers.dtype == np.int8
    assert integers.min() >= -127
    assert scales.shape == (shape[axis],)
    error = np.abs(restored(integers, scales, axis) - weight)
    assert (np.moveaxis(error, axis, -1) <= 0.5001 * scales).all()
    if not pairs:
        others = tuple(i for i in range(len(shape)) if i != axis)
        np.testing.assert_array_equal(np.abs(integers.astype(int)).max(others), 127)


def test_a_channel_without_weights_stays_zero() -> None:
    weight = draw(3, 2, 3, 3)
    weight[1] = 0
    integers, scales = quantised_weights(weight, 0, Format())
    assert not integers[1].any()
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_a_large_bias_on_tiny_weights_fits_into_32_bits(graph_of: GraphOf) -> None:
    weight = draw(3, 1, 3, 3)
    weight[1] *= 1e-12
    weight[2] = 0
    bias = np.array([0.5, 300.0, -7.0], np.float32)
    body = "out0 = Conv<pads=[1,1,1,1]>(image, w, b)  out = Identity(out0)"
    model = graph_of(body, {"w": weight, "b": bias})
    made = written(model, images())
    integers = constants(made)["out0_bias_quantized"]
    steps = constants(made)["out0_bias_scale"].astype(np.float64)
    assert integers.dtype == np.int32
    np.testing.assert_allclose(integers * steps, bias, rtol=1e-6, atol=steps[0])
    before, after = (run(one, as_batch(images()))[0] for one in (model, made))
    assert np.abs(before - after).max() < 3  # hundreds, where 32 bits overflow


def largest_sum(weight: NDArray, axis: int = 0) -> int:
    """Return the largest absolute sum of any two weights of a channel, by trying all pairs."""
    rows = np.moveaxis(weight.astype(int), axis, 0).reshape(weight.shape[axis], -1)
    return max(abs(a + b) for row in rows for a, b in itertools.combinations(row, 2))


WORST = np.array([[63.5, 63.5, 1], [-63.5, -63.5, 0], [127, 0.5, 0.5], [-90, -90, 90]], np.float32)


@pytest.mark.parametrize("weight", [draw(6, 2, 3, 3), 1e-4 * draw(4, 40), WORST, 0.0137 * WORST])
def test_exact_pairs_fit_into_16_bits_whichever_two_are_added(weight: NDArray) -> None:
    exact, _ = quantised_weights(weight, 0, Format(exact_pairs=True))
    plain, _ = quantised_weights(weight, 0, Format())
    assert 255 * largest_sum(exact) <= 32767
    assert 255 * largest_sum(plain) > 32767
    assert largest_sum(exact) >= 126  # and no more is given away than needed


def holding(weight: NDArray[np.int8], axis: int = 0) -> onnx.ModelProto:
    """Return a graph with an int8 constant and its DequantizeLinear."""
    scales = np.ones(weight.shape[axis], np.float32)
    node = onnx.helper.make_node("DequantizeLinear", ["w", "s", "z"], ["out"], name="d", axis=axis)
    held = [("w", weight), ("s", scales), ("z", scales.astype(np.int8))]
    inside = [numpy_helper.from_array(array, name) for name, array in held]
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], inside))


@pytest.mark.parametrize("seed", range(20))
def test_overflowing_says_what_trying_all_pairs_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axis = seed % 2
    weight = rng.integers(-70, 70, (3, 6) if seed < 10 else (6, 3)).astype(np.int8)
    expected = ["w"] if 255 * largest_sum(weight, axis) > 32767 else []
    assert overflowing(holding(weight, axis)) == expected


@pytest.mark.parametrize(
    ("row", "saturates"),
    [
        ([64, 64, 0], False),
        ([65, 0, 64], True),
        ([-64, 1, -64], False),
        ([-64, 1, -65], True),
        ([127, -127, 1], False),
        ([127, -127, 2], True),
        ([127, 127, -127], True),
    ],
)
def test_two_products_saturate_from_129_steps_on(row: list[int], saturates: bool) -> None:
    assert bool(overflowing(holding(np.array([row], np.int8)))) is saturates


# --- layout --------------------------------------------------------------------------------------

TWO = "a = Conv<pads=[1,1,1,1]>(image, w, b)"
W = {"w": draw(4, 1, 3, 3), "b": draw(4, seed=1), "v": draw(4, 4, 1, 1, seed=2)}


def test_a_join_between_integers_is_in_integers_and_one_beside_float_is_not(
    graph_of: GraphOf,
) -> None:
    body = f"{TWO} c = Conv(a, v) d = Add(a, c) e = HardSwish(d) f = Mul(d, e) out = Conv(f, v)"
    assert laid_out(graph_of(body, W)).integer == {"a", "c", "d", "out"}


def test_a_chain_of_islands_is_in_float_from_its_first_link(graph_of: GraphOf) -> None:
    body = f"{TWO} c = Elu(a) d = Add(c, c) e = MaxPool<kernel_shape=[2,2]>(d) out = Mul(e, e)"
    assert laid_out(graph_of(body, W)).integer == {"a"}


def test_a_join_with_a_constant_is_an_island(graph_of: GraphOf) -> None:
    model = graph_of(f"{TWO} out = Mul(a, k)", {**W, "k": np.float32([2])})
    assert laid_out(model).integer == {"a"}


def test_what_reads_a_node_that_stays_in_float_stays_there_too(graph_of: GraphOf) -> None:
    body = f"{TWO} c = Conv(a, v) d = Add(a, c) out = Conv(d, v)"
    found = laid_out(graph_of(body, W), in_float=frozenset({"c"}))
    assert found.integer == {"a", "out"}
    assert found.quantised == {"image", "a", "d", "out"}


@pytest.mark.parametrize(
    ("clamp", "absorbed"),
    [
        ("Relu(a)", True),
        ("Clip(a, zero, six)", True),
        ("Clip(a, zero)", True),
        ("Clip(a)", False),
        ("Clip(a, , six)", False),
        ("Clip(a, minus, six)", False),
        ("Clip(a, computed, six)", False),
        ("LeakyRelu(a)", False),
    ],
)
def test_a_relu_or_a_clip_from_zero_is_what_the_grid_does(
    graph_of: GraphOf, clamp: str, absorbed: bool
) -> None:
    bounds = {"zero": np.float32(0), "six": np.float32(6), "minus": np.float32(-1)}
    first = "computed = Abs(zero)" if "computed" in clamp else ""
    model = graph_of(f"{first} {TWO} c = {clamp} out = Conv(c, v)", {**W, **bounds})
    found = laid_out(model)
    assert set(found.clamps) == ({"a"} if absorbed else set())
    assert "c" in found.quantised
    made = written(model, images())
    assert ("c" in nodes(made)) is not absorbed
    before, after = (run(one, as_batch(images()))[0] for one in (model, made))
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()


def test_a_residual_that_is_read_before_its_relu_keeps_the_relu(graph_of: GraphOf) -> None:
    body = f"{TWO} c = Conv(a, v) d = Add(a, c) e = Relu(d) f = Conv(e, v) out = Add(d, f)"
    model = graph_of(body, W)
    found = laid_out(model)
    assert "d" not in found.clamps
    assert {"d", "e"} <= found.quantised
    made = written(model, images())
    assert nodes(made)["e"].op_type == "Relu"
    assert list(nodes(made)["e"].input) == ["d_dequantized"]


def test_no_grid_around_zero_does_the_work_of_a_relu(graph_of: GraphOf) -> None:
    model = graph_of(f"{TWO} c = Relu(a) out = Conv(c, v)", W)
    symmetric = Format(signed=True, symmetric=True)
    assert laid_out(model, form=symmetric).clamps == {}
    made = written(model, images(), form=symmetric)
    assert run(made, as_batch(images()), "c_dequantized")[0].min() == 0


def test_what_the_graph_returns_keeps_its_relu(graph_of: GraphOf) -> None:
    model = graph_of(f"{TWO} c = Relu(a) out = Conv(c, v)", W, outputs={"c": 4, "out": 4})
    made = written(model, images())
    clamped, _ = run(made, as_batch(images()))
    assert clamped.min() == 0
    np.testing.assert_allclose(clamped, run(model, as_batch(images()))[0], atol=0.1)


@every_form
def test_what_the_graph_returns_is_there_when_integers_read_it_as_well(
    graph_of: GraphOf, form: Format
) -> None:
    body = f"{TWO} c = Conv(a, v) out = Add(a, c)"
    model = graph_of(body, W, outputs={"a": 4, "out": 4})
    made = written(model, images(), form=form)
    assert [item.name for item in made.graph.output] == ["a", "out"]
    for before, after in zip(*(run(m, as_batch(images())) for m in (model, made)), strict=True):
        assert np.abs(before - after).max() < 0.05 * np.abs(before).max()


LINEAR = {"w": draw(5, 256, seed=3), "b": draw(5, seed=4), "v": draw(256, 5, seed=5)}


@pytest.mark.parametrize(
    ("product", "is_integer"),
    [
        ("Gemm<transB=1>(flat, w, b)", True),
        ("Gemm<transB=1>(flat, w)", True),
        ("Gemm(flat, v, b)", False),
        ("Gemm<transB=1, alpha=0.5>(flat, w, b)", False),
        ("Gemm<transB=1, beta=2.0>(flat, w, b)", False),
        ("Gemm<transB=1>(flat, w, wide)", False),
        ("Gemm<transB=1>(flat, w, computed)", False),
        ("MatMul(flat, v)", True),
        ("MatMul(flat, turned)", False),
    ],
)
def test_a_product_of_matrices_is_in_integers_where_it_is_a_linear_layer(
    graph_of: GraphOf, product: str, is_integer: bool
) -> None:
    given = {**LINEAR, "wide": draw(1, 5, seed=6)}
    body = "computed = Abs(b) turned = Transpose(w) flat = Flatten(image)"
    model = graph_of(f"{body} out = {product}", given, outputs={"out": 2})
    assert laid_out(model).integer == ({"out"} if is_integer else set())
    made = written(model, images())
    before, after = (run(one, as_batch(images()))[0] for one in (model, made))
    assert np.abs(before - after).max() < 0.02 * np.abs(before).max()


def test_a_product_of_matrices_returns_floats_unless_integers_read_them(graph_of: GraphOf) -> None:
    body = "flat = Flatten(image) a = Gemm<transB=1>(flat, w, b)"
    weights = {**LINEAR, "u": draw(5, 5)}
    alone = graph_of(f"{body} out = Elu(a)", weights, outputs={"out": 2})
    chained = graph_of(f"{body} out = Gemm<transB=1>(a, u)", weights, outputs={"out": 2})
    assert laid_out(alone).quantised == {"flat"}
    assert laid_out(chained).quantised == {"flat", "a"}


def test_a_convolution_whose_weights_are_computed_stays_in_float(graph_of: GraphOf) -> None:
    model = graph_of("c = Abs(w) out = Conv(image, c)", W)
    assert laid_out(model).integer == set()
    np.testing.assert_array_equal(
        *(run(one, as_batch(images()))[0] for one in (model, written(model, images())))
    )


def test_nodes_that_share_a_name_are_refused(graph_of: GraphOf) -> None:
    model = graph_of(f"{TWO} out = Relu(a)", W)
    for node in model.graph.node:
        node.name = ""
    with pytest.raises(AssertionError, match="share a name"):
        Topology(model)


# --- the graph -----------------------------------------------------------------------------------

DEEP = """
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(image, w, b)
    r = Relu(a)
    p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r)
    c = Conv<pads=[1,1,1,1], group=4>(p, g, b)
    s = Add(c, p)
    t = Relu(s)
    d = Conv<group=2>(t, h)
    e = Concat<axis=1>(t, d)
    out = Conv(e, z)
"""
DEEP_WEIGHTS = {
    "w": draw(4, 3, 3, 3),
    "b": draw(4, seed=1),
    "g": draw(4, 1, 3, 3, seed=2),
    "h": draw(6, 2, 1, 1, seed=3),
    "z": draw(2, 10, 1, 1, seed=4),
}
HEAD = frozenset({"out"})


@pytest.fixture(scope="module")
def deep(graph_of: GraphOf) -> onnx.ModelProto:
    return graph_of(DEEP, DEEP_WEIGHTS, image=(3, 16, 16))


class Simulation:
    """What `DEEP` computes in rounded numbers, in 64-bit floats and without ONNX."""

    def __init__(self, model: onnx.ModelProto, form: Format, pixels: NDArray[np.uint16]) -> None:
        plan = Plan(form=form, in_float=HEAD)
        names = sorted(lay_out(Topology(model), plan).quantised)
        values = dict(zip(names, run(model, as_batch(pixels), *names), strict=True))
        self.form = form
        self.grids = {
            name: grid_of(Range(low=float(v.min()), high=float(v.max())), form)
            for name, v in values.items()
        }
        if "p" in self.grids:
            self.grids["p"] = self.grids["r"]

    def rounded(self, values: NDArray, name: str) -> NDArray:
        if name not in self.grids:
            return values
        grid = self.grids[name]
        least, most = (-128, 127) if self.form.signed else (0, 255)
        steps = np.rint(values / grid.scale) + grid.zero_point
        return (steps.clip(least, most) - grid.zero_point) * grid.scale

    def convolved(
        self, x: NDArray, entry: str, weight: str, bias: str | None, **options: int
    ) -> NDArray:
        values = DEEP_WEIGHTS[weight]
        step = self.grids[entry].scale
        given = DEEP_WEIGHTS[bias] if bias else None
        integers, scales = quantised_weights(
            values, 0, self.form, None if given is None else given / step
        )
        rounded = integers * scales.astype(np.float64)[:, None, None, None]
        biases = np.zeros(len(values)) if given is None else given.astype(np.float64)
        if self.form.integer_bias:
            biases = np.rint(biases / (step * scales)) * step * scales
        args = (torch.from_numpy(one).double() for one in (x, rounded, biases))
        return F.conv2d(*args, **options).numpy()

    def run(self, batch: NDArray[np.float32]) -> NDArray:
        x = self.rounded(batch.astype(np.float64), "image")
        a = self.rounded(self.convolved(x, "image", "w", "b", stride=2, padding=1), "a")
        r = self.rounded(a.clip(0), "r")
        p = F.max_pool2d(torch.from_numpy(r), 3, 2, 1).numpy()
        p = self.rounded(p, "p")
        c = self.rounded(self.convolved(p, "p", "g", "b", padding=1, groups=4), "c")
        t = self.rounded(self.rounded(c + p, "s").clip(0), "t")
        d = self.rounded(self.convolved(t, "t", "h", None, groups=2), "d")
        e = self.rounded(np.concatenate([t, d], 1), "e")
        return F.conv2d(
            torch.from_numpy(e), torch.from_numpy(DEEP_WEIGHTS["z"].astype(np.float64))
        ).numpy()


@every_form
@pytest.mark.parametrize("plainly", [True, False], ids=["node by node", "fused"])
def test_the_graph_computes_what_rounding_by_hand_computes(
    deep: onnx.ModelProto, form: Format, plainly: bool
) -> None:
    pixels = images(6, 3)
    made = written(deep, pixels, form=form, in_float=HEAD)
    expected = Simulation(deep, form, pixels).run(as_batch(pixels))
    found = run(made, as_batch(pixels), plainly=plainly)[0]
    rounding = np.abs(run(deep, as_batch(pixels))[0] - expected).mean()
    # A sum that ends on half a step may be rounded to either side, in a few places.
    assert np.abs(found - expected).mean() < 0.1 * rounding
    assert np.median(np.abs(found - expected)) < 1e-5


@every_form
def test_integers_are_close_to_floats(deep: onnx.ModelProto, form: Format) -> None:
    pixels = images(6, 3)
    before = run(deep, as_batch(pixels))[0]
    after = run(written(deep, pixels, form=form, in_float=HEAD), as_batch(pixels))[0]
    assert 0 < np.linalg.norm(before - after) / np.linalg.norm(before) < 0.04


def test_the_given_graph_is_left_as_it_is(deep: onnx.ModelProto) -> None:
    before = deep.SerializeToString(deterministic=True)
    written(deep, images(channels=3))
    assert deep.SerializeToString(deterministic=True) == before


def test_max_pooling_has_one_grid_on_both_sides_though_it_takes_the_least_values_away(
    graph_of: GraphOf, tmp_path: Path
) -> None:
    body = f"{TWO} p = MaxPool<kernel_shape=[3,3]>(a) out = Conv(p, v)"
    model = graph_of(body, W)
    found = ranges.collect(model, ["a", "p"], images())
    assert found["p"].low > 0.8 * found["a"].low  # the ranges are not the same
    made = written(model, images(), in_float=HEAD, operators=frozenset({"Conv", "MaxPool"}))
    known = constants(made)
    for part in ("scale", "zero_point"):
        assert known[f"p_{part}"] == known[f"a_{part}"]
    computed = optimised(made, tmp_path)
    assert computed["MaxPool"] + computed["NhwcMaxPool"] == 1
    assert computed["QuantizeLinear"] == 1


def test_a_concatenation_has_a_grid_that_covers_its_parts(deep: onnx.ModelProto) -> None:
    known = constants(written(deep, images(channels=3), in_float=HEAD))
    assert known["e_scale"] >= max(known["t_scale"], known["d_scale"])


def test_onnxruntime_computes_all_of_it_in_integers(deep: onnx.ModelProto, tmp_path: Path) -> None:
    found = optimised(written(deep, images(channels=3), in_float=HEAD), tmp_path)
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == found["QLinearConcat"] == 1
    assert found["MaxPool"] + found["NhwcMaxPool"] == 1
    assert found["FusedConv"] == found["Relu"] == 0
    assert found["QuantizeLinear"] == 1  # the image
    assert found["Conv"] == 1  # the head


def test_a_product_of_matrices_runs_in_integers(graph_of: GraphOf, tmp_path: Path) -> None:
    body = "flat = Flatten(image) a = Gemm<transB=1>(flat, w, b) out = Elu(a)"
    made = written(graph_of(body, LINEAR, outputs={"out": 2}), images())
    found = optimised(made, tmp_path)
    assert found["QGemm"] == 1
    assert found["Gemm"] == 0


def test_where_the_engine_fuses_what_follows_only_inputs_are_rounded(
    deep: onnx.ModelProto,
) -> None:
    made = written(deep, images(channels=3), form=FORMS["openvino"], in_float=HEAD)
    known, topology = nodes(made), Topology(made)
    assert [known[name].op_type for name in ("r", "t")] == ["Relu", "Relu"]
    assert "a_quantize" not in known
    assert "s_quantize" not in known
    assert "e_quantize" not in known  # nothing in integers reads it
    for name in ("a", "c", "d", "s"):
        for tensor in topology.data_inputs(known[name]):
            assert topology.producer[tensor].op_type == "DequantizeLinear"


def test_biases_are_floats_where_the_engine_wants_them_so(deep: onnx.ModelProto) -> None:
    made = written(deep, images(channels=3), form=FORMS["tensorrt"], in_float=HEAD)
    node = nodes(made)["a"]
    np.testing.assert_array_equal(constants(made)[node.input[2]], DEEP_WEIGHTS["b"])
    kinds = {tensor.data_type for tensor in made.graph.initializer}
    assert TensorProto.INT32 not in kinds
    assert TensorProto.UINT8 not in kinds
    zeros = [v for name, v in constants(made).items() if name.endswith("_zero_point")]
    assert zeros
    assert not any(one.any() for one in zeros)


def test_every_form_has_its_own_integers(deep: onnx.ModelProto) -> None:
    kinds = {
        name: constants(written(deep, images(channels=3), form=form))["image_zero_point"].dtype
        for name, form in FORMS.items()
    }
    assert {name for name, kind in kinds.items() if kind == np.int8} == {
        "arm",
        "symmetric",
        "tensorrt",
    }


def test_weights_have_a_scale_for_each_output_channel_also_in_groups(
    deep: onnx.ModelProto,
) -> None:
    made = written(deep, images(channels=3), in_float=HEAD)
    known = constants(made)
    for node, weight in (("a", "w"), ("c", "g"), ("d", "h")):
        integers, scales = (known[f"{node}_weight_{part}"] for part in ("quantized", "scale"))
        assert attribute(nodes(made)[f"{node}_weight_dequantize"], "axis") == 0
        original = DEEP_WEIGHTS[weight]
        assert scales.shape == original.shape[:1]
        assert (
            np.abs(restored(integers, scales, 0) - original).max((1, 2, 3)) <= 0.51 * scales
        ).all()


def test_floats_read_what_integers_made_as_integers_read_it(graph_of: GraphOf) -> None:
    body = f"{TWO} r = Relu(a) c = Conv(r, v) e = Elu(r) i = Abs(image) out = Sum(c, e, i)"
    made = nodes(written(graph_of(body, W), images()))
    assert made["c"].input[0] == "r_dequantized"
    assert list(made["e"].input) == ["r_dequantized"]
    assert list(made["i"].input) == ["image"]  # which integers did not make
    assert list(made["out"].input) == ["c_dequantized", "e", "i"]


def test_a_constant_that_two_nodes_share_is_rounded_for_each(graph_of: GraphOf) -> None:
    body = f"{TWO} c = Conv(a, v, b) d = Conv(c, v, b) out = Identity(d)"
    model = graph_of(body, W)
    made = written(model, images())
    before, after = (run(one, as_batch(images()))[0] for one in (model, made))
    assert np.linalg.norm(before - after) / np.linalg.norm(before) < 0.03
    assert "v" not in constants(made)


@pytest.mark.parametrize("form", [Format(), FORMS["tensorrt"]])
def test_a_corrected_bias_takes_the_place_of_the_old_one_or_of_none(
    graph_of: GraphOf, form: Format
) -> None:
    model = graph_of(f"{TWO} c = Conv(a, v) out = Identity(c)", W)
    shift = np.array([1, -2, 3, 0.5], np.float32)
    before = run(written(model, images(), form=form), as_batch(images()), "a", "c")
    biases = {"c": shift}
    if form.outputs:
        biases["a"] = W["b"]
    after = run(written(model, images(), form=form, biases=biases), as_batch(images()), "a", "c")
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    np.testing.assert_allclose(
        after[1] - before[1], np.broadcast_to(shift[:, None, None], before[1].shape), atol=0.01
    )


def test_with_nothing_to_quantise_the_graph_stays(graph_of: GraphOf) -> None:
    model = graph_of(f"{TWO} out = Relu(a)", W)
    made = written(model, images(), in_float=frozenset({"a"}))
    assert graph.operator_counts(made) == {"Conv": 1, "Relu": 1}


# --- whole networks ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["resnet18", "squeezenet"])
def pair(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return a network in float and in integers: one with either head."""
    model = request.getfixturevalue(request.param)
    head = frozenset(graph.head_nodes(model))
    return model, written(model, images(6, size=64), in_float=head)


def test_every_convolution_of_the_backbone_has_int8_weights_per_channel(pair) -> None:
    model, quantised = pair
    head, known, sources = (
        set(graph.head_nodes(quantised)),
        constants(quantised),
        Topology(quantised).producer,
    )
    body = [n for n in quantised.graph.node if n.op_type in PRODUCTS and n.name not in head]
    in_float = [n for n in model.graph.node if n.op_type in PRODUCTS and n.name not in head]
    assert len(body) == len(in_float) >= 20
    for node in body:
        integers, scales = (known[name] for name in sources[node.input[1]].input[:2])
        assert integers.dtype == np.int8
        assert scales.shape == integers.shape[:1]
        assert known[sources[node.input[0]].input[2]].dtype == np.uint8
        assert known[sources[node.input[2]].input[0]].dtype == np.int32


def test_the_head_is_the_same_in_integers_and_floats_and_stays_in_float(pair) -> None:
    model, quantised = pair
    head = set(graph.head_nodes(model))
    assert head == set(graph.head_nodes(quantised))
    kinds = {node.op_type for node in quantised.graph.node if node.name in head}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}


def test_the_maps_stay_exact(pair) -> None:
    _, quantised = pair
    session = Session(quantised.SerializeToString(), device="cpu")
    found = session.run(as_batch(images(6, size=64)))
    np.testing.assert_allclose(found["cam"].mean((2, 3)), found["logits"], atol=1e-4)


def test_int8_stays_close_to_float(pair) -> None:
    before, after = (Session(m.SerializeToString(), device="cpu") for m in pair)
    batch = as_batch(images(6, size=64))
    a, b = before.run(batch)["embedding"], after.run(batch)["embedding"]
    assert 0 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.05


def test_onnxruntime_leaves_nothing_of_the_body_in_float(pair, tmp_path: Path) -> None:
    model, quantised = pair
    found = optimised(quantised, tmp_path)
    inside = graph.operator_counts(model)
    head = Counter(n.op_type for n in model.graph.node if n.name in graph.head_nodes(model))
    assert found["QLinearConv"] == inside["Conv"] - head["Conv"]
    assert found["QLinearAdd"] == inside.get("Add", 0) - head["Add"]
    assert found["QLinearConcat"] == inside.get("Concat", 0)
    assert found["FusedConv"] == found["Relu"] == 0
    assert found["QuantizeLinear"] == 1


def test_the_file_shrinks_to_about_a_quarter(resnet18: onnx.ModelProto) -> None:
    made = written(resnet18, images(2, size=64), in_float=frozenset(graph.head_nodes(resnet18)))
    assert 0.24 < made.ByteSize() / resnet18.ByteSize() < 0.27


def test_quantising_twice_gives_the_same_bytes(pair) -> None:
    model, quantised = pair
    head = frozenset(graph.head_nodes(model))
    again = written(model, images(6, size=64), in_float=head)
    assert again.SerializeToString() == quantised.SerializeToString()


def test_exact_pairs_take_the_overflow_out_of_a_network(resnet18: onnx.ModelProto) -> None:
    head = frozenset(graph.head_nodes(resnet18))
    pixels = images(2, size=64)
    assert len(overflowing(written(resnet18, pixels, in_float=head))) == 20
    exact = replace(Format(), exact_pairs=True)
    assert overflowing(written(resnet18, pixels, in_float=head, form=exact)) == []
