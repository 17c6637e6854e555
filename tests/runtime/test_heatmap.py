"""Class activation maps as pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtl_runtime import Predictor
from medtl_runtime.decision import Decision, HeadDecision, Triage
from medtl_runtime.errors import OutputNotWritten, UsageError
from medtl_runtime.heads import Head
from medtl_runtime.heatmap import evidence, evidence_of, overlay, shown, write_heatmap
from medtl_runtime.recipe import FULL_SCALE
from medtl_runtime.results import Result
from medtl_runtime.testing import FakeEngine, describe

GREY = np.full((1, 64, 64), FULL_SCALE // 2, np.uint16)


def test_the_evidence_of_two_classes_has_the_log_odds_as_its_mean() -> None:
    cam = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    logits = cam.mean(axis=(1, 2))
    assert evidence(cam, 1).shape == (4, 5)
    assert evidence(cam, 1).mean() == pytest.approx(logits[1] - logits[0], abs=1e-6)
    np.testing.assert_allclose(evidence(cam, 0), -evidence(cam, 1))


def test_the_evidence_of_several_classes_is_against_the_mean_of_the_others() -> None:
    cam = np.zeros((3, 1, 1))
    cam[:, 0, 0] = 1, 4, 9
    assert [evidence(cam, k).item() for k in range(3)] == [1 - 6.5, 4 - 5, 9 - 2.5]


def test_a_small_image_is_enlarged_and_a_large_one_is_not() -> None:
    heat = np.zeros((4, 4))
    assert overlay(GREY, heat).size == (384, 384)
    assert overlay(np.zeros((1, 100, 50), np.uint16), heat).size == (200, 400)
    assert overlay(np.zeros((1, 512, 400), np.uint16), heat).size == (400, 512)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_without_positive_evidence_the_picture_is_the_image(value: float) -> None:
    picture = np.asarray(overlay(GREY, np.full((4, 4), value)))
    assert np.unique(picture).tolist() == [127]


def test_the_maximum_is_yellow_at_its_place_and_the_rest_stays_grey() -> None:
    heat = np.zeros((8, 8))
    heat[1, 6] = 5
    picture = np.asarray(overlay(GREY, heat)).astype(int)
    side = picture.shape[0]
    red, green, blue = picture[round(1.5 / 8 * side), round(6.5 / 8 * side)]
    assert red > 180
    assert green > 180
    assert blue < 80
    np.testing.assert_array_equal(picture[side // 2 :, : side // 2], 127)


def test_colour_images_keep_their_colour_where_nothing_is_hot() -> None:
    pixels = np.zeros((3, 64, 64), np.uint16)
    pixels[0] = FULL_SCALE
    picture = np.asarray(overlay(pixels, np.zeros((2, 2))))
    assert picture[10, 10].tolist() == [255, 0, 0]


def test_the_scale_of_the_evidence_does_not_matter_to_the_picture() -> None:
    heat = np.random.default_rng(1).normal(size=(4, 4))
    small, large = (np.asarray(overlay(GREY, heat * s)).astype(int) for s in (1e-3, 1e3))
    assert np.abs(small - large).max() <= 1


def test_the_file_says_which_class_and_model_it_shows(tiny_model: Path, tmp_path: Path) -> None:
    result = Predictor(tiny_model, device="cpu", threads=1)(np.full((32, 32), 250, np.uint8))
    path = write_heatmap(result, tmp_path / "maps" / "scan.png")
    assert path == tmp_path / "maps" / "scan.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == (384, 384)
        assert picture.info["medtl:class"] == "bright"
        assert picture.info["medtl:model"] == f"tiny {result.model['digest']}"
        heat = evidence(result.cam, 1)
        assert picture.info["medtl:maximum"] == f"{heat.max():.4g} logits"
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["scan.png"]


def test_the_picture_is_of_the_class_that_was_found(tmp_path: Path) -> None:
    """The fake's maps rise to the lower right, more steeply for the second class."""
    image = np.zeros((16, 16), np.uint8)
    image[8:] = 255
    for pixels, found in ((image, "positive"), (image[::-1].copy(), "negative")):
        result = Predictor(engine=FakeEngine(describe()))(pixels)
        assert result.finding == found
        heat = evidence(result.cam, ("negative", "positive").index(found))
        assert (heat[0, 0] < heat[-1, -1]) == (found == "positive")
        path = write_heatmap(result, tmp_path / f"{found}.png")
        with Image.open(path) as picture:
            colour = np.ptp(np.asarray(picture).astype(int), axis=2)
        assert (colour[5, 5] < colour[-5, -5]) == (found == "positive")


def test_names_of_classes_in_any_script_are_kept(tmp_path: Path) -> None:
    result = Predictor(engine=FakeEngine(describe(classes=("正常", "病変"))))(
        np.zeros((16, 16), np.uint8)
    )
    with Image.open(write_heatmap(result, tmp_path / "scan.png")) as picture:
        picture.load()
        assert picture.info["medtl:class"] == "正常"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = Predictor(engine=FakeEngine(describe()))(np.zeros((16, 16), np.uint8))
    with pytest.raises(OutputNotWritten, match=r"scan\.png was not written"):
        write_heatmap(result, tmp_path / "file" / "scan.png")


def test_where_the_model_abstains_the_most_probable_class_is_shown(tmp_path: Path) -> None:
    never = Decision(
        heads=(HeadDecision(triage=Triage(error_rate=0.1, thresholds=(1.0, 1.0), images=20)),)
    )
    result = Predictor(engine=FakeEngine(describe(decision=never)))(np.zeros((16, 16), np.uint8))
    assert result.finding is None
    with Image.open(write_heatmap(result, tmp_path / "scan.png")) as picture:
        assert picture.info["medtl:class"] == shown(result).label == "negative"


FOUR = (
    Head(name="liver", classes=("cyst", "healthy", "tumour")),
    Head(name="oedema", kind="binary", classes=("absent", "present")),
    Head(name="grade", kind="ordinal", classes=("1", "2", "3")),
    Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0),
)


def of_four(*logits: float) -> Result:
    engine = FakeEngine(describe(heads=FOUR), lambda _: np.array([logits]))
    return Predictor(engine=engine)(np.zeros((16, 16), np.uint8))


@pytest.mark.parametrize(
    ("head", "chosen", "expected"),
    [
        (FOUR[0], 2, 3 - 1.5),  # against the mean of the others
        (FOUR[1], 1, 1),
        (FOUR[1], 0, -1),
        (FOUR[2], 2, 2),  # reaching the highest grade from the one below
        (FOUR[2], 1, 1),
        (FOUR[2], 0, -1),
        (FOUR[3], 1, 1),
        (FOUR[3], 0, -1),
    ],
    ids=lambda one: getattr(one, "name", None),
)
def test_each_kind_of_head_has_its_own_evidence(head: Head, chosen: int, expected: float) -> None:
    cam = np.arange(1.0, head.columns + 1)[:, None, None] * np.ones((1, 2, 3))
    np.testing.assert_allclose(evidence_of(head, cam, chosen), np.full((2, 3), expected))


def test_the_first_head_with_something_to_show_is_shown() -> None:
    binary_first = FOUR[1:]
    engine = FakeEngine(describe(heads=binary_first), lambda _: np.array([[-1.0, 2, 1, 0.5]]))
    absent = Predictor(engine=engine)(np.zeros((16, 16), np.uint8))
    assert shown(absent).label == "grade=3"
    assert shown(of_four(0, 3, 1, -1, 2, 1, 0.5)).label == "liver=healthy"


@pytest.mark.parametrize(
    ("name", "label", "words", "mean"),
    [
        ("liver", "liver=healthy", "rather than the other classes", 3 - 0.5),
        ("oedema", "oedema=absent", "rather than the other classes", 1),
        ("grade", "grade=3", "rather than a lower one", 1),
        ("age", "age above 50 a", "(the mean of the training values)", 0.5),
    ],
)
def test_the_head_that_is_asked_for_is_shown_with_its_columns(
    name: str, label: str, words: str, mean: float
) -> None:
    found = shown(of_four(0, 3, 1, -1, 2, 1, 0.5), name)
    assert (found.label, found.words) == (label, f"{label} {words}")
    assert found.heat.mean() == pytest.approx(mean, abs=1e-6)


def test_a_value_below_the_mean_shows_what_lowers_it() -> None:
    found = shown(of_four(0, 3, 1, -1, 2, 1, -0.5), "age")
    assert found.label == "age below 50 a"
    assert found.heat.mean() == pytest.approx(0.5, abs=1e-6)


def test_a_head_that_is_not_there_cannot_be_shown() -> None:
    with pytest.raises(UsageError, match=r"--head lung: .* expected liver, oedema, grade, age"):
        shown(of_four(0, 3, 1, -1, 2, 1, 0.5), "lung")
