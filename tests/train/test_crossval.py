"""Cross-validation: every image is tested once, by a network that has not seen its patient."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from medtl_runtime.errors import OutputExists
from medtl_train.config import TrainConfig
from medtl_train.crossval import cross_validate
from medtl_train.errors import RunUnfit
from medtl_train.finished import read_summary

CPU = torch.device("cpu")
Tiny = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def folds(lung: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what a cross-validation with two folds wrote."""
    folder = tmp_path_factory.mktemp("runs") / "folds"
    cross_validate(lung, folder, tiny(folds=2), device=CPU)
    return folder


def test_every_image_is_tested_once(folds: Path, lung: Path) -> None:
    rows = pl.read_parquet(folds / "predictions.parquet")
    tested = Counter(rows["source"].to_list())
    assert set(tested.values()) == {1}
    assert len(tested) == len(list(lung.rglob("*.dcm")))


def test_no_patient_is_tested_by_a_network_that_saw_it(folds: Path) -> None:
    for number in ("1", "2"):
        rows = pl.read_csv(folds / "folds" / number / "splits.csv")
        by_split = {split: set(some["patient"]) for (split,), some in rows.group_by("split")}
        assert not by_split["test"] & (by_split["train"] | by_split["val"])


def test_the_figures_are_of_the_images_of_all_folds(folds: Path) -> None:
    summary = read_summary(folds)
    own = [row["test"] for row in summary["folds"]]
    assert summary["test"]["images"] == sum(one["images"] for one in own)
    (head,) = summary["heads"]
    confusion = np.array(summary["test"]["heads"][head]["confusion"])
    assert confusion.sum() == summary["test"]["images"]
    assert (folds / "report.html").is_file()
    assert not (folds / "best.pt").exists()


def test_finished_folds_stay_when_it_is_resumed(folds: Path, lung: Path, tiny: Tiny) -> None:
    before = (folds / "folds" / "1" / "best.pt").stat().st_mtime_ns
    first = read_summary(folds)
    again = cross_validate(lung, folds, tiny(folds=2), device=CPU, resume=True)
    assert (folds / "folds" / "1" / "best.pt").stat().st_mtime_ns == before
    assert again["test"] == first["test"]


def test_it_does_not_overwrite_or_resume_another(
    folds: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(OutputExists):
        cross_validate(lung, folds, tiny(folds=2), device=CPU)
    with pytest.raises(RunUnfit, match="holds no run to resume"):
        cross_validate(lung, tmp_path, tiny(folds=2), device=CPU, resume=True)
