"""The figures are those of the best checkpoint, at a threshold that only validation has seen."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from medtl_runtime.calibration import (
    Criterion,
    choose_operating_point,
    choose_temperature,
    fit_temperature,
)
from medtl_runtime.decision import OperatingPoint, probabilities
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head, columns_of, width
from medtl_train import checkpoint as checkpoints
from medtl_train.config import EvaluationConfig, TrainConfig
from medtl_train.data.images import ImageSet, image_set
from medtl_train.data.listing import read_again
from medtl_train.evaluation import predictions
from medtl_train.evaluation.evaluate import fit_decisions, require_effect
from medtl_train.fitting.predict import predict_logits
from medtl_train.run import train
from medtl_train.scoring.assessment import assess
from medtl_train.scoring.metrics import measure
from medtl_train.scoring.scored import score

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
    heads = best.about.heads
    (head,) = heads
    splits = {name: images_of(run, name) for name in ("val", "test")}
    logits = {
        name: predict_logits(best.restore(), images.pixels, CPU) for name, images in splits.items()
    }
    described = summary["heads"][head.name]
    temperature = described["temperature"]
    assert temperature == pytest.approx(fit_temperature(logits["val"], splits["val"].labels))
    chances = probabilities(logits["val"], temperature)
    point = choose_operating_point(splits["val"].labels, chances, head.classes, "lesion")
    assert described["operating_point"]["threshold"] == pytest.approx(point.threshold, abs=1e-6)
    assert (described["kind"], described["positive"]) == ("multiclass", "lesion")
    for name, key in (("val", "validation"), ("test", "test")):
        images = splits[name]
        answers = score(
            heads,
            logits[name],
            images.targets,
            images.patients,
            temperatures={head.name: temperature},
            points={head.name: point},
        )
        expected = assess(answers, images.patients, seed=0)["heads"][head.name]
        found = summary[key]["heads"][head.name]
        assert found["confusion"] == expected["confusion"]
        assert (summary[key]["images"], summary[key]["patients"]) == (len(images), 4)
        for metric, estimate in found["metrics"].items():
            assert estimate == pytest.approx(expected["metrics"][metric], abs=1e-6)


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
    ((_, head),) = summary["heads"].items()
    assert f"temperature {head['temperature']:.3f} fitted on {images} validation images" in page


def test_the_predictions_are_those_that_the_figures_were_made_from(finished: Path) -> None:
    summary, about = summary_of(finished), checkpoints.load_run(finished).about
    (head,) = about.heads
    point = OperatingPoint(**summary["heads"][head.name]["operating_point"])
    for split in ("validation", "test"):
        rows = predictions.read(finished, split, about.heads)
        answers = predictions.answers_of(rows, head, point)
        found = summary[split]["heads"][head.name]["metrics"]
        for name, value in measure(answers).items():
            assert found[name]["value"] == pytest.approx(value)
    digests = {row["digest"] for row in read_rows(finished) if row["split"] == "test"}
    assert set(predictions.read(finished, "test", about.heads)["digest"]) == digests


def read_rows(run: Path) -> list[dict[str, str]]:
    with (run / "splits.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- what is fitted on validation ----------------------------------------------------------------

HEADS = (
    Head(name="edema", kind="binary", classes=("absent", "present")),
    Head(name="finding", classes=("healthy", "lesion")),
    Head(name="stage", kind="ordinal", classes=("0", "1", "2")),
    Head(name="age", kind="regression", mean=50, std=10),
)


def drawn(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are twice too large, and targets of `HEADS`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, width(HEADS)))
    columns = {h.name: logits[:, c] for h, c in zip(HEADS, columns_of(HEADS), strict=True)}
    targets = [
        [rng.choice(len(head.classes), p=p) for p in head.probabilities(columns[head.name])]
        for head in HEADS[:3]
    ]
    ages = rng.normal(50, 10, n)
    return 2 * logits, np.column_stack([*targets, ages]).astype(float)


def test_each_head_has_its_temperature_and_its_operating_point() -> None:
    logits, targets = drawn()
    found = fit_decisions(HEADS, logits, targets, criterion=Criterion(), positive="healthy")
    assert [found.temperatures[name] for name in ("edema", "finding", "stage")] == pytest.approx(
        [2, 2, 2], rel=0.3
    )
    assert found.temperatures["age"] == 1
    rules = {name: point.rule for name, point in found.points.items()}
    assert rules == {
        "edema": "threshold", "finding": "threshold", "stage": "median", "age": "value"
    }  # fmt: skip
    assert (found.points["edema"].positive, found.points["finding"].positive) == (
        "present",
        "healthy",
    )


def test_the_operating_point_is_chosen_for_what_was_asked() -> None:
    logits, targets = drawn()
    criterion = EvaluationConfig(operating_point="sensitivity=0.9").criterion()
    found = fit_decisions(HEADS, logits, targets, criterion=criterion, positive=None)
    answers = score(
        HEADS, logits, targets, np.arange(400).astype(str),
        temperatures=found.temperatures, points=found.points,
    )  # fmt: skip
    for name in ("edema", "finding"):
        assert 0.9 <= measure(answers[name])["recall"] < 0.93
        assert "sensitivity of at least 0.9" in found.points[name].chosen


@pytest.mark.parametrize("known", [0.0, np.nan])
def test_validation_images_of_one_class_leave_the_more_probable_class(known: float) -> None:
    logits, targets = drawn(30)
    targets[:, 0] = known
    found = fit_decisions(HEADS, logits, targets, criterion=Criterion(), positive=None)
    assert (found.points["edema"].threshold, found.points["edema"].positive) == (0.5, "present")
    assert "one class" in found.points["edema"].chosen


def test_a_cost_moves_the_threshold() -> None:
    logits, targets = drawn()
    thresholds = [
        fit_decisions(
            HEADS, logits, targets, criterion=Criterion.parse(text), positive=None
        ).points["edema"].threshold
        for text in ("cost=10:1", "cost=1:10")
    ]  # fmt: skip
    assert thresholds[0] < 0.4 < 0.6 < thresholds[1]


@pytest.mark.parametrize("text", ["best", "sensitivity", "sensitivity=2", "cost=1"])
def test_an_operating_point_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--operating-point"):
        EvaluationConfig(operating_point=text)


def test_an_operating_point_without_two_classes_is_refused() -> None:
    asked = EvaluationConfig(operating_point="sensitivity=0.9")
    require_effect(asked, HEADS)
    require_effect(EvaluationConfig(), HEADS[2:])
    with pytest.raises(UsageError, match=r"--operating-point sensitivity=0\.9 has no effect"):
        require_effect(asked, HEADS[2:])


# --- a run with several heads --------------------------------------------------------------------


@pytest.fixture(scope="module")
def four_heads(
    lung: Path, tiny: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a run with a head of each kind, some targets unknown, and covariates."""
    folder = tmp_path_factory.mktemp("several")
    rng = np.random.default_rng(0)
    paths = sorted(lung.rglob("*.dcm"))
    rows = ["path,edema,organ,stage,age,sex,site"]
    for number, path in enumerate(paths):
        edema = "" if number % 7 == 0 else int(path.parent.name == "lesion")
        organ, stage = ("liver", "lung", "spleen")[number % 3], number // 2 % 4
        age, sex, site = rng.normal(50, 10), "FM"[number // 2 % 2], "ab"[number // 4 % 2]
        rows.append(f"{path},{edema},{organ},{stage},{age:.1f},{sex},{site}")
    (folder / "data.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    columns = "edema:binary,organ,stage:grades,age:value=a"
    config = tiny(label_column=columns, covariates="sex,site", epochs=1)
    train(folder / "data.csv", folder / "run", config, device=CPU)
    return folder / "run"


def test_every_head_is_evaluated_and_reported(four_heads: Path) -> None:
    summary = summary_of(four_heads)
    kinds = {name: head["kind"] for name, head in summary["heads"].items()}
    assert kinds == {
        "edema": "binary", "organ": "multiclass", "stage": "ordinal", "age": "regression"
    }  # fmt: skip
    found = summary["test"]["heads"]
    assert list(found) == list(kinds)
    assert found["edema"]["images"] < found["organ"]["images"] == summary["test"]["images"]
    assert found["age"]["metrics"]["mae"]["value"] > 0
    assert np.shape(found["stage"]["confusion"]) == (4, 4)
    targets = summary["data"]["targets"]["test"]
    known = sum(targets["edema"]["counts"].values())
    assert known == found["edema"]["images"]
    assert known + targets["edema"]["unknown"] == summary["test"]["images"]
    rows = summary["subgroups"]["test"]["edema"]
    assert {(row["attribute"], row["value"]) for row in rows} >= {("sex", "F"), ("sex", "M")}
    page = (four_heads / "report.html").read_text(encoding="utf-8")
    assert all(f">{name}</h2>" in page for name in kinds)


def test_predictions_of_every_head_are_kept(four_heads: Path) -> None:
    heads = checkpoints.load_run(four_heads).about.heads
    rows = predictions.read(four_heads, "test", heads)
    assert rows["target(edema)"].null_count() > 0
    assert rows["value(age)"].is_not_null().all()
    sums = rows.select(pl.sum_horizontal(predictions.answer_columns(heads[2])))
    np.testing.assert_allclose(sums.to_numpy(), 1)
