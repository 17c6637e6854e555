"""Presets suit their modality, and what is given besides wins."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from medtl_runtime.errors import UsageError
from medtl_train.config import AugmentConfig
from medtl_train.config.strengths import LIMITS, PRESETS, Preset, Strengths
from medtl_train.options import config_from


def test_there_are_strengths_for_every_preset_and_limits_for_every_number() -> None:
    assert set(PRESETS) == set(get_args(Preset))
    numbers = {field.name for field in fields(Strengths) if isinstance(field.default, float)}
    assert set(LIMITS) == numbers
    for strengths in PRESETS.values():
        assert all(0 <= getattr(strengths, name) <= highest for name, highest in LIMITS.items())


@pytest.mark.parametrize("preset", ["ct", "mr", "xray"])
def test_nothing_is_mirrored_where_organs_have_sides(preset: Preset) -> None:
    found = AugmentConfig(preset=preset).strengths
    assert (found.hflip, found.vflip, found.quarter_turns) == (False, False, False)


def test_hounsfield_units_are_neither_bent_nor_shaded() -> None:
    found = AugmentConfig(preset="ct").strengths
    assert found.gamma == found.bias_field == found.speckle == 0
    assert found.contrast <= 0.05
    assert found.brightness <= 0.02


def test_each_modality_has_what_is_its_own() -> None:
    own = {"mr": "bias_field", "ultrasound": "speckle", "microscopy": "stain", "fundus": "hue"}
    for preset, name in own.items():
        assert getattr(PRESETS[preset], name) > 0
        assert getattr(PRESETS["ct"], name) == getattr(PRESETS["xray"], name) == 0


def test_what_is_given_wins_over_the_preset_and_is_not_scaled() -> None:
    found = AugmentConfig(preset="mr", strength=2, rotation=3.0, hflip=True, noise=0.0).strengths
    assert (found.rotation, found.hflip, found.noise) == (3.0, True, 0.0)
    assert found.bias_field == 2 * PRESETS["mr"].bias_field
    assert found.shift == 2 * PRESETS["mr"].shift


def test_a_scaled_preset_stays_within_the_limits() -> None:
    found = AugmentConfig(preset="microscopy", strength=10, one_of=True).strengths
    assert all(getattr(found, name) <= highest for name, highest in LIMITS.items())
    assert found.rotation == 180


def test_one_of_draws_from_what_is_on_and_makes_the_preset_stronger() -> None:
    found = AugmentConfig(preset="ct", one_of=True, blur=1.0).strengths
    assert set(found.lottery) == {
        "rotation", "shift", "scale", "brightness", "contrast", "noise", "blur",
    }  # fmt: skip
    assert found.rotation == 3 * PRESETS["ct"].rotation
    assert found.blur == 1.0


def test_the_lottery_leaves_flips_and_erasing_out() -> None:
    found = AugmentConfig(preset="microscopy", one_of=True, erasing=0.5).strengths
    assert found.hflip
    assert found.quarter_turns
    assert not {"hflip", "vflip", "quarter_turns", "erasing", "mirror_outside"} & set(found.lottery)


def test_no_augmentation_is_none_whatever_else_is_said() -> None:
    assert AugmentConfig(augment=False, preset="mr", rotation=20.0).strengths == Strengths()


def test_a_presets_colours_are_left_out_of_grey_images() -> None:
    grey = AugmentConfig(preset="microscopy").strengths_for(1)
    assert not grey.recolours
    assert grey.quarter_turns
    assert AugmentConfig(preset="microscopy").strengths_for(3).recolours


@pytest.mark.parametrize("name", ["hue", "saturation", "stain"])
def test_a_colour_that_was_asked_for_by_name_is_refused_for_grey_images(name: str) -> None:
    config = AugmentConfig(**{name: 0.1})
    with pytest.raises(UsageError, match=f"--{name} has no effect: the images are grey"):
        config.strengths_for(1)


def test_the_documented_presets_are_the_real_ones() -> None:
    text = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text(encoding="utf-8")
    table = text.partition("## Presets")[2].partition("`none`")[0].strip().splitlines()
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    written = {row[0].replace("-", "_"): row[1:] for row in rows}
    strengths = [AugmentConfig().strengths, *(PRESETS[preset] for preset in header[2:])]
    for field in fields(Strengths):
        values = [getattr(one, field.name) for one in strengths]
        shown = ["" if not v else "yes" if v is True else f"{v:g}" for v in values]
        assert written.get(field.name, [""] * len(shown)) == shown, field.name


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"preset": "none", "strength": 2.0}, "--strength has no effect with --preset none"),
        ({"preset": "none", "one_of": True}, "--one-of has nothing to draw from"),
        ({"preset": "pet"}, "--preset is pet; expected ct, mr,"),
        ({"strength": 11}, "--strength is 11; expected 0 to 10"),
        ({"erasing": 1.1}, "--erasing is 1.1; expected 0 to 1"),
        ({"stain": -0.1}, "--stain is -0.1; expected 0 to 0.5"),
        ({"bias_field": float("nan")}, "--bias-field is nan"),
        ({"speckle": 2}, "--speckle is 2"),
        ({"hue": 181}, "--hue is 181"),
        ({"saturation": 3}, "--saturation is 3"),
    ],
)
def test_what_cannot_be_is_refused_by_its_option(given: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config_from(given)
