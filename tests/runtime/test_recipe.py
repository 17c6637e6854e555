"""The recipe, on images that can be computed by hand and on real ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtl_runtime.errors import ScanUnfit, UsageError
from medtl_runtime.reading import read_scan
from medtl_runtime.recipe import FULL_SCALE, FixedWindow, HeaderVoi, Recipe, as_batch, is_grey
from medtl_runtime.scan import Frame
from medtl_runtime.voi import LookupTable, Window

KERNELS = ("bilinear", "bicubic", "lanczos", "box")
FITS = ("letterbox", "crop", "stretch")


def recipe(**fields: Any) -> Recipe:
    return Recipe(**({"size": (16, 16), "channels": 1, "window": HeaderVoi()} | fields))


def shown(values: np.ndarray, **fields: Any) -> Frame:
    """Return a frame that is made for display, with values from 0 to 1."""
    return Frame(
        levels=values.astype(np.float32), quantity="display", value_range=(0.0, 1.0), **fields
    )


def fitted(values: np.ndarray, **fields: Any) -> np.ndarray:
    """Return the first plane of the canonical image."""
    return recipe(**fields).apply(shown(values)).pixels[0]


# --- geometry


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (100, 50), (7, 300), (16, 16), (3, 3)])
def test_a_letterbox_keeps_a_constant_image_constant_between_black_bars(
    shape: tuple[int, int], kernel: str
) -> None:
    pixels = fitted(np.full(shape, 0.5), size=(64, 64), kernel=kernel)
    scale = 64 / max(shape)
    height, width = (max(1, round(side * scale)) for side in shape)
    top, left = (64 - height) // 2, (64 - width) // 2
    expected = np.zeros((64, 64))
    expected[top : top + height, left : left + width] = 0.5 * FULL_SCALE
    np.testing.assert_allclose(pixels, expected, atol=1)
    assert (pixels == 0).sum() == 64 * 64 - height * width


def test_a_letterbox_bar_is_black_where_the_image_is_inverted_too() -> None:
    frame = shown(np.zeros((8, 32)), inverted=True)
    pixels = recipe(size=(32, 32)).apply(frame).pixels[0]
    assert (pixels[:12] == 0).all()
    assert (pixels[12:20] == FULL_SCALE).all()
    assert (pixels[20:] == 0).all()


def test_an_odd_bar_is_one_pixel_wider_below_and_on_the_right() -> None:
    pixels = fitted(np.ones((13, 16)), size=(16, 16))
    assert (pixels[:1] == 0).all()
    assert (pixels[1:14] == FULL_SCALE).all()
    assert (pixels[14:] == 0).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (33, 33), (9, 9)])
def test_the_centre_stays_in_the_centre(shape: tuple[int, int], fit: str, kernel: str) -> None:
    rows, columns = np.indices(shape)
    distance = np.hypot(rows - (shape[0] - 1) / 2, columns - (shape[1] - 1) / 2)
    pixels = fitted(np.clip(1 - distance / 12, 0, 1), size=(32, 32), fit=fit, kernel=kernel)
    weights = pixels.astype(float) / pixels.sum()
    rows, columns = np.indices((32, 32))
    centre = (rows * weights).sum(), (columns * weights).sum()
    # A letterbox cannot halve an odd bar, and a box gives a pixel on its border to one side.
    tolerance = 0.51 if fit == "letterbox" else 0.1 if kernel == "box" else 0.02
    assert centre == pytest.approx((15.5, 15.5), abs=tolerance)


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_the_aspect_ratio_is_kept_and_stretching_loses_it(fit: str) -> None:
    square = np.zeros((40, 80))
    square[10:30, 30:50] = 1

    def extent(pixels: np.ndarray) -> tuple[int, int]:
        rows, columns = np.nonzero(pixels > FULL_SCALE / 2)
        return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1

    height, width = extent(fitted(square, size=(40, 40), fit=fit))
    assert height == width == (10 if fit == "letterbox" else 20)
    assert extent(fitted(square, size=(40, 40), fit="stretch")) == (20, 10)


def test_a_crop_cuts_the_longer_side_in_the_middle() -> None:
    image = np.zeros((16, 48))
    image[:, 16:32] = 1
    assert (fitted(image, fit="crop") == FULL_SCALE).all()
    assert (fitted(image.T, fit="crop") == FULL_SCALE).all()
    assert fitted(np.roll(image, 1, axis=1), fit="crop")[0].tolist() == [0] + [FULL_SCALE] * 15


def test_a_crop_to_a_wide_format_keeps_the_middle_rows() -> None:
    image = np.zeros((64, 32))
    image[24:40] = 1
    assert (fitted(image, size=(16, 32), fit="crop") == FULL_SCALE).all()


def test_a_crop_takes_every_shape() -> None:
    """Rounding once put the cut a hair outside the image for one shape in twenty-five."""
    random = np.random.default_rng(0)
    for rows, columns, height, width in random.integers(8, 200, (300, 4)):
        image = np.full((rows, columns), 1.0)
        pixels = fitted(image, size=(int(height), int(width)), fit="crop")
        assert (pixels == FULL_SCALE).all()


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    values = np.random.default_rng(2).integers(0, 256, (16, 16), np.uint8)
    (frame,) = read_scan(values).frames()
    for fit in FITS:
        for kernel in KERNELS:
            pixels = recipe(fit=fit, kernel=kernel).apply(frame).pixels
            np.testing.assert_array_equal(pixels[0], values.astype(np.uint16) * 257)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("fit", FITS)
def test_a_checkerboard_of_single_pixels_shrunk_8_times_is_grey(fit: str, kernel: str) -> None:
    board = np.indices((256, 256)).sum(axis=0) % 2
    pixels = fitted(board, size=(32, 32), fit=fit, kernel=kernel)
    inner = pixels[2:-2, 2:-2]
    np.testing.assert_allclose(inner, FULL_SCALE / 2, atol=0.01 * FULL_SCALE)


def test_thin_lines_of_every_period_do_not_alias() -> None:
    """What is finer than a canonical pixel turns grey, and never into coarse stripes."""
    columns = np.arange(512)
    for period in (2.1, 3.3, 5.7, 7.3):
        lines = np.tile(0.5 + 0.5 * np.sin(2 * np.pi * columns / period), (512, 1))
        pixels = fitted(lines, size=(32, 32), kernel="bilinear")[4:-4, 4:-4]
        assert np.ptp(pixels) < 0.03 * FULL_SCALE, period
    coarse = np.tile(0.5 + 0.5 * np.sin(2 * np.pi * columns / 200), (512, 1))
    assert np.ptp(fitted(coarse, size=(32, 32))) > 0.9 * FULL_SCALE


@pytest.mark.parametrize("kernel", ["bicubic", "lanczos"])
def test_a_kernel_that_overshoots_is_clipped_and_does_not_wrap(kernel: str) -> None:
    step = np.zeros((8, 8))
    step[:, 4:] = 1
    pixels = fitted(step, size=(64, 64), kernel=kernel)
    assert (pixels[:, :24] < 0.1 * FULL_SCALE).all()
    assert (pixels[:, 40:] > 0.9 * FULL_SCALE).all()


def test_shrinking_keeps_the_mean_of_a_real_image(shipped: Path) -> None:
    (frame,) = read_scan(shipped / "CT_small.dcm").frames()
    policy = FixedWindow(centre=40, width=2000)
    whole = recipe(size=(128, 128), window=policy).apply(frame).pixels
    for kernel in KERNELS:
        small = recipe(size=(16, 16), window=policy, kernel=kernel).apply(frame).pixels
        assert small.mean() == pytest.approx(whole.mean(), rel=0.02)


# --- grey values


def test_8_bit_values_become_multiples_of_257() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (frame,) = read_scan(values).frames()
    np.testing.assert_array_equal(
        recipe().apply(frame).pixels[0], values.astype(np.uint16) * np.uint16(257)
    )


def test_16_bit_values_are_kept_as_they_are() -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    (frame,) = read_scan(values).frames()
    canonical = recipe().apply(frame)
    assert np.abs(canonical.pixels[0].astype(int) - values).max() <= 1
    assert canonical.voi == "fallback stored range"


def test_the_batch_is_exact_at_both_ends() -> None:
    batch = as_batch([np.array([[[0, 1, 65534, 65535]]], np.uint16)])
    assert batch.dtype == np.float32
    assert batch.shape == (1, 1, 1, 4)
    assert batch.ravel().tolist() == [
        0.0,
        pytest.approx(1 / 65535),
        pytest.approx(65534 / 65535),
        1.0,
    ]
    assert batch.max() == 1.0
    assert (np.rint(as_batch(np.arange(65536, dtype=np.uint16)) * 65535) == np.arange(65536)).all()


def test_the_policy_decides_between_header_fallback_and_stored_range(shipped: Path) -> None:
    (with_window,) = read_scan(shipped / "MR_small.dcm").frames()
    (without,) = read_scan(shipped / "CT_small.dcm").frames()
    fallback = FixedWindow(centre=40, width=400)
    words = {
        (frame is with_window, policy.fallback is None): recipe(window=policy).apply(frame).voi
        for frame in (with_window, without)
        for policy in (HeaderVoi(), HeaderVoi(fallback=fallback))
    }
    assert words == {
        (True, True): "header window 600/1600 LINEAR",
        (True, False): "header window 600/1600 LINEAR",
        (False, True): "fallback stored range",
        (False, False): "fallback window 40/400",
    }
    assert recipe(window=fallback).apply(with_window).voi == "fixed window 40/400"


def test_a_fixed_window_maps_hounsfield_units_as_linear_exact() -> None:
    values = np.array([[-160, -60, 40, 140, 240, 1000] * 4] * 24, np.int16)
    (frame,) = read_scan(values).frames()
    policy = FixedWindow(centre=40, width=400)
    pixels = recipe(size=(24, 24), window=policy).apply(frame).pixels[0, 0, :6]
    np.testing.assert_allclose(pixels / FULL_SCALE, [0, 0.25, 0.5, 0.75, 1, 1], atol=1e-5)


def test_a_fixed_window_refuses_an_image_made_for_display() -> None:
    (frame,) = read_scan(np.zeros((8, 8), np.uint8)).frames()
    with pytest.raises(ScanUnfit, match="no modality values for the fixed window 40/400"):
        recipe(window=FixedWindow(centre=40, width=400)).apply(frame, "scan.png")


def test_the_refusal_names_the_scan() -> None:
    (frame,) = read_scan(np.zeros((8, 8), np.uint8)).frames()
    with pytest.raises(ScanUnfit) as error:
        recipe(window=FixedWindow(centre=40, width=400)).apply(frame, "scan.png")
    assert str(error.value).startswith("scan.png: ")


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_values_of_more_than_16_bits_have_no_range_to_show(dtype: type) -> None:
    (frame,) = read_scan(np.zeros((8, 8), dtype)).frames()
    with pytest.raises(ScanUnfit, match="32-bit values without a window"):
        Recipe(size=(8, 8), channels=1, window=HeaderVoi()).apply(frame)
    fixed = Recipe(size=(8, 8), channels=1, window=FixedWindow(centre=0, width=2))
    assert (fixed.apply(frame).pixels == 32768).all()


def test_floating_point_values_without_a_window_are_refused_by_the_header_policy() -> None:
    (frame,) = read_scan(np.zeros((8, 8), np.float32)).frames()
    with pytest.raises(ScanUnfit, match="floating-point or 32-bit values without a window"):
        recipe().apply(frame)
    fallback = HeaderVoi(fallback=FixedWindow(centre=0, width=2))
    assert (recipe(window=fallback).apply(frame).pixels == 32768).all()


def test_an_image_s_own_extremes_do_not_matter() -> None:
    """No per-image minimum and maximum: one bright pixel changes no other."""
    values = np.full((16, 16), 1000, np.uint16)
    other = values.copy()
    other[0, 0] = 60000
    (one,), (two,) = read_scan(values).frames(), read_scan(other).frames()
    before, after = recipe().apply(one).pixels[0], recipe().apply(two).pixels[0]
    assert (before.ravel()[1:] == after.ravel()[1:]).all()
    assert before[0, 0] != after[0, 0]


@pytest.mark.parametrize(
    "voi",
    [
        Window(centre=50, width=20),
        LookupTable(first=40, table=np.linspace(0, 65535, 21).astype(np.uint16), bits=16),
    ],
)
def test_polarity_inverts_after_the_voi_and_padding_is_black_after_that(
    voi: Window | LookupTable,
) -> None:
    values = np.linspace(40, 60, 256, dtype=np.float32).reshape(16, 16)
    padding = values < 42
    fields = {"levels": values, "quantity": "modality", "voi": voi, "padded": padding}
    positive = recipe().apply(Frame(**fields)).pixels[0].astype(int)
    negative = recipe().apply(Frame(**fields, inverted=True)).pixels[0].astype(int)
    assert (negative[padding] == 0).all()
    assert (positive[padding] == 0).all()
    assert np.abs(positive + negative - FULL_SCALE)[~padding].max() <= 1
    kept = recipe(polarity="modality").apply(Frame(**fields, inverted=True)).pixels[0]
    np.testing.assert_array_equal(kept, positive)


def test_the_frame_is_not_changed(shipped: Path) -> None:
    (frame,) = read_scan(shipped / "MR_small.dcm").frames()
    before = frame.values.copy()
    recipe().apply(frame)
    np.testing.assert_array_equal(frame.values, before)


def test_the_same_frame_gives_the_same_bytes(shipped: Path) -> None:
    (frame,), (again,) = (read_scan(shipped / "CT_small.dcm").frames() for _ in range(2))
    for kernel in KERNELS:
        one = recipe(size=(50, 60), kernel=kernel).apply(frame).pixels
        assert one.tobytes() == recipe(size=(50, 60), kernel=kernel).apply(again).pixels.tobytes()


# --- channels


def test_grey_is_repeated_for_a_colour_recipe(shipped: Path) -> None:
    (frame,) = read_scan(shipped / "MR_small.dcm").frames()
    grey = recipe(channels=1).apply(frame).pixels
    colour = recipe(channels=3).apply(frame).pixels
    assert colour.shape == (3, 16, 16)
    assert colour.dtype == grey.dtype == np.uint16
    for plane in colour:
        np.testing.assert_array_equal(plane, grey[0])


def test_grey_saved_as_colour_is_taken_by_a_grey_recipe() -> None:
    grey = np.random.default_rng(4).integers(0, 256, (16, 16), np.uint8)
    (plain,) = read_scan(grey).frames()
    (saved,) = read_scan(np.stack([grey] * 3, axis=2)).frames()
    np.testing.assert_array_equal(recipe().apply(saved).pixels, recipe().apply(plain).pixels)


def test_true_colour_is_refused_by_a_grey_recipe(shipped: Path) -> None:
    (frame,) = read_scan(shipped / "SC_rgb_rle.dcm").frames()
    with pytest.raises(ScanUnfit, match="colour image; the model expects a grey one"):
        recipe().apply(frame, "scan")
    assert recipe(channels=3).apply(frame).pixels.shape == (3, 16, 16)


def test_colour_keeps_its_order_red_green_blue() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0], image[..., 1] = 255, 51
    (frame,) = read_scan(image).frames()
    planes = recipe(channels=3).apply(frame).pixels
    assert [np.unique(plane).tolist() for plane in planes] == [[65535], [51 * 257], [0]]


def test_a_slight_tint_is_grey_and_one_coloured_pixel_is_not() -> None:
    tinted = np.full((16, 16, 3), 100, np.float32)
    tinted[..., 2] += 15
    assert is_grey(tinted, full_scale=255)
    tinted[3, 4, 2] += 2
    assert not is_grey(tinted, full_scale=255)


# --- fields


ODD_FIELDS = [
    ("size", (16,)),
    ("size", (16, 16, 16)),
    ("size", (7, 16)),
    ("size", (16, 4097)),
    ("size", (16.0, 16)),
    ("size", ("16", "16")),
    ("size", "ab"),
    ("size", 16),
    ("channels", 2),
    ("channels", 3.0),
    ("channels", "3"),
    ("channels", None),
    ("polarity", "inverse"),
    ("fit", "zoom"),
    ("fit", None),
    ("kernel", "nearest"),
    ("kernel", []),
]


@pytest.mark.parametrize(("field", "value"), ODD_FIELDS)
def test_a_field_out_of_range_is_named_with_what_was_found(field: str, value: Any) -> None:
    with pytest.raises(UsageError) as error:
        recipe(**{field: value})
    assert str(error.value).startswith(f"recipe {field} is {value}; expected ")


ROUND_TRIPS = [
    recipe(),
    recipe(window=HeaderVoi(fallback=FixedWindow(centre=-600, width=1500))),
    recipe(
        size=(224, 320),
        channels=3,
        window=FixedWindow(centre=40.5, width=400),
        polarity="modality",
        fit="crop",
        kernel="lanczos",
    ),
]


@pytest.mark.parametrize("one", ROUND_TRIPS)
def test_a_recipe_comes_back_from_json(one: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(("field", "value"), ODD_FIELDS)
def test_a_bad_field_in_json_is_named(field: str, value: Any) -> None:
    value = list(value) if isinstance(value, tuple) else value
    with pytest.raises(UsageError, match=f"recipe {field} is"):
        Recipe.from_json(recipe().to_json() | {field: value})


@pytest.mark.parametrize(
    "window",
    [
        None,
        5,
        "fixed",
        "header",
        {},
        {"kind": "minmax"},
        {"kind": "fixed"},
        {"kind": "fixed", "centre": 40},
        {"kind": "fixed", "centre": "40", "width": 400},
        {"kind": "fixed", "centre": 40, "width": 400, "function": "SIGMOID"},
        {"kind": "header"},
        {"kind": "header", "fallback": 400},
        {"kind": "header", "fallback": {"kind": "header", "fallback": None}},
    ],
)
def test_a_bad_window_in_json_is_named(window: Any) -> None:
    with pytest.raises(UsageError, match="recipe window"):
        Recipe.from_json(recipe().to_json() | {"window": window})


@pytest.mark.parametrize("width", [0, -1, float("nan")])
def test_a_window_without_width_is_refused(width: float) -> None:
    window = {"kind": "fixed", "centre": 40, "width": width}
    with pytest.raises(UsageError, match="window"):
        Recipe.from_json(recipe().to_json() | {"window": window})
    with pytest.raises(UsageError, match="window"):
        FixedWindow(centre=40, width=width)


@pytest.mark.parametrize("field", ["size", "channels", "window", "polarity", "fit", "kernel"])
def test_a_missing_field_in_json_is_named(field: str) -> None:
    data = recipe().to_json()
    del data[field]
    with pytest.raises(UsageError, match=f"missing or unknown fields: {field}$"):
        Recipe.from_json(data)


def test_an_unknown_field_in_json_is_named() -> None:
    with pytest.raises(UsageError, match=r"missing or unknown fields: gamma$"):
        Recipe.from_json(recipe().to_json() | {"gamma": 2.2})


@pytest.mark.parametrize("data", [None, 5, "recipe", [1, 2]])
def test_what_is_no_object_is_no_recipe(data: Any) -> None:
    with pytest.raises(UsageError, match="expected an object"):
        Recipe.from_json(data)


def test_the_recipe_gives_real_scans_of_all_kinds_the_same_shape(
    real: Callable[[str], Path],
) -> None:
    one = recipe(size=(40, 56), channels=3)
    for name in ("CT_small.dcm", "MR_small.dcm", "SC_rgb_rle.dcm", "examples_palette.dcm"):
        (frame,) = read_scan(real(name)).frames()
        assert one.apply(frame).pixels.shape == (3, 40, 56)
