"""What a network is trained on is what it gets at the scanner, byte for byte."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medtl_runtime import Predictor
from medtl_runtime.decision import Decision, HeadDecision
from medtl_runtime.errors import ScanError
from medtl_runtime.heads import Head
from medtl_runtime.modelfile import Description, SelfTest
from medtl_runtime.recipe import FixedWindow, HeaderVoi, Recipe, as_batch
from medtl_train.config import DataConfig
from medtl_train.data.dataset import build_dataset, read_all
from medtl_train.data.labels import parse_questions
from medtl_train.data.samples import Found, Sample, find_samples

RECIPES = [
    Recipe(size=(64, 64), channels=3, window=HeaderVoi()),
    Recipe(size=(48, 48), channels=1, window=FixedWindow(centre=40, width=400), fit="crop"),
    Recipe(
        size=(40, 40),
        channels=1,
        window=HeaderVoi(fallback=FixedWindow(centre=0, width=2048)),
        kernel="lanczos",
        fit="stretch",
    ),
]


class Recorder:
    """An engine that keeps what it is given."""

    name = "recorder"

    def __init__(self, recipe: Recipe) -> None:
        self.description = Description(
            name="any",
            version="1",
            heads=(Head(name="finding", classes=("a", "b")),),
            recipe=recipe,
            self_test=SelfTest(seeds=(), logits=(), tolerance=0.0),
            decision=Decision(heads=(HeadDecision(),)),
            provenance={},
            requires={},
        )
        self.given: list[NDArray[np.float32]] = []

    def run(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        self.given.append(images)
        zeros = np.zeros((len(images), 2, 1, 1), np.float32)
        return {"logits": zeros[:, :, 0, 0], "cam": zeros, "embedding": zeros[:, :, 0, 0]}


def require_same(paths: list[Path], recipe: Recipe) -> int:
    """Compare training's reading of files with a predictor's; return how many images agree."""
    engine = Recorder(recipe)
    predictor = Predictor(engine=engine)
    images, excluded = read_all([Sample(source=str(p), labels=("a",)) for p in paths], recipe)
    trained_on = {(i.sample.source, i.frame): i.pixels for i in images}
    refused = {left.source: left.reason for left in excluded}
    refused_at_the_scanner = {}
    for path in paths:
        try:
            for result in predictor.frames(path):
                if str(path) in refused:
                    continue  # a later frame is damaged, and then none is trained on
                pixels = trained_on.pop((str(path), result.frame))
                assert pixels.tobytes() == result.canonical.pixels.tobytes()
                assert as_batch([pixels]).tobytes() == engine.given[-1].tobytes()
        except ScanError as error:
            refused_at_the_scanner[str(path)] = error.reason
    assert refused == refused_at_the_scanner
    assert not trained_on
    return len(images)


@pytest.mark.parametrize("recipe", RECIPES, ids=["colour", "window", "fallback"])
def test_pixels_of_pydicoms_files_are_the_same_in_training_and_inference(
    recipe: Recipe, pydicom_files: Path
) -> None:
    paths = [path for path in sorted(pydicom_files.iterdir()) if path.is_file()]
    assert require_same(paths, recipe) > 20


@pytest.mark.parametrize("recipe", RECIPES[:1], ids=["colour"])
def test_pixels_of_real_scans_are_the_same_in_training_and_inference(
    recipe: Recipe, real_data: Path
) -> None:
    paths = [
        path
        for path in sorted((real_data / "dicom").rglob("*"))
        if path.is_file() and path.stat().st_size < 400_000
    ]
    assert require_same(paths, recipe) > 50


@pytest.mark.parametrize("form", ["png", "npy", "npz"])
def test_pictures_and_arrays_are_the_same_in_training_and_inference(
    form: str, tmp_path: Path, write_image
) -> None:
    recipe = Recipe(size=(40, 56), channels=1, window=HeaderVoi())
    if form == "npz":
        pixels = np.random.default_rng(0).integers(0, 256, (9, 20, 28), dtype=np.uint8)
        np.savez(tmp_path / "x.npz", train_images=pixels, train_labels=np.arange(9) % 2)
        samples = list(find_samples(tmp_path / "x.npz", DataConfig()).samples)
        given = list(pixels)
    else:
        given = [write_image(tmp_path / f"{k}.{form}", k) for k in range(9)]
        samples = [Sample(source=str(path), labels=("a",)) for path in given]
    images, _ = read_all(samples, recipe)
    predictor = Predictor(engine=Recorder(recipe))
    for image, scan in zip(images, given, strict=True):
        assert image.pixels.tobytes() == predictor(scan).canonical.pixels.tobytes()


def test_the_arrays_that_a_fit_gets_are_those_pixels(pydicom_files: Path) -> None:
    names = [
        "CT_small.dcm", "MR_small.dcm", "image_dfl.dcm", "ExplVR_BigEnd.dcm", "liver_1frame.dcm",
        "693_J2KI.dcm", "SC_rgb_small_odd.dcm", "examples_palette.dcm",
    ]  # fmt: skip
    samples = [
        Sample(source=str(pydicom_files / name), labels=("ab"[k % 2],), patient=f"p{k}")
        for k, name in enumerate(names)
    ]
    recipe = RECIPES[0]
    found = Found(samples=tuple(samples), questions=parse_questions("label"))
    config = DataConfig(val_fraction=0.25, test_fraction=0.0, cache="none")
    dataset = build_dataset(found, recipe, config, seed=0)
    predictor = Predictor(engine=Recorder(recipe))
    compared = 0
    for name in ("train", "val"):
        images = dataset.split(name)
        for source, pixels in zip(images.sources, images.pixels, strict=True):
            assert pixels.tobytes() == predictor(source).canonical.pixels.tobytes()
            compared += 1
    assert compared == len(names)
    assert not dataset.excluded
