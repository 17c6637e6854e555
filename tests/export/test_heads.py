"""A run of four kinds of heads becomes a model file that answers as torch does."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medtl_export.documents import paths
from medtl_export.run import Exported, export
from medtl_export.settings import Quantising, Settings
from medtl_runtime import Predictor
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import width
from medtl_runtime.modelfile import Description
from medtl_train import checkpoint as checkpoints
from medtl_train.config import (
    DataConfig,
    FitConfig,
    ImageConfig,
    NetworkConfig,
    TrainConfig,
)
from medtl_train.fitting.predict import predict_logits
from medtl_train.run import train
from medtl_train.scoring import assessment, metrics

LABELS = "organ,oedema:binary,grade:grades,age:value=a"
NAMES = ["organ", "oedema", "grade", "age"]
COUNT = 120


@pytest.fixture(scope="module", autouse=True)
def fewer_resamples() -> Iterator[None]:
    """Spend less time; what is checked here does not hang on how many there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "assess_head", partial(assessment.assess_head, resamples=50))
        patch.setattr(metrics, "differences", partial(metrics.differences, resamples=50))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished squeezenet1_1 run of one epoch; a third of the ages is not known."""
    root = tmp_path_factory.mktemp("heads")
    rng = np.random.default_rng(0)
    rows = ["path,patient_id,organ,oedema,grade,age"]
    for number in range(COUNT):
        organ, oedema, grade = number % 3, number // 3 % 2, number // 6 % 3
        pixels = rng.integers(0, 60, (32, 32))
        pixels[8 * organ : 8 * organ + 8] += 60
        pixels[:, 24:] += 60 * oedema
        pixels += 30 * grade
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number}.png")
        age = "" if number % 3 == 0 else 40 + 15 * grade + rng.normal(0, 2)
        rows.append(f"{number}.png,p{number},{'abc'[organ]},{oedema},{grade + 1},{age}")
    (root / "images.csv").write_text("\n".join(rows))
    config = TrainConfig(
        data=DataConfig(label_column=LABELS, val_fraction=0.4, near_duplicates="keep"),
        image=ImageConfig(size=32),
        network=NetworkConfig(arch="squeezenet1_1", weights="none"),
        fit=FitConfig(epochs=1, mode="all", batch_size=16),
    )
    train(root / "images.csv", root / "run", config, device=torch.device("cpu"))
    return root / "run"


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    path = tmp_path_factory.mktemp("models") / "four.onnx"
    return export(run, path, Settings(error_rate=0.2))


@pytest.fixture(scope="module")
def quantised(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return an int8 file; for ARM, so that it does not depend on this machine's speed."""
    path = tmp_path_factory.mktemp("models") / "four.onnx"
    settings = Settings(target="arm", quantise=Quantising(max_drop=None, calibration_images=32))
    return export(run, path, settings)


def described(made: Exported) -> Description:
    return Predictor(made.path, device="cpu").description


@pytest.mark.parametrize("name", ["exported", "quantised"])
def test_the_file_describes_its_heads_and_their_decisions(
    run: Path, name: str, request: pytest.FixtureRequest
) -> None:
    found = described(request.getfixturevalue(name))
    summary = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert [head.name for head in found.heads] == NAMES
    assert found.heads == checkpoints.load_run(run).about.heads
    for head, own in zip(found.heads, found.decision.heads, strict=True):
        assert own.temperature == summary["heads"][head.name]["temperature"]
        assert own.operating_point.rule == summary["heads"][head.name]["operating_point"]["rule"]
    rules = [own.operating_point.rule for own in found.decision.heads]
    assert rules == ["argmax", "threshold", "median", "value"]
    assert found.precision == {"exported": "fp32", "quantised": "int8"}[name]
    assert np.shape(found.self_test.logits) == (4, width(found.heads))


def test_the_runtime_answers_as_torch_does(run: Path, exported: Exported) -> None:
    checkpoint = checkpoints.load_run(run)
    predictor = Predictor(exported.path, device="cpu", refuse_novel=False)
    for number in range(5):
        result = predictor(run.parent / f"{number}.png")
        pixels = result.canonical.pixels[None]
        (logits,) = predict_logits(checkpoint.restore(), pixels, torch.device("cpu"))
        np.testing.assert_allclose(result.logits, logits, atol=1e-4)
        age = checkpoint.about.heads[3]
        assert result.answers["age"].value == pytest.approx(age.values(logits[-1:]), abs=0.01)
        assert result.answers["age"].unit == "a"


def test_an_error_rate_is_of_triage_and_of_intervals(exported: Exported) -> None:
    *classes, age = exported.decision.heads
    assert all(own.triage is not None and own.triage.error_rate == 0.2 for own in classes)
    assert age.interval is not None
    assert age.interval.coverage == pytest.approx(0.8)
    assert age.interval.images < exported.parity.images  # not every age is known


def test_the_interval_holds_the_known_values_of_the_validation_images(
    run: Path, exported: Exported
) -> None:
    from medtl_export.source import read_source

    source = read_source(run, lambda _: None)
    predictor = Predictor(exported.path, device="cpu", refuse_novel=False)
    results = [predictor(one) for one in source.val.sources]
    covered = []
    for one, age in zip(results, source.val.targets[:, 3], strict=True):
        interval = one.answers["age"].interval
        assert interval is not None
        if not np.isnan(age):
            covered.append(interval.low <= age <= interval.high)
    assert np.mean(covered) >= 0.8


def test_the_int8_file_accounts_for_each_head(quantised: Exported) -> None:
    account = quantised.account
    assert account is not None
    assert list(account["accuracy"]["chosen"]) == NAMES
    assert "r2" in account["accuracy"]["chosen"]["age"]
    assert account["head"] in NAMES
    assert account["not_judged"] == []
    assert {row["reason"] for row in account["kept_in_float"]} == {"head"}
    assert account["difference"]["low"] <= account["difference"]["value"]


@pytest.mark.parametrize("name", ["exported", "quantised"])
def test_documents_tell_of_every_head(name: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(name)
    report, card, document, _ = paths(made.path)
    for text in (report.read_text(encoding="utf-8"), card.read_text(encoding="utf-8")):
        assert all(head in text for head in NAMES)
    heads = json.loads(document.read_text(encoding="utf-8"))["model"]["heads"]
    assert [head["name"] for head in heads] == NAMES


def test_the_file_tells_no_least_and_greatest_value(run: Path, exported: Exported) -> None:
    counted = described(exported).provenance["targets"]["train"]["age"]
    assert set(counted) == {"median", "unknown"}
    known = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert "high" in known["data"]["targets"]["train"]["age"]


def test_rates_that_a_head_cannot_hold_are_refused_before_tracing(
    run: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    with pytest.raises(UsageError, match=r"--error-rate 0\.01 takes 99"):
        export(run, tmp_path / "m.onnx", Settings(error_rate=0.01), note=told.append)
    assert "tracing" not in told
