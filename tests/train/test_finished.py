"""A finished run is read again exactly as it was trained on."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medtl_train import checkpoint as checkpoints
from medtl_train.config import TrainConfig
from medtl_train.console import Reporter
from medtl_train.data.samples import SPLITS
from medtl_train.finished import read_config, read_dataset, read_images, read_summary
from medtl_train.run import prepare, train

Tiny = Callable[..., TrainConfig]


def test_the_data_are_those_that_training_saw_in_the_same_order(
    finished: Path, lung: Path, tiny: Tiny
) -> None:
    first = prepare(lung, tiny(epochs=2), Reporter(quiet=True))
    about, summary = checkpoints.load_run(finished).about, read_summary(finished)
    again = read_dataset(finished, about, summary)
    assert read_config(finished, summary) == tiny(epochs=2)
    assert (again.classes, again.recipe) == (first.classes, first.recipe)
    assert again.fingerprint == first.fingerprint
    assert (again.excluded, again.patients_known) == (first.excluded, first.patients_known)
    for name in ("train", "val", "test"):
        one, other = first.split(name), again.split(name)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.patients, other.patients)
        assert one.sources == other.sources


def test_some_of_a_split_can_be_read(finished: Path) -> None:
    about = checkpoints.load_run(finished).about
    some = read_images(finished, "train", about, at_most=4)
    assert len(some) == 4
    assert {image.sample.label for image in some} == set(about.classes)


def test_a_relative_archive_without_patients_is_found_from_elsewhere(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 8), ("val", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 32, 32), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.tile([0, 1], count // 2)
    np.savez(tmp_path / "few.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    train(Path("few.npz"), Path("run"), tiny(), device=torch.device("cpu"))
    monkeypatch.chdir(os.sep)
    run = tmp_path / "run"
    again = read_dataset(run, checkpoints.load_run(run).about, read_summary(run))
    counts = {name: len(again.images[name]) for name in SPLITS}
    assert counts == {"train": 8, "val": 4, "test": 0, "external": 0}
    assert not again.patients_known
