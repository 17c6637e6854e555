"""What auto decides, on real and written images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtl_runtime.errors import UsageError
from medtl_runtime.recipe import FixedWindow, HeaderVoi
from medtl_train.config import ImageConfig
from medtl_train.data.recipes import decide_recipe
from medtl_train.data.samples import Sample

WIDE = FixedWindow(centre=0.0, width=2048.0)


def samples(*paths: Path) -> list[Sample]:
    return [Sample(source=str(path), labels=("a",)) for path in paths]


def test_ct_alone_takes_the_wide_window(pydicom_files: Path, lung: Path) -> None:
    for paths in ([pydicom_files / "CT_small.dcm"], sorted(lung.rglob("*.dcm"))):
        recipe = decide_recipe(samples(*paths), ImageConfig(size=64))
        assert recipe.window == WIDE
        assert recipe.channels == 1
        assert recipe.size == (64, 64)


def test_everything_else_takes_the_windows_of_the_headers(
    pydicom_files: Path, tmp_path: Path, write_image: Callable
) -> None:
    ct, mr = pydicom_files / "CT_small.dcm", pydicom_files / "MR_small.dcm"
    png = write_image(tmp_path / "a.png", 0)
    for paths in ([mr], [ct, mr], [ct, png], [png]):
        assert decide_recipe(samples(*paths), ImageConfig()).window == HeaderVoi()


def test_what_cannot_be_read_has_no_say(pydicom_files: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    odd = [tmp_path / "empty", tmp_path / "gone", pydicom_files / "rtplan.dcm"]
    recipe = decide_recipe(samples(*odd, pydicom_files / "CT_small.dcm"), ImageConfig())
    assert recipe.window == WIDE
    assert decide_recipe(samples(*odd), ImageConfig()).window == HeaderVoi()


def test_one_image_in_colour_makes_three_channels(
    pydicom_files: Path, tmp_path: Path, write_image: Callable
) -> None:
    grey = write_image(tmp_path / "grey.png", 0)
    coloured = write_image(tmp_path / "colour.png", 1, colour=True)
    assert decide_recipe(samples(grey, coloured), ImageConfig()).channels == 3
    assert decide_recipe(samples(grey), ImageConfig()).channels == 1
    endoscopy = pydicom_files / "examples_rgb_color.dcm"
    assert decide_recipe(samples(endoscopy), ImageConfig()).channels == 3


def test_grey_saved_as_colour_is_grey(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    coded = np.repeat(grey[..., None], 3, axis=2)
    Image.fromarray(coded).save(tmp_path / "coded.png")
    assert decide_recipe(samples(tmp_path / "coded.png"), ImageConfig()).channels == 1
    coded[3, 4] = (200, 20, 20)  # a marker of one pixel is colour
    Image.fromarray(coded).save(tmp_path / "marked.png")
    assert decide_recipe(samples(tmp_path / "marked.png"), ImageConfig()).channels == 3


def test_real_ultrasound_is_grey_until_someone_draws_on_it_in_colour(real_data: Path) -> None:
    folder = real_data / "images" / "busi"
    plain = [folder / "normal" / f"normal ({k}).png" for k in range(1, 21)]
    with Image.open(plain[0]) as image:
        assert image.mode == "RGB"
    assert decide_recipe(samples(*plain), ImageConfig()).channels == 1
    marked = folder / "malignant" / "malignant (196).png"
    assert decide_recipe(samples(*plain, marked), ImageConfig()).channels == 3


def test_a_late_colour_image_is_seen_within_sixty_four(
    tmp_path: Path, write_image: Callable
) -> None:
    paths = [write_image(tmp_path / f"{i:02}.png", i, colour=i == 63) for i in range(64)]
    assert decide_recipe(samples(*paths), ImageConfig()).channels == 3


def test_at_most_sixty_four_samples_are_opened(tmp_path: Path, write_image: Callable) -> None:
    grey = write_image(tmp_path / "grey.png", 0)
    coloured = write_image(tmp_path / "colour.png", 1, colour=True)
    paths = [grey] * 127
    paths[1] = coloured  # between the first and the second that are opened
    assert decide_recipe(samples(*paths), ImageConfig()).channels == 1


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("voi", HeaderVoi()),
        ("liver", FixedWindow(centre=90, width=250)),
        ("-600,1500", FixedWindow(centre=-600, width=1500)),
        ("40.5, 80", FixedWindow(centre=40.5, width=80)),
    ],
)
def test_a_window_that_was_named_is_taken(text: str, window: object, pydicom_files: Path) -> None:
    found = samples(pydicom_files / "MR_small.dcm")
    assert decide_recipe(found, ImageConfig(window=text)).window == window


@pytest.mark.parametrize("text", ["lungs", "1", "1,2,3", "a,b", "40,0", "40,-5", "nan,5", "5,inf"])
def test_a_window_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="window"):
        decide_recipe([], ImageConfig(window=text))


def test_what_the_configuration_says_reaches_the_recipe(pydicom_files: Path) -> None:
    config = ImageConfig(size=96, channels="3", fit="crop", kernel="lanczos", window="bone")
    recipe = decide_recipe(samples(pydicom_files / "CT_small.dcm"), config)
    assert recipe.size == (96, 96)
    assert (recipe.channels, recipe.fit, recipe.kernel) == (3, "crop", "lanczos")
