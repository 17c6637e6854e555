"""Each change does what its name says, within its limit, to each image in its own way."""

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from medtl_train.augmentation.augment import augment
from medtl_train.config import AugmentConfig
from medtl_train.config.strengths import Preset

Make = Callable[..., AugmentConfig]
COUNT = 48

EVERYTHING = AugmentConfig(
    rotation=180, shift=0.5, scale=1, shear=45, crop=0.5, hflip=True, vflip=True, brightness=0.5,
    contrast=2, gamma=2, noise=0.5, blur=5, quarter_turns=True, bias_field=2, speckle=1, hue=180,
    saturation=2, stain=0.5, erasing=1,
)  # fmt: skip
ALONE = {
    "rotation": 20.0, "shift": 0.2, "scale": 0.5, "shear": 20.0, "crop": 0.4, "hflip": True,
    "vflip": True, "brightness": 0.2, "contrast": 0.5, "gamma": 0.5, "noise": 0.1, "blur": 2.0,
    "quarter_turns": True, "bias_field": 0.5, "speckle": 0.3, "erasing": 1.0,
}  # fmt: skip
OF_COLOURS = {"hue": 90.0, "saturation": 1.0, "stain": 0.3}
FEW = ("hflip", "vflip", "quarter_turns")
"""Changes with two or four outcomes."""


def run(images: Tensor, config: AugmentConfig, seed: int = 0) -> Tensor:
    strengths = config.strengths_for(images.shape[1])
    return augment(images, strengths, torch.Generator().manual_seed(seed))


def copies(image: Tensor) -> Tensor:
    """Return a batch of one grey image, N x 1 x H x W."""
    return image.expand(COUNT, 1, *image.shape).clone()


def textured(height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(1))


def coloured(height: int = 24, width: int = 32) -> Tensor:
    """Return a batch of one colour image, N x 3 x H x W."""
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(2))
    return image.expand(COUNT, -1, -1, -1).clone()


def disc(height: int, width: int, row: float, column: float, radius: float) -> Tensor:
    rows = torch.arange(height)[:, None] - row
    columns = torch.arange(width)[None] - column
    return (radius + 0.5 - torch.hypot(rows, columns)).clamp(0, 1)


def centroids(images: Tensor) -> np.ndarray:
    """Return row and column of the centre of mass, in pixels from the image's centre, (N, 2)."""
    mass = images.double().sum(1)
    height, width = mass.shape[1:]
    total = mass.sum((1, 2))
    rows = (mass.sum(2) * (torch.arange(height) - (height - 1) / 2)).sum(1) / total
    columns = (mass.sum(1) * (torch.arange(width) - (width - 1) / 2)).sum(1) / total
    return torch.stack([rows, columns], 1).numpy()


def test_off_is_the_identity(still: Make) -> None:
    images = copies(textured())
    assert torch.equal(run(images, still()), images)
    assert torch.equal(run(images, AugmentConfig(augment=False)), images)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("shape", [(24, 32), (32, 24), (33, 17)])
def test_each_change_alone_changes_images_and_keeps_their_range(
    name: str, shape: tuple[int, int], still: Make
) -> None:
    images = copies(textured(*shape))
    changed = run(images, still(**{name: ALONE[name]}))
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert (changed != images).flatten(1).any(1).sum() >= COUNT // 4  # a flip spares half of them
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1


@pytest.mark.parametrize("name", [n for n in ALONE if n not in FEW])
def test_each_image_gets_parameters_of_its_own(name: str, still: Make) -> None:
    changed = run(copies(textured()), still(**{name: ALONE[name]})).flatten(1)
    # Where the deviation is below a sixth of a pixel, a blur is none.
    assert len(torch.unique(changed, dim=0)) >= (COUNT if name != "blur" else 0.8 * COUNT)


@pytest.mark.parametrize("name", ALONE)
def test_a_change_leaves_its_input_alone(name: str, still: Make) -> None:
    images = copies(textured())
    before = images.clone()
    run(images, still(**{name: ALONE[name]}))
    assert torch.equal(images, before)


def test_the_generator_decides_and_nothing_else() -> None:
    images = coloured()
    torch.manual_seed(1)
    first = run(images, EVERYTHING, seed=5)
    torch.manual_seed(2)
    assert torch.equal(run(images, EVERYTHING, seed=5), first)
    assert not torch.equal(run(images, EVERYTHING, seed=6), first)


def test_everything_at_its_most_stays_in_range_and_finite() -> None:
    for seed in range(5):
        changed = run(coloured(), EVERYTHING, seed)
        assert torch.isfinite(changed).all()
        assert float(changed.min()) >= 0
        assert float(changed.max()) <= 1


@pytest.mark.parametrize(("name", "axis"), [("hflip", 3), ("vflip", 2)])
def test_a_flip_mirrors_about_half_of_the_images_along_its_axis(
    name: str, axis: int, still: Make
) -> None:
    images = copies(textured())
    changed = run(images, still(**{name: True}))
    mirrored = torch.tensor(
        [
            torch.allclose(c, i.flip(axis - 1), atol=1e-5)
            for c, i in zip(changed, images, strict=True)
        ]
    )
    kept = torch.tensor(
        [torch.allclose(c, i, atol=1e-5) for c, i in zip(changed, images, strict=True)]
    )
    assert (mirrored ^ kept).all()
    assert COUNT // 4 < int(mirrored.sum()) < COUNT * 3 // 4


def test_a_shift_moves_by_at_most_its_share_of_each_side_in_every_direction(still: Make) -> None:
    height, width = 60, 80
    image = disc(height, width, (height - 1) / 2, (width - 1) / 2, 4)
    moved = centroids(run(copies(image), still(shift=0.2)))
    limits = np.array([0.2 * height, 0.2 * width])
    assert (np.abs(moved) <= limits + 0.05).all()
    assert (moved.max(0) > 0.6 * limits).all()
    assert (moved.min(0) < -0.6 * limits).all()
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.5


def test_what_a_shift_brings_in_from_outside_is_black(still: Make) -> None:
    changed = run(torch.ones(COUNT, 1, 40, 40), still(shift=0.3))
    share = changed.mean((1, 2, 3))
    assert float(share.max()) <= 1
    assert float(share.min()) < 0.75
    assert float(changed[:, :, 15:25, 15:25].min()) > 0.9999


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (96, 64)])
def test_a_rotation_turns_in_pixels_about_the_centre_both_ways(
    height: int, width: int, still: Make
) -> None:
    radius = 20.0
    image = disc(height, width, (height - 1) / 2, (width - 1) / 2 + radius, 3)
    found = centroids(run(copies(image), still(rotation=30)))
    np.testing.assert_allclose(np.hypot(*found.T), radius, atol=0.2)
    angles = np.degrees(np.arctan2(found[:, 0], found[:, 1]))
    assert (np.abs(angles) <= 30.5).all()
    assert angles.max() > 20
    assert angles.min() < -20


def test_a_rotation_turns_a_shape_as_much_as_its_place(still: Make) -> None:
    bar = torch.zeros(64, 96)
    bar[31:33, 58:78] = 1  # along a row, right of the centre
    changed = run(copies(bar), still(rotation=30))
    for (row, column), image in zip(centroids(changed), changed[:, 0].double(), strict=True):
        rows = torch.arange(64.0)[:, None] - 31.5 - row
        columns = torch.arange(96.0)[None] - 47.5 - column
        moments = [float((image * m).sum()) for m in (rows**2, rows * columns, columns**2)]
        lean = 0.5 * math.atan2(2 * moments[1], moments[2] - moments[0])
        assert abs(math.degrees(lean - math.atan2(row, column))) < 2


def test_a_zoom_is_within_its_factor_and_as_often_out_as_in(still: Make) -> None:
    image = disc(80, 100, 39.5, 49.5, 12)
    areas = run(copies(image), still(scale=0.5)).sum((1, 2, 3)) / image.sum()
    factors = areas.sqrt().numpy()
    assert (factors < 1.52).all()
    assert (factors > 1 / 1.52).all()
    assert factors.max() > 1.3
    assert factors.min() < 1 / 1.3
    np.testing.assert_allclose(np.log(factors).mean(), 0, atol=0.12)
    np.testing.assert_allclose(centroids(run(copies(image), still(scale=0.5))), 0, atol=0.05)


def test_a_shear_keeps_areas_and_slants_the_upright(still: Make) -> None:
    bar = torch.zeros(64, 96)
    bar[16:48, 46:50] = 1
    changed = run(copies(bar), still(shear=20))
    np.testing.assert_allclose(changed.sum((1, 2, 3)) / bar.sum(), 1, atol=0.03)
    top, bottom = centroids(changed[:, :, 16:20])[:, 1], centroids(changed[:, :, 44:48])[:, 1]
    slants = np.degrees(np.arctan((bottom - top) / 28))
    assert (np.abs(slants) < 20.5).all()
    assert slants.max() > 12
    assert slants.min() < -12


def test_a_crop_enlarges_and_never_leaves_the_image(still: Make) -> None:
    white = run(torch.ones(COUNT, 1, 40, 56), still(crop=0.4))
    torch.testing.assert_close(white[:, :, 1:-1, 1:-1], torch.ones(COUNT, 1, 38, 54))
    ramp = (torch.arange(56) / 55).expand(40, 56)
    changed = run(copies(ramp), still(crop=0.4))[:, 0, 20]
    slope = (changed[:, 40] - changed[:, 16]) / (ramp[0, 40] - ramp[0, 16])  # 1 / magnification
    assert float(slope.max()) <= 1.001
    assert float(slope.min()) >= 0.599
    assert float(slope.min()) < 0.7
    middles = changed[:, 27:29].mean(1)
    assert float(middles.min()) < 0.42
    assert float(middles.max()) > 0.58


def test_all_channels_are_moved_alike(still: Make) -> None:
    image = textured().expand(3, -1, -1)
    changed = run(image.expand(COUNT, -1, -1, -1), still(rotation=20, shift=0.1, blur=1))
    torch.testing.assert_close(changed[:, :1].expand(-1, 3, -1, -1), changed)


def test_a_blur_keeps_the_mean_and_spreads_evenly_up_to_its_limit(still: Make) -> None:
    image = torch.zeros(41, 61)
    image[20, 30] = 1
    changed = run(copies(image), still(blur=2))
    np.testing.assert_allclose(changed.sum((1, 2, 3)), 1, rtol=1e-5)
    rows = (changed.sum((1, 3)) * (torch.arange(41) - 20.0) ** 2).sum(1)
    columns = (changed.sum((1, 2)) * (torch.arange(61) - 30.0) ** 2).sum(1)
    torch.testing.assert_close(rows, columns)
    spread = rows.sqrt()
    assert float(spread.max()) <= 2.01
    assert float(spread.max()) > 1.6
    assert float(spread.min()) < 0.5
    np.testing.assert_allclose(centroids(changed), 0, atol=1e-4)


def test_a_blur_darkens_no_border(still: Make) -> None:
    white = torch.ones(COUNT, 1, 20, 30)
    torch.testing.assert_close(run(white, still(blur=3)), white)


def test_a_blur_takes_each_image_by_itself(still: Make) -> None:
    images = torch.zeros(COUNT, 1, 20, 20)
    images[::2] = 1
    torch.testing.assert_close(run(images, still(blur=3)), images)


def test_brightness_adds_one_number_to_an_image(still: Make) -> None:
    images = copies(0.4 + 0.2 * textured())
    added = run(images, still(brightness=0.2)) - images
    assert float(added.flatten(1).std(1).max()) < 1e-6
    offsets = added.mean((1, 2, 3))
    assert float(offsets.abs().max()) <= 0.2001
    assert float(offsets.max()) > 0.1
    assert float(offsets.min()) < -0.1


def test_contrast_stretches_about_the_mean(still: Make) -> None:
    images = copies(0.4 + 0.2 * textured())
    changed = run(images, still(contrast=0.5))
    torch.testing.assert_close(changed.mean((1, 2, 3)), images.mean((1, 2, 3)))
    factors = changed.flatten(1).std(1) / images.flatten(1).std(1)
    assert float(factors.max()) <= 1.501
    assert float(factors.min()) >= 1 / 1.501
    assert float(factors.max()) > 1.25
    assert float(factors.min()) < 1 / 1.25


def test_gamma_is_a_power_that_keeps_black_and_white(still: Make) -> None:
    images = copies(torch.tensor([[0.0, 0.25, 0.5, 1.0]]))
    changed = run(images, still(gamma=0.5))[:, 0, 0]
    assert (changed[:, 0] == 0).all()
    assert (changed[:, 3] == 1).all()
    powers = changed[:, 2].log() / math.log(0.5)
    torch.testing.assert_close(changed[:, 1], 0.25**powers)
    assert 1.25 < float(powers.max()) <= 1.501
    assert 1 / 1.501 <= float(powers.min()) < 1 / 1.25


def test_noise_has_no_mean_and_at_most_its_deviation(still: Make) -> None:
    images = torch.full((COUNT, 1, 60, 60), 0.5)
    noise = (run(images, still(noise=0.1)) - images).flatten(1)
    deviations = noise.std(1)
    assert float(deviations.max()) <= 0.105
    assert float(deviations.max()) > 0.07
    assert float(deviations.min()) < 0.03
    assert float((noise.mean(1).abs() / (deviations / 60 + 1e-9)).max()) < 5


def test_quarter_turns_are_exact_and_all_four_occur(still: Make) -> None:
    image = textured(20, 20)
    turned = [image.rot90(k) for k in range(4)]
    found = [
        [k for k in range(4) if torch.allclose(changed[0], turned[k], atol=1e-4)]
        for changed in run(copies(image), still(quarter_turns=True))
    ]
    assert {tuple(one) for one in found} == {(0,), (1,), (2,), (3,)}


def test_what_comes_in_from_outside_can_be_the_mirrored_image(still: Make) -> None:
    white = torch.ones(COUNT, 1, 40, 40)
    changed = run(white, still(shift=0.3, rotation=45, mirror_outside=True))
    torch.testing.assert_close(changed, white)


def test_a_bias_field_is_smooth_within_its_factor_and_uneven(still: Make) -> None:
    field = run(torch.full((COUNT, 1, 40, 60), 0.4), still(bias_field=0.5))[:, 0] / 0.4
    largest = field.log().abs().amax((1, 2))
    assert float(largest.max()) <= math.log(1.5) + 1e-5
    assert float(largest.max()) > 0.8 * math.log(1.5)
    assert float(largest.min()) < 0.2 * math.log(1.5)
    assert float(field.diff(dim=1).abs().max()) < 0.2
    assert float(field[largest > 0.2].flatten(1).std(1).min()) > 0.01


def test_speckle_grows_with_the_signal_and_leaves_black_alone(still: Make) -> None:
    image = torch.zeros(60, 90)
    image[:, 30:60], image[:, 60:] = 0.2, 0.6
    changed = run(copies(image), still(speckle=0.2))[:, 0]
    assert (changed[:, :, :30] == 0).all()
    dim, bright = changed[:, :, 30:60].flatten(1).std(1), changed[:, :, 60:].flatten(1).std(1)
    torch.testing.assert_close(bright / dim, torch.full((COUNT,), 3.0), rtol=0.15, atol=0)
    assert 0.1 < float((bright / 0.6).max()) <= 0.21


def test_noise_and_speckle_together_have_the_sum_of_their_variances(still: Make) -> None:
    images = torch.full((COUNT, 1, 100, 100), 0.5)
    both = run(images, still(noise=0.05, speckle=0.1)).flatten(1).std(1)
    noise = run(images, still(noise=0.05)).flatten(1).std(1)  # the same draw comes first
    rest = (both**2 - noise**2).clamp(min=0).sqrt() / 0.5
    assert float(rest.max()) <= 0.103
    assert float(rest.max()) > 0.08
    assert float((rest > 0.01).float().mean()) > 0.7


@pytest.mark.parametrize("name", OF_COLOURS)
def test_a_change_of_colour_differs_by_image_and_spares_grey_ones(name: str, still: Make) -> None:
    config = still(**{name: OF_COLOURS[name]})
    changed = run(coloured(), config)
    assert len(torch.unique(changed.flatten(1), dim=0)) == COUNT
    assert 0 <= float(changed.min()) < float(changed.max()) <= 1
    grey = textured().expand(COUNT, 3, -1, -1).clone()
    torch.testing.assert_close(run(grey, config), grey, atol=2e-3, rtol=0)


def test_a_hue_turns_and_saturation_stretches_but_luma_stays(still: Make) -> None:
    images = 0.4 + 0.2 * coloured()
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    for name in ("hue", "saturation"):
        changed = run(images, still(**{name: OF_COLOURS[name]}))
        torch.testing.assert_close((changed * luma).sum(1), (images * luma).sum(1))
        chroma = torch.tensor([0.596, -0.274, -0.322]), torch.tensor([0.211, -0.523, 0.312])
        before, after = (
            torch.complex(*((v * c[:, None, None]).sum(1) for c in chroma))
            for v in (images, changed)
        )
        ratio = (after / before).flatten(1)
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=2e-2, rtol=0)
        turned, stretched = ratio[:, 0].angle().abs(), ratio[:, 0].abs()
        if name == "hue":
            assert 60 < math.degrees(float(turned.max())) <= 91
            assert float((stretched - 1).abs().max()) < 0.02
        else:
            assert 1.6 < float(stretched.max()) <= 2.02
            assert float(turned.max()) < 0.02


def test_a_stain_scales_and_shifts_what_haematoxylin_absorbs(still: Make) -> None:
    haematoxylin = torch.tensor([0.650, 0.704, 0.286])
    image = torch.exp(-0.8 * haematoxylin)[:, None, None].expand(3, 8, 8)
    density = -run(image.expand(COUNT, -1, -1, -1).clone(), still(stain=0.1)).log()[:, :, 0, 0]
    stains = torch.tensor([[0.650, 0.072, 0.268], [0.704, 0.990, 0.570], [0.286, 0.105, 0.776]])
    amounts = torch.linalg.solve(stains, density.T)
    assert (amounts[0] - 0.8).abs().max() <= 0.1 * 0.8 + 0.1 + 1e-4
    assert (amounts[0] - 0.8).abs().max() > 0.1
    assert amounts[1:].abs().max() <= 0.1 + 1e-4


def test_erasing_fills_one_rectangle_within_its_share_with_the_mean(still: Make) -> None:
    images = copies(textured(60, 80))
    erased = run(images, still(erasing=0.5)) != images
    hit = erased.flatten(1).any(1)
    assert COUNT // 4 < int(hit.sum()) < 3 * COUNT // 4
    mean = float(images[0].mean())
    for changed, mask in zip(run(images, still(erasing=0.5))[hit], erased[hit], strict=True):
        rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
        tall, wide = (int(x.max() - x.min()) + 1 for x in (rows, columns))
        assert int(mask.sum()) == tall * wide
        assert 0.01 < tall * wide / (60 * 80) < 0.22
        assert 0.2 < tall / wide < 5
        torch.testing.assert_close(changed[mask], torch.full((tall * wide,), mean))


def test_one_of_changes_each_image_in_one_way_only(still: Make) -> None:
    images = torch.full((200, 1, 16, 16), 0.4)
    config = still(one_of=True, brightness=0.3, noise=0.2)
    changed = run(images, config)
    flat, same = changed.flatten(1).std(1) < 1e-6, (changed == images).flatten(1).all(1)
    noisy = ~flat
    assert (changed[noisy].mean((1, 2, 3)) - 0.4).abs().max() < 0.07  # noise has no mean
    shares = [float(one.float().mean()) for one in (same, flat & ~same, noisy)]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.12)


def test_one_of_moves_some_images_and_leaves_the_light_of_those(still: Make) -> None:
    image = disc(40, 40, 19.5, 29.5, 4)
    changed = run(copies(image), still(one_of=True, rotation=90, brightness=0.3))
    moved = np.abs(centroids(changed[:, :, :, :]) - [0, 10]).max(1) > 0.5
    background = changed[:, 0, 0, 0].numpy()
    assert moved.any()
    assert (background[moved] > 0).sum() < moved.sum()
    turned = np.hypot(*(centroids(changed)).T)
    assert ((np.abs(turned - 10) < 0.3) & moved & (background == 0)).sum() >= COUNT // 6


@pytest.mark.parametrize("preset", get_args(Preset))
@pytest.mark.parametrize("one_of", [False, True])
def test_a_preset_keeps_images_in_range(preset: Preset, one_of: bool) -> None:
    if preset == "none" and one_of:
        pytest.skip("there is nothing to draw from")
    config = AugmentConfig(preset=preset, one_of=one_of)
    for images in (copies(textured()), coloured()):
        changed = run(images, config)
        assert torch.isfinite(changed).all()
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert torch.equal(changed, images) == (preset == "none")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_augments_as_the_processor_does() -> None:
    images = coloured().to("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    changed = augment(images, EVERYTHING.strengths, generator)
    assert changed.device.type == "cuda"
    assert 0 <= float(changed.min()) < float(changed.max()) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_augmentation_never_waits_for_a_gpu() -> None:
    images, generator = coloured().to("cuda"), torch.Generator("cuda")
    augment(images, EVERYTHING.strengths, generator)  # caches small matrices
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(images, EVERYTHING.strengths, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
