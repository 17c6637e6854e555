"""The figures are those of the best checkpoint, at a threshold that only validation has seen."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medtl_runtime.calibration import (
    choose_operating_point,
    choose_temperature,
    fit_temperature,
)
from medtl_runtime.decision import probabilities
from medtl_train import checkpoint as checkpoints
from medtl_train import metrics
from medtl_train.config import TrainConfig
from medtl_train.dataset import ImageSet, image_set, read_again
from medtl_train.fit import predict_logits
from medtl_train.run import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def evaluated(
    finished: Path,
    lung: Path,
    tiny: Callable[..., TrainConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a run that was evaluated anew after another network was put into best.pt."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("evaluated") / "lung"))
    best = checkpoints.load(run / "best.pt")
    torch.manual_seed(4)
    other = best.about.build().state_dict()
    checkpoints.save(run / "best.pt", replace(best, network=other))
    train(lung, run, tiny(epochs=2), device=CPU, resume=True)
    return run


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def images_of(run: Path, split: str) -> ImageSet:
    about = checkpoints.load_run(run).about
    found, missing = read_again(run / "splits.csv", split, about.recipe)
    assert not missing
    return image_set(found, about.heads)


@pytest.mark.parametrize("which", ["finished", "evaluated"])
def test_the_figures_can_be_computed_again_from_what_was_written(
    which: str, request: pytest.FixtureRequest
) -> None:
    run: Path = request.getfixturevalue(which)
    best, summary = checkpoints.load_run(run), summary_of(run)
    splits = {name: images_of(run, name) for name in ("val", "test")}
    logits = {
        name: predict_logits(best.restore(), images.pixels, CPU) for name, images in splits.items()
    }
    temperature = summary["temperature"]
    assert temperature == pytest.approx(fit_temperature(logits["val"], splits["val"].labels))
    chances = {name: probabilities(found, temperature) for name, found in logits.items()}
    classes = best.about.classes
    point = choose_operating_point(splits["val"].labels, chances["val"], classes, "lesion")
    assert summary["operating_point"]["threshold"] == pytest.approx(point.threshold, abs=1e-6)
    for name, key in (("val", "validation"), ("test", "test")):
        scored = metrics.Scored(
            labels=splits[name].labels,
            probabilities=chances[name],
            patients=splits[name].patients,
            classes=classes,
            point=point,
        )
        expected = metrics.evaluate(scored, seed=0)
        assert summary[key]["confusion"] == expected["confusion"]
        assert (summary[key]["images"], summary[key]["patients"]) == (len(splits[name]), 4)
        for metric, found in summary[key]["metrics"].items():
            assert found == pytest.approx(expected["metrics"][metric], abs=1e-6)


def test_another_best_network_has_other_figures(finished: Path, evaluated: Path) -> None:
    assert summary_of(evaluated)["validation"] != summary_of(finished)["validation"]
    assert summary_of(evaluated)["training"]["epochs"] == 2


def test_the_report_shows_images_of_the_test_set_alone(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    names = {
        split: {Path(source).name for source in images_of(finished, split).sources}
        for split in ("train", "val", "test")
    }
    shown = {split for split in names for name in names[split] if name in page}
    assert shown == {"test"}


def test_logits_that_are_too_sure_are_cooled_and_too_unsure_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(2000, 3)).astype(np.float32)
    chances = probabilities(true, 1.0)
    labels = np.array([rng.choice(3, p=row) for row in chances])
    assert choose_temperature(4 * true, labels) == pytest.approx(4, rel=0.15)
    assert choose_temperature(true / 4, labels) == pytest.approx(0.25, rel=0.15)


def test_the_report_says_what_the_temperature_was_fitted_on(finished: Path) -> None:
    page, summary = (finished / "report.html").read_text(encoding="utf-8"), summary_of(finished)
    images = summary["validation"]["images"]
    assert f"temperature {summary['temperature']:.3f} fitted on {images} validation images" in page
