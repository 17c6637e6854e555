"""Heat maps as DICOM Secondary Capture."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medtl_runtime import Predictor, read_scan
from medtl_runtime.decision import Decision, HeadDecision, Triage
from medtl_runtime.errors import OutputExists, ScanUnfit
from medtl_runtime.heatmap import evidence, overlay
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_runtime.secondary_capture import write_secondary_capture
from medtl_runtime.testing import FakeEngine, describe

Changed = Callable[..., Dataset]

# Real images whose own headers the checker has nothing against, of what is copied from them.
CLEAN = ("CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm", "examples_ybr_color.dcm")


def predictor(channels: int = 3, side: int = 64, **fields: Any) -> Predictor:
    recipe = Recipe(size=(side, side), channels=channels, window=HeaderVoi())
    return Predictor(engine=FakeEngine(describe(recipe=recipe, **fields)))


def test_the_picture_is_the_overlay_of_the_finding(shipped: Path, tmp_path: Path) -> None:
    path = shipped / "CT_small.dcm"
    result = predictor()(path)
    written = write_secondary_capture(result, pydicom.dcmread(path), tmp_path / "new" / "map.dcm")
    new = pydicom.dcmread(written)
    chosen = ("negative", "positive").index(str(result.finding))
    expected = np.asarray(overlay(result.canonical.pixels, evidence(result.cam, chosen)))
    np.testing.assert_array_equal(new.pixel_array, expected)
    assert new.PhotometricInterpretation == "RGB"
    assert new.SeriesDescription == f"medtl heat map: {result.finding}"
    assert "Model fake 1" in new.DerivationDescription
    assert new.ImageComments == "Research use only. Not for diagnosis."


def test_medtl_reads_what_it_wrote(shipped: Path, tmp_path: Path) -> None:
    path = shipped / "CT_small.dcm"
    written = write_secondary_capture(
        predictor()(path), pydicom.dcmread(path), tmp_path / "map.dcm"
    )
    (frame,) = read_scan(written).frames()
    np.testing.assert_array_equal(frame.values, pydicom.dcmread(written).pixel_array)


def test_it_lies_in_the_study_in_a_series_of_its_own_and_names_its_source(
    shipped: Path, tmp_path: Path
) -> None:
    source = pydicom.dcmread(shipped / "MR_small.dcm")
    result = predictor()(source)
    new = pydicom.dcmread(write_secondary_capture(result, source, tmp_path / "map.dcm"))
    assert new.StudyInstanceUID == source.StudyInstanceUID
    assert new.PatientName == source.PatientName
    assert new.SeriesInstanceUID != source.SeriesInstanceUID
    assert new.InstanceNumber == source.InstanceNumber
    (item,) = new.SourceImageSequence
    assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert item.ReferencedSOPClassUID == source.SOPClassUID
    assert "ReferencedFrameNumber" not in item


def test_a_frame_of_several_is_named_by_its_number(shipped: Path, tmp_path: Path) -> None:
    source = pydicom.dcmread(shipped / "examples_ybr_color.dcm")
    frames = predictor().frames(source)
    _, second = next(frames), next(frames)
    new = pydicom.dcmread(write_secondary_capture(second, source, tmp_path / "map.dcm"))
    assert new.SourceImageSequence[0].ReferencedFrameNumber == 2
    assert new.InstanceNumber == 2


def test_one_class_and_source_series_make_one_series(changed: Changed, tmp_path: Path) -> None:
    def series(number: int, **values: object) -> str:
        source = changed("CT_small.dcm", SOPInstanceUID=f"1.2.3.{number}", **values)
        found = predictor(classes=("a", "b") if number < 9 else ("c", "d"))(source)
        written = write_secondary_capture(found, source, tmp_path / f"{number}.dcm")
        return str(pydicom.dcmread(written).SeriesInstanceUID)

    assert series(1) == series(2)
    assert len({series(3), series(4, SeriesInstanceUID="1.2.3"), series(9)}) == 3


@pytest.mark.parametrize("burned_in", ["YES", "NO", None])
def test_burned_in_text_is_what_the_source_says_of_it(
    changed: Changed, tmp_path: Path, burned_in: str | None
) -> None:
    """A picture of pixels with a name in them has the name in it, too."""
    source = changed("CT_small.dcm", BurnedInAnnotation=burned_in)
    written = write_secondary_capture(predictor()(source), source, tmp_path / "map.dcm")
    assert pydicom.dcmread(written).get("BurnedInAnnotation") == burned_in


def test_lossy_compression_is_remembered(shipped: Path, tmp_path: Path) -> None:
    source = pydicom.dcmread(shipped / "examples_ybr_color.dcm")
    result = next(predictor().frames(source))
    new = pydicom.dcmread(write_secondary_capture(result, source, tmp_path / "map.dcm"))
    assert source.LossyImageCompression == "01"
    assert new.LossyImageCompression == "01"
    assert new.LossyImageCompressionRatio == source.LossyImageCompressionRatio


def test_where_the_model_abstains_the_most_probable_class_is_shown(
    changed: Changed, tmp_path: Path
) -> None:
    never = Triage(error_rate=0.1, thresholds=(0.99, 0.99), images=10)
    source = changed("CT_small.dcm")
    result = predictor(decision=Decision(heads=(HeadDecision(triage=never),)))(source)
    assert result.finding is None
    new = pydicom.dcmread(write_secondary_capture(result, source, tmp_path / "map.dcm"))
    likely = max(result.probabilities, key=lambda name: result.probabilities[name])
    assert new.SeriesDescription == f"medtl heat map: {likely}"


def test_pixels_of_an_odd_number_of_bytes_are_padded(changed: Changed, tmp_path: Path) -> None:
    source = changed("CT_small.dcm")
    result = predictor(side=385)(source)
    new = pydicom.dcmread(write_secondary_capture(result, source, tmp_path / "map.dcm"))
    assert new.pixel_array.shape == (385, 385, 3)
    assert len(new.PixelData) == 385 * 385 * 3 + 1


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_an_image_that_nothing_can_refer_to_is_refused(
    changed: Changed, tmp_path: Path, keyword: str
) -> None:
    source = changed("CT_small.dcm", **{keyword: None})
    with pytest.raises(ScanUnfit) as error:
        write_secondary_capture(predictor()(source), source, tmp_path / "map.dcm")
    assert error.value.attribute == keyword
    assert list(tmp_path.iterdir()) == []


def test_the_header_of_another_image_is_refused(shipped: Path, tmp_path: Path) -> None:
    result = predictor()(shipped / "CT_small.dcm")
    other = pydicom.dcmread(shipped / "MR_small.dcm")
    with pytest.raises(ScanUnfit, match="SOPInstanceUID is missing, or is of another image"):
        write_secondary_capture(result, other, tmp_path / "map.dcm")


def test_an_image_that_is_not_dicom_is_refused(tmp_path: Path) -> None:
    result = predictor()(np.zeros((16, 16), np.uint8))
    with pytest.raises(ScanUnfit, match="only be written for a DICOM image"):
        write_secondary_capture(result, Dataset(), tmp_path / "map.dcm")


def test_an_existing_file_is_kept_unless_it_may_be_overwritten(
    changed: Changed, tmp_path: Path
) -> None:
    source = changed("CT_small.dcm")
    result, path = predictor()(source), tmp_path / "map.dcm"
    write_secondary_capture(result, source, path)
    first = path.read_bytes()
    with pytest.raises(OutputExists):
        write_secondary_capture(result, source, path)
    assert path.read_bytes() == first
    write_secondary_capture(result, source, path, overwrite=True)
    assert path.read_bytes() != first


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed")
@pytest.mark.parametrize("name", CLEAN)
def test_an_independent_checker_finds_no_error(shipped: Path, tmp_path: Path, name: str) -> None:
    source = pydicom.dcmread(shipped / name)
    result = next(predictor(classes=("正常", "lesion")).frames(source))
    path = write_secondary_capture(result, source, tmp_path / "map.dcm")
    checked = subprocess.run(
        ["dciodvfy", "-new", path], capture_output=True, text=True, check=False
    )
    lines = checked.stderr.splitlines()
    assert "SCImage" in lines
    assert [line for line in lines if line.startswith("Error")] == []
