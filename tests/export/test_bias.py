"""Corrected biases give back what rounding takes from the means of channels."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from medtl_export import ranges
from medtl_export.bias import corrected
from medtl_export.qdq import Format, Plan, lay_out, write
from medtl_export.ranges import Probe
from medtl_export.topology import Topology
from medtl_runtime.recipe import as_batch

GraphOf = Callable[..., onnx.ModelProto]
Stages = Sequence[frozenset[str]]

PIXELS = np.random.default_rng(1).integers(20_000, 65_536, (6, 3, 16, 16)).astype(np.uint16)
PIXELS //= np.array([1, 2, 8], np.uint16)[:, None, None]  # channels have means of their own


def shifted(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Return weights that rounding shifts on the whole, in each channel by so much.

    The largest is 127 steps, so a step is 1; all others are the same part of a step off.
    """
    whole = np.random.default_rng(seed).choice([0, 1, -1], shape).reshape(shape[0], -1)
    weight = whole + np.linspace(-0.45, 0.45, shape[0])[:, None]
    weight[:, 0] = 127
    return (weight / 127).reshape(shape).astype(np.float32)


class Case:
    """A graph, and its quantised form with and without corrected biases."""

    def __init__(self, model: onnx.ModelProto, form: Format, stages: Stages) -> None:
        self.model, self.topology, self.stages = model, Topology(model), stages
        self.plan = Plan(form=form)
        tensors = lay_out(self.topology, self.plan).quantised
        spreads = ranges.collect(model, tensors, PIXELS)
        self.ranges = ranges.ranges_of(spreads, "min-max")

    def write(self, plan: Plan) -> onnx.ModelProto:
        return write(self.topology, self.model, plan, self.ranges)

    def corrected(self) -> Plan:
        return corrected(self.model, self.plan, self.stages, PIXELS, self.write)

    def shift(self, plan: Plan, tensor: str) -> NDArray[np.float64]:
        """Return by how much the mean of each channel of a tensor is off, (C,)."""
        before, after = (
            Probe(model, [tensor])(as_batch(PIXELS))[tensor].astype(np.float64)
            for model in (self.model, self.write(plan))
        )
        axes = (0, *range(2, before.ndim))
        return np.abs(after.mean(axes) - before.mean(axes))


FORMS = pytest.mark.parametrize(
    "form", [Format(), Format(exact_pairs=True), Format(signed=True), Format(outputs=False)]
)


@FORMS
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_mean_of_a_convolution_s_channels_comes_back(
    graph_of: GraphOf, form: Format, with_bias: bool, groups: int
) -> None:
    given = {"w": shifted(6, 3 // groups, 5, 5)}
    if with_bias:
        given["b"] = np.linspace(-1, 1, 6, dtype=np.float32)
    body = f"a = Conv<group={groups}>(image, {', '.join(given)}) out = Identity(a)"
    case = Case(graph_of(body, given, image=(3, 16, 16)), form, [frozenset({"a"})])
    plan = case.corrected()
    assert set(plan.biases) == {"a"}
    before, after = case.shift(case.plan, "a"), case.shift(plan, "a")
    assert after.mean() < 0.2 * before.mean()
    assert (after <= before + 1e-3).all()


def test_the_mean_of_a_linear_layer_s_outputs_comes_back(graph_of: GraphOf) -> None:
    body = "p = GlobalAveragePool(image) f = Flatten(p) out = Gemm<transB=1>(f, w, b)"
    given = {"w": shifted(5, 3) + 0.003, "b": np.ones(5, np.float32)}
    model = graph_of(body, given, image=(3, 16, 16), outputs={"out": 2})
    case = Case(model, Format(), [frozenset({"out"})])
    before, after = case.shift(case.plan, "out"), case.shift(case.corrected(), "out")
    assert after.mean() < 0.2 * before.mean()


DEEP = "a = Conv(image, w) r = Relu(a) c = Conv(r, v) s = Relu(c) d = Conv(s, v) out = Identity(d)"


def deep(graph_of: GraphOf, stages: Stages) -> Case:
    given = {"w": shifted(4, 3, 3, 3), "v": shifted(4, 4, 3, 3, seed=1)}
    return Case(graph_of(DEEP, given, image=(3, 16, 16)), Format(), stages)


def test_a_deep_layer_is_corrected_for_what_comes_before_it(graph_of: GraphOf) -> None:
    case = deep(graph_of, [frozenset(name) for name in "acd"])
    before, after = case.shift(case.plan, "d"), case.shift(case.corrected(), "d")
    assert after.mean() < 0.2 * before.mean()


def test_one_stage_at_a_time_is_better_than_all_at_once(graph_of: GraphOf) -> None:
    one_by_one = deep(graph_of, [frozenset(name) for name in "acd"])
    at_once = deep(graph_of, [frozenset("acd")])
    found = [case.shift(case.corrected(), "d").mean() for case in (one_by_one, at_once)]
    assert found[0] < 0.5 * found[1]


def test_only_layers_of_the_stages_that_are_in_integers_are_corrected(graph_of: GraphOf) -> None:
    case = deep(graph_of, [frozenset({"a", "r"}), frozenset({"c"})])
    case.plan = Plan(form=Format(), in_float=frozenset({"a"}))
    assert set(case.corrected().biases) == {"c"}


def test_a_product_of_matrices_that_takes_no_bias_is_left_alone(graph_of: GraphOf) -> None:
    body = "p = GlobalAveragePool(image) f = Flatten(p) out = MatMul(f, w)"
    model = graph_of(body, {"w": shifted(3, 5)}, image=(3, 16, 16), outputs={"out": 2})
    case = Case(model, Format(), [frozenset({"out"})])
    assert case.corrected().biases == {}


def test_correcting_leaves_the_plan_and_its_biases_as_they_are(graph_of: GraphOf) -> None:
    case = deep(graph_of, [frozenset(name) for name in "acd"])
    case.corrected()
    assert case.plan.biases == {}
