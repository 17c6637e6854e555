"""Windows and lookup tables do what PS3.3 C.11.2 says, literally."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_voi_lut

from medtl_runtime.errors import UsageError
from medtl_runtime.voi import HOUNSFIELD_PRESETS, LookupTable, Window, full_range


def linear(x: float, c: float, w: float) -> float:
    """PS3.3 C.11.2.1.2.1, with y from 0 to 1."""
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    if x > c - 0.5 + (w - 1) / 2:
        return 1.0
    return (x - (c - 0.5)) / (w - 1) + 0.5


def linear_exact(x: float, c: float, w: float) -> float:
    """PS3.3 C.11.2.1.3.2, with y from 0 to 1."""
    if x <= c - w / 2:
        return 0.0
    if x > c + w / 2:
        return 1.0
    return (x - c) / w + 0.5


def sigmoid(x: float, c: float, w: float) -> float:
    """PS3.3 C.11.2.1.3.1, with y from 0 to 1."""
    return 1 / (1 + math.exp(-4 * (x - c) / w))


FUNCTIONS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}
WINDOWS = [
    (2048, 4096),
    (2048, 1),
    (0, 100),
    (0, 1),
    (40.5, 1),
    (40, 400),
    (40, 2),
    (-600.5, 1500),
    (90, 2.5),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("centre", "width"), WINDOWS)
def test_a_window_maps_integers_as_the_pseudo_code_of_the_standard_does(
    function: str, centre: float, width: float
) -> None:
    # 80 widths around the centre keep the literal sigmoid within the range of exp.
    around = np.arange(int(centre - 80 * width), int(centre + 80 * width) + 1)
    values = around[:: max(1, len(around) // 5000)]
    expected = [FUNCTIONS[function](float(x), centre, width) for x in values]
    found = Window(centre=centre, width=width, function=function).apply(values.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    if width > 2.5:
        assert len(np.unique(found)) > 2


def test_the_worked_examples_of_the_standard_come_out() -> None:
    """PS3.3 C.11.2.1.2.1 gives these four, for an output of 0 to 255."""
    x = np.array([-51, -50, -1, 0, 1, 49, 50, 2047, 2048, 4095, 4096], np.float32)

    def shown(centre: float, width: float) -> list[float]:
        return (255 * Window(centre=centre, width=width).apply(x)).tolist()

    assert shown(2048, 1) == [0] * 8 + [255] * 3
    assert shown(0, 1) == [0] * 3 + [255] * 8
    middle = [(v + 0.5) / 99 * 255 + 127.5 for v in (-1, 0, 1)]
    assert shown(0, 100) == pytest.approx([0, 0, *middle, 255, 255, 255, 255, 255, 255], abs=1e-3)
    assert shown(2048, 4096)[-3:] == pytest.approx(
        [(2048 - 2047.5) / 4095 * 255 + 127.5, 255, 255], abs=1e-3
    )


def test_a_step_and_a_ramp_differ_by_half_a_value_between_linear_and_linear_exact() -> None:
    values = np.array([40], np.float32)
    assert Window(centre=40, width=400).apply(values)[0] > 0.5
    assert Window(centre=40, width=400, function="LINEAR_EXACT").apply(values)[0] == 0.5


def test_the_header_window_of_a_real_image_agrees_with_pydicom(
    real: Callable[[str], Path],
) -> None:
    dataset = pydicom.dcmread(real("MR_small.dcm"))
    stored = dataset.pixel_array
    # pydicom spreads over the stored range: 16 bits, signed.
    expected = (apply_voi_lut(stored, dataset) + 32768.0) / 65535.0
    window = Window(centre=float(dataset.WindowCenter), width=float(dataset.WindowWidth))
    np.testing.assert_allclose(window.apply(stored.astype(np.float32)), expected, atol=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_window_stays_within_0_and_1_rises_and_leaves_its_input_alone(function: str) -> None:
    values = np.linspace(-1e30, 1e30, 101).astype(np.float32)
    values[40:60] = np.linspace(-300, 300, 20)
    values.sort()
    before = values.copy()
    shown = Window(centre=40, width=80, function=function).apply(values)
    assert shown.min() == 0
    assert shown.max() == 1
    assert (np.diff(shown) >= 0).all()
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize(
    ("function", "width", "allowed"),
    [
        ("LINEAR", 1, True),
        ("LINEAR", 0.99, False),
        ("LINEAR_EXACT", 0.01, True),
        ("LINEAR_EXACT", 0, False),
        ("SIGMOID", 0.01, True),
        ("SIGMOID", -1, False),
    ],
)
def test_each_function_has_its_least_width(function: str, width: float, allowed: bool) -> None:
    if allowed:
        Window(centre=0, width=width, function=function)
    else:
        with pytest.raises(UsageError, match=f"width is {width:g}"):
            Window(centre=0, width=width, function=function)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e300])
def test_a_window_that_is_not_finite_in_float32_is_refused(number: float) -> None:
    with pytest.raises(UsageError, match="finite"):
        Window(centre=number, width=1)
    with pytest.raises(UsageError, match="finite"):
        Window(centre=0, width=number)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_window_makes_nan(function: str) -> None:
    values = np.array([0, 1, np.finfo(np.float32).max, -np.finfo(np.float32).max], np.float32)
    for centre in (0.0, 1e30, -1e30):
        for width in (1e-30, 1.0, 1e30):
            if function == "LINEAR" and width < 1:
                continue
            with np.errstate(over="ignore"):
                shown = Window(centre=centre, width=width, function=function).apply(values)
            assert np.isfinite(shown).all()


def test_an_unknown_window_function_is_named() -> None:
    with pytest.raises(UsageError, match="CUBIC; expected LINEAR, LINEAR_EXACT, SIGMOID"):
        Window(centre=0, width=1, function="CUBIC")  # pyright: ignore[reportArgumentType]


def test_the_words_of_a_window_are_those_of_a_result() -> None:
    assert str(Window(centre=40, width=400)) == "window 40/400 LINEAR"


@pytest.mark.parametrize("name", HOUNSFIELD_PRESETS)
def test_a_preset_separates_the_values_around_its_centre(name: str) -> None:
    centre, width = HOUNSFIELD_PRESETS[name]
    below, above = Window(centre=centre, width=width).apply(
        np.array([centre - width / 4, centre + width / 4], np.float32)
    )
    assert (below, above) == pytest.approx((0.25, 0.75), abs=0.01)


def test_a_lookup_table_holds_its_ends_beyond_them_and_rounds_between() -> None:
    table = LookupTable(first=-1, table=np.array([0, 51, 255], np.uint16), bits=8)
    values = np.array([-100, -1, -0.4, 0.4, 0.6, 1, 100], np.float32)
    np.testing.assert_allclose(table.apply(values), [0, 0, 0.2, 0.2, 1, 1, 1], atol=1e-6)


def test_a_lookup_table_is_scaled_by_its_bits_and_not_by_its_entries() -> None:
    entries = np.array([0, 1000], np.uint16)
    values = np.ones((1, 1), np.float32)
    assert LookupTable(first=0, table=entries, bits=16).apply(values)[0, 0] < 0.02
    assert LookupTable(first=0, table=entries, bits=10).apply(values)[0, 0] > 0.97


def test_an_entry_larger_than_the_stated_bits_is_white() -> None:
    table = LookupTable(first=0, table=np.array([0, 65535], np.uint16), bits=8)
    assert table.apply(np.ones((1, 1), np.float32))[0, 0] == 1


@pytest.mark.parametrize(("entries", "bits"), [(0, 8), (2, 0), (2, 17)])
def test_a_lookup_table_without_entries_or_bits_is_refused(entries: int, bits: int) -> None:
    with pytest.raises(UsageError, match=f"{entries} entries of {bits} bits"):
        LookupTable(first=0, table=np.zeros(entries, np.uint16), bits=bits)


def test_the_full_range_maps_its_ends_to_0_and_1_and_nothing_more() -> None:
    window = full_range(-1024, 3071)
    shown = window.apply(np.array([-2000, -1024, 1023.5, 3071, 5000], np.float32))
    np.testing.assert_allclose(shown, [0, 0, 0.5, 1, 1], atol=1e-6)


def test_a_full_range_of_one_value_is_still_a_window() -> None:
    assert np.isfinite(full_range(7, 7).apply(np.array([6, 7, 8], np.float32))).all()
