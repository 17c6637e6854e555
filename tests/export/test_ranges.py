"""Ranges from histograms, against the same from all values."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from medtl_export import ranges
from medtl_export.qdq import Range
from medtl_export.ranges import METHODS, Probe, Spread, collect, ranges_of
from medtl_runtime.recipe import as_batch

GraphOf = Callable[..., onnx.ModelProto]


def spread_of(*arrays: NDArray) -> Spread:
    spread = Spread.empty()
    for array in arrays:
        spread.add(array.astype(np.float32))
    return spread


def range_of(spread: Spread, method: ranges.Method) -> Range:
    return ranges_of({"t": spread}, method)["t"]


def draw(kind: str, size: int = 6000, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    values = {
        "normal": rng.normal(size=size),
        "relu": rng.normal(size=size).clip(0),
        "heavy": rng.standard_t(2, size=size),
        "negative": -rng.gamma(2, size=size) - 0.1,
        "positive": rng.gamma(2, size=size) + 0.1,
        "tiny": 1e-7 * rng.normal(size=size),
    }[kind]
    return values.astype(np.float32)


KINDS = ("normal", "relu", "heavy", "negative", "positive", "tiny")


@pytest.mark.parametrize("kind", KINDS)
def test_min_max_is_that_of_all_values(kind: str) -> None:
    arrays = [draw(kind, seed=seed) * 3**seed for seed in range(5)]
    together = np.concatenate(arrays)
    found = range_of(spread_of(*arrays), "min-max")
    assert found == Range(low=float(together.min()), high=float(together.max()))


def test_a_value_between_those_of_the_histogram_still_counts_for_the_bounds() -> None:
    values = np.zeros(100_000, np.float32)
    values[12_345] = 9
    values[54_321] = -7
    assert range_of(spread_of(values), "min-max") == Range(low=-7, high=9)


@pytest.mark.parametrize("kind", KINDS)
def test_widening_loses_no_value_and_moves_none_to_another_place(kind: str) -> None:
    arrays = [10.0**power * draw(kind, seed=power + 3) for power in range(-3, 4)]
    spread = spread_of(*arrays)
    together = np.concatenate(arrays)
    assert spread.histogram.sum() == together.size
    assert spread.limit >= np.abs(together).max()
    assert spread.limit <= 2 * np.abs(together).max()
    edges = np.linspace(-spread.limit, spread.limit, spread.histogram.size + 1)
    expected, _ = np.histogram(together, edges)
    # A value on an edge may fall on either side of it, by the last bit.
    assert np.abs(np.cumsum(spread.histogram) - np.cumsum(expected)).max() <= 3


def test_memory_does_not_grow_with_the_images() -> None:
    spread = Spread.empty()
    size = spread.histogram.nbytes
    for seed in range(50):
        spread.add(10.0 ** (seed / 5) * draw("normal", seed=seed))
    assert spread.histogram.nbytes == size
    assert {name for name, v in vars(spread).items() if isinstance(v, np.ndarray)} == {"histogram"}


@pytest.mark.parametrize("size", [1, 8191, 8192, 8193, 16_383, 16_384, 62_720, 262_144, 1_000_003])
def test_of_many_values_at_most_8192_are_counted_and_of_few_all(size: int) -> None:
    counted = spread_of(np.ones(size)).histogram.sum()
    assert counted == size if size <= 8192 else 4000 < counted <= 8192


MAPS = [(1280, 7, 7), (1024, 7, 7), (1152, 7, 7), (64, 56, 56), (32, 112, 112), (96, 33, 33)]


@pytest.mark.parametrize("shape", MAPS)
def test_all_columns_and_rows_of_a_map_are_counted_alike(shape: tuple[int, int, int]) -> None:
    _, rows, columns = shape
    for index, count in (("row", rows), ("column", columns)):
        place = np.arange(count, dtype=np.float32)
        values = np.broadcast_to(place[:, None] if index == "row" else place, shape) + 1
        spread = spread_of(values)
        bins = np.digitize(values[0].T[0] if index == "row" else values[0, 0], spread.centres)
        counted = np.array([spread.histogram[b - 2 : b + 2].sum() for b in bins])
        assert counted.min() > 0.8 * spread.histogram.sum() / count


@pytest.mark.parametrize("kind", KINDS)
def test_the_percentile_leaves_out_one_value_in_20000_at_either_end(kind: str) -> None:
    arrays = [draw(kind, seed=seed, size=8000) for seed in range(10)]
    together = np.concatenate(arrays)
    spread = spread_of(*arrays)
    found = range_of(spread, "percentile")
    step = 2 * spread.limit / spread.histogram.size
    for value, share in ((found.low, 5e-5), (found.high, 1 - 5e-5)):
        exact = float(np.quantile(together, share, method="inverted_cdf"))
        assert abs(value - exact) <= step
    assert spread.low <= found.low <= found.high <= spread.high


def error_of(values: NDArray, found: Range) -> float:
    """Return the mean square that 256 steps over the range lose, value by value."""
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    rounded = (np.rint(values / step) + zero).clip(0, 255) - zero
    return float(np.square(values - rounded * step).mean())


@pytest.mark.parametrize("kind", ["normal", "heavy", "negative", "positive", "tiny"])
def test_mse_is_nearly_the_best_that_shrinking_the_bounds_can_do(kind: str) -> None:
    arrays = [draw(kind, seed=seed) for seed in range(5)]
    together = np.concatenate(arrays).astype(np.float64)
    found = range_of(spread_of(*arrays), "MSE")
    low, high = float(together.min()), float(together.max())
    shrinks = np.linspace(1.0, 0.3, 36)
    errors = [error_of(together, Range(low=s * low, high=s * high)) for s in shrinks]
    assert error_of(together, found) <= 1.1 * min(errors)


def test_mse_clips_outliers_and_keeps_what_has_none() -> None:
    arrays = [draw("normal", size=8000, seed=seed) for seed in range(20)]
    arrays[3][0] = 9
    assert range_of(spread_of(*arrays), "MSE").high < 8
    flat = np.random.default_rng(0).uniform(-1, 1, 8000)
    found = range_of(spread_of(flat), "MSE")
    assert found.high > 0.95
    assert found.low < -0.95


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_always_zero_has_the_range_of_zero(method: ranges.Method) -> None:
    found = range_of(spread_of(np.zeros(100), np.zeros(100)), method)
    assert found == Range(low=0, high=0)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_in_the_first_image_do_not_make_the_histogram_coarse(method: ranges.Method) -> None:
    values = 1e-4 * draw("normal")
    late = range_of(spread_of(np.zeros(6000), values), method)
    early = range_of(spread_of(values, np.zeros(6000)), method)
    assert late == early
    assert late.high > 2e-4


@pytest.mark.parametrize("method", METHODS)
def test_ranges_of_negative_tensors_stay_negative(method: ranges.Method) -> None:
    values = draw("negative")
    found = range_of(spread_of(values), method)
    assert values.min() <= found.low < found.high <= 0


BODY = "a = Conv(image, w) r = Relu(a) out = Neg(r)"


@pytest.fixture(scope="module")
def small(graph_of: GraphOf) -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(3, 1, 3, 3)).astype(np.float32)
    return graph_of(BODY, {"w": weight}, image=(1, 8, 8))


PIXELS = np.random.default_rng(1).integers(0, 65536, (5, 1, 8, 8)).astype(np.uint16)


def test_tensors_from_inside_a_graph_and_its_input_are_collected(small: onnx.ModelProto) -> None:
    ticks = []
    found = collect(small, ["r", "image", "a", "r"], PIXELS, lambda: ticks.append(1))
    assert sorted(found) == ["a", "image", "r"]
    assert len(ticks) == 5
    batch = as_batch(PIXELS)
    assert (found["image"].low, found["image"].high) == (batch.min(), batch.max())
    inside = Probe(small, ["a"])(batch)["a"]
    assert found["a"].low == pytest.approx(inside.min(), abs=1e-6)
    assert found["r"].low == 0
    assert found["r"].high == pytest.approx(inside.max(), abs=1e-6)


def test_a_probe_of_the_input_alone_needs_no_run(small: onnx.ModelProto) -> None:
    batch = as_batch(PIXELS)
    found = Probe(small, ["image"])(batch)
    assert list(found) == ["image"]
    assert found["image"] is batch


def test_a_probe_leaves_the_graph_as_it_is(small: onnx.ModelProto) -> None:
    before = small.SerializeToString(deterministic=True)
    Probe(small, ["a", "out"])
    assert small.SerializeToString(deterministic=True) == before
