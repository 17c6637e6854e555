"""From a scan to a finding."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medtl_runtime import Predictor
from medtl_runtime.errors import (
    ModelNotFound,
    ModelUnusable,
    ScanError,
    ScanNotFound,
    ScanOutOfScope,
    ScanUnfit,
    ScanUnreadable,
)
from medtl_runtime.modelfile import IntendedUse, OperatingPoint, file_digest
from medtl_runtime.recipe import FixedWindow, HeaderVoi, Recipe, as_batch
from medtl_runtime.testing import FakeEngine, describe

Real = Callable[[str], Path]


def brightness(images: np.ndarray) -> np.ndarray:
    """Return logits (0, mean), so that a brighter image is more positive."""
    means = images.mean(axis=(1, 2, 3))
    return np.stack([np.zeros_like(means), means], axis=1)


def test_a_path_a_data_set_and_an_array_of_one_scan_give_one_result(shipped: Path) -> None:
    path = shipped / "SC_rgb_small_odd.dcm"
    recipe = Recipe(size=(16, 16), channels=3, window=HeaderVoi())
    predictor = Predictor(engine=FakeEngine(describe(recipe=recipe)))
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    results = predictor([path, str(path), dataset, pixels])
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result.logits, results[0].logits)
        np.testing.assert_array_equal(result.canonical.pixels, results[0].canonical.pixels)
    assert [r.scan for r in results] == [str(path), str(path), "dataset", "array"]
    uid = str(dataset.SOPInstanceUID)
    assert [r.sop_instance_uid for r in results] == [uid, uid, uid, ""]


def test_the_engine_sees_the_canonical_image_and_nothing_else(shipped: Path) -> None:
    engine = FakeEngine(describe())
    result = Predictor(engine=engine)(shipped / "MR_small.dcm")
    (batch,) = engine.batches
    np.testing.assert_array_equal(batch, as_batch([result.canonical.pixels]))
    assert batch.shape == (1, 1, 16, 16)
    assert result.canonical.voi == "header window 600/1600 LINEAR"


def test_a_list_gives_a_list_and_a_tuple_too() -> None:
    predictor = Predictor(engine=FakeEngine(describe()))
    image = np.zeros((8, 8), np.uint8)
    assert predictor([]) == []
    assert len(predictor([image])) == 1
    assert len(predictor((image, image))) == 2


def test_a_file_of_several_frames_needs_frames(cine: Path) -> None:
    predictor = Predictor(engine=FakeEngine(describe()))
    with pytest.raises(ScanUnfit, match=r"15 frames; expected 1 \(Predictor.frames handles"):
        predictor(cine)
    results = list(predictor.frames(cine, name="dose"))
    assert [result.frame for result in results] == list(range(15))
    assert {result.scan for result in results} == {"dose"}
    assert len({result.canonical.pixels.tobytes() for result in results}) > 1


def test_frames_before_a_damaged_one_are_yielded(shipped: Path) -> None:
    dataset = pydicom.dcmread(shipped / "SC_rgb_rle_2frame.dcm")
    data = bytearray(dataset.PixelData)
    data[-300:] = bytes(300)
    dataset.PixelData = bytes(data)
    recipe = Recipe(size=(16, 16), channels=3, window=HeaderVoi())
    found = Predictor(engine=FakeEngine(describe(recipe=recipe))).frames(dataset)
    assert next(found).frame == 0
    with pytest.raises(ScanError):
        next(found)


def test_dicom_without_a_modality_is_not_in_scope_and_a_picture_is(shipped: Path) -> None:
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    del dataset.Modality
    described = describe(intended_use=IntendedUse(modalities=("MR",)))
    predictor = Predictor(engine=FakeEngine(described))
    with pytest.raises(ScanOutOfScope, match="Modality is missing; the model was made for MR"):
        predictor(dataset)
    assert predictor(np.zeros((8, 8), np.uint8)).finding in described.classes


def test_a_modality_out_of_scope_is_refused_before_the_pixels_are_decoded(shipped: Path) -> None:
    engine = FakeEngine(describe(intended_use=IntendedUse(modalities=("CT", "PT"))))
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    dataset.PixelData = b""
    with pytest.raises(ScanOutOfScope) as error:
        Predictor(engine=engine)(dataset)
    assert error.value.reason == "Modality is MR; the model was made for CT, PT"
    assert engine.batches == []


def test_a_modality_in_scope_and_an_unknown_one_are_taken(shipped: Path) -> None:
    engine = FakeEngine(describe(intended_use=IntendedUse(modalities=("MR",))))
    predictor = Predictor(engine=engine)
    predictor(shipped / "MR_small.dcm")
    predictor(np.zeros((8, 8), np.uint8))
    assert len(engine.batches) == 2


def test_the_result_in_json_is_complete_and_plain(tiny_model: Path, shipped: Path) -> None:
    result = Predictor(tiny_model, device="cpu", threads=1)(shipped / "MR_small.dcm")
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data.pop("scan").endswith("MR_small.dcm")
    assert data.pop("engine").startswith("ONNX Runtime")
    times = data.pop("milliseconds")
    assert set(times) == {"read", "prepare", "run"}
    assert all(0 <= ms < 60_000 for ms in times.values())
    chances = data.pop("probabilities")
    assert set(chances) == {"dark", "bright"}
    assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
    assert max(chances, key=chances.__getitem__) == data["finding"]
    logits = data.pop("logits")
    assert logits == pytest.approx(result.logits.tolist(), abs=1e-5)
    assert data == {
        "frame": 0,
        "sop_instance_uid": "1.3.6.1.4.1.5962.1.1.4.1.1.20040826185059.5457",
        "status": "ok",
        "finding": "dark",
        "voi": "header window 600/1600 LINEAR",
        "model": {
            "name": "tiny",
            "version": "1",
            "precision": "fp32",
            "digest": file_digest(tiny_model),
        },
    }


def test_maps_and_embedding_are_those_of_the_image(shipped: Path) -> None:
    result = Predictor(engine=FakeEngine(describe()))(shipped / "MR_small.dcm")
    assert result.cam.shape == (2, 4, 4)
    np.testing.assert_allclose(result.cam.mean(axis=(1, 2)), result.logits, atol=1e-6)
    image = as_batch(result.canonical.pixels)
    np.testing.assert_allclose(
        result.embedding, [image.mean(), image.std(), image.min(), image.max()], atol=1e-5
    )


@pytest.mark.parametrize(
    ("threshold", "finding"), [(0.5, "positive"), (0.7, "positive"), (0.74, "negative")]
)
def test_the_stored_operating_point_decides(threshold: float, finding: str) -> None:
    point = OperatingPoint(rule="threshold", positive="positive", threshold=threshold)
    engine = FakeEngine(describe(operating_point=point), brightness)
    result = Predictor(engine=engine)(np.full((8, 8), 255, np.uint8))
    assert result.probabilities["positive"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    assert result.finding == finding


def test_a_low_threshold_finds_what_argmax_does_not() -> None:
    image = np.zeros((8, 8), np.uint8)
    logits = np.array([[1.0, 0.0]])
    point = OperatingPoint(rule="threshold", positive="positive", threshold=0.2)
    by_argmax = Predictor(engine=FakeEngine(describe(), lambda _: logits))(image)
    by_threshold = Predictor(engine=FakeEngine(describe(operating_point=point), lambda _: logits))(
        image
    )
    assert (by_argmax.finding, by_threshold.finding) == ("negative", "positive")
    assert by_argmax.probabilities == by_threshold.probabilities


def test_the_temperature_calibrates_the_probabilities_and_not_the_logits() -> None:
    image = np.full((8, 8), 255, np.uint8)
    result = Predictor(engine=FakeEngine(describe(temperature=0.5), brightness))(image)
    assert result.logits.tolist() == [0, 1]
    assert result.probabilities["positive"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_gives_no_number_gives_no_finding(value: float) -> None:
    """With a threshold, NaN would read as negative."""
    point = OperatingPoint(rule="threshold", positive="positive", threshold=0.5)
    engine = FakeEngine(describe(operating_point=point), lambda _: np.array([[0.0, value]]))
    with pytest.raises(ModelUnusable, match="logits for array are not finite on fake engine"):
        Predictor(engine=engine)(np.zeros((8, 8), np.uint8))


def test_scans_that_do_not_fit_are_refused_by_name(shipped: Path, tmp_path: Path) -> None:
    fixed = Recipe(size=(16, 16), channels=1, window=FixedWindow(centre=40, width=400))
    engine = FakeEngine(describe(recipe=fixed))
    predictor = Predictor(engine=engine)
    with pytest.raises(ScanUnfit, match=r"SC_rgb_rle\.dcm: "):
        predictor(shipped / "SC_rgb_rle.dcm")
    with pytest.raises(ScanUnfit, match="array: "):
        predictor(np.zeros((8, 8), np.uint8))
    with pytest.raises(ScanUnreadable, match="NaN"):
        predictor(np.full((8, 8), np.nan))
    with pytest.raises(ScanNotFound):
        predictor(tmp_path / "nothing.dcm")
    assert engine.batches == []


def test_a_model_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such model file"):
        Predictor(tmp_path / "nothing.onnx")


def test_a_given_engine_needs_no_model_file_and_has_no_digest() -> None:
    predictor = Predictor(engine=FakeEngine(describe(name="mine", version="3")))
    assert predictor.model == {
        "name": "mine",
        "version": "3",
        "precision": "fp32",
        "digest": "none",
    }
