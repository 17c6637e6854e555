"""An ensemble on its way: into one file, into one smaller network, and not into --qat."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from medtl_export.run import export
from medtl_export.settings import Quantising, Settings
from medtl_runtime import Predictor
from medtl_runtime.errors import UsageError
from medtl_runtime.selftest import self_test
from medtl_train import checkpoint as checkpoints
from medtl_train.config import (
    DataConfig,
    DistilConfig,
    EnsembleConfig,
    FitConfig,
    ImageConfig,
    NetworkConfig,
    TrainConfig,
)
from medtl_train.data.listing import read_again
from medtl_train.data.samples import SPLITS
from medtl_train.distil import distil
from medtl_train.ensembles import train_ensemble
from medtl_train.finished import read_summary
from medtl_train.fitting.predict import predict_logits
from medtl_train.phantoms import write_studies

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of two small networks as one; it is not to be changed."""
    root = tmp_path_factory.mktemp("ensemble")
    write_studies(root / "liver", organ="liver", patients=24, images=1, size=64, seed=3)
    config = TrainConfig(
        data=DataConfig(val_fraction=0.3, test_fraction=0.2, cache="none"),
        image=ImageConfig(size=32, window="90,250"),
        network=NetworkConfig(arch="squeezenet1_1", weights="none"),
        fit=FitConfig(epochs=1, lr=1e-3, batch_size=8),
        ensemble=EnsembleConfig(ensemble="seeds", members=2),
    )
    train_ensemble(root / "liver", root / "runs" / "two", config, device=CPU)
    return root / "runs" / "two"


@pytest.fixture(scope="module")
def exported(ensemble: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the float file of `ensemble`."""
    path = tmp_path_factory.mktemp("models") / "two.onnx"
    export(ensemble, path, Settings())
    return path


def test_one_file_says_what_the_members_say_together(ensemble: Path, exported: Path) -> None:
    saved = checkpoints.load_run(ensemble)
    assert saved.about.members == 2
    predictor = Predictor(exported, device="cpu")
    images, missing = read_again(ensemble / "splits.csv", "val", saved.about.recipe)
    assert not missing
    assert len(images) > 3
    for image in images:
        found = predictor(image.sample.source)
        expected = predict_logits(saved.restore(), image.pixels[None], CPU)
        np.testing.assert_allclose(found.logits, expected[0], atol=1e-4)
    assert self_test(predictor.engine).difference == 0


def test_the_file_holds_the_weights_of_all_members(ensemble: Path, exported: Path) -> None:
    def count(path: Path) -> int:
        weights = onnx.load(path).graph.initializer
        return sum(int(np.prod(one.dims)) for one in weights if len(one.dims) == 4)

    network = checkpoints.load_run(ensemble / "members" / "1").restore()
    own = sum(p.numel() for p in network.parameters() if p.ndim == 4)
    assert count(exported) == pytest.approx(2 * own, rel=1e-3)


def test_integers_stay_as_near_as_those_of_one_network(ensemble: Path, tmp_path: Path) -> None:
    """By rule, so that it does not depend on the machine's speed."""
    path = tmp_path / "two.onnx"
    export(ensemble, path, Settings(target="arm", quantise=Quantising(max_drop=None)))
    description = Predictor(path, device="cpu").description
    assert description.precision == "int8"
    account = description.quantisation
    assert account is not None
    assert abs(account["difference"]["value"]) < 0.1


def test_one_network_is_not_fine_tuned_in_their_place(ensemble: Path, tmp_path: Path) -> None:
    settings = Settings(quantise=Quantising(qat=True))
    with pytest.raises(UsageError, match=r"--qat fine-tunes one network; .* an ensemble of 2"):
        export(ensemble, tmp_path / "two.onnx", settings)
    assert not list(tmp_path.iterdir())


def test_a_student_learns_from_all_of_them(ensemble: Path, tmp_path: Path) -> None:
    folder, before = tmp_path / "student", read_summary(ensemble)
    settings = DistilConfig(weights="none", epochs=2)
    summary = distil(ensemble, folder, "squeezenet1_1", settings, device=CPU)
    assert checkpoints.load_run(folder).about.members == 1
    assert summary["config"]["ensemble"] == "none"
    teacher = summary["distillation"]["teacher"]
    assert teacher["parameters"] == 2 * summary["network"]["parameters"]
    (head,) = before["test"]["heads"]
    assert teacher["test"] == {head: before["test"]["heads"][head]["metrics"]}
    assert [row["run"] for row in teacher["members"]] == ["members/1", "members/2"]
    for row, member in zip(teacher["members"], before["members"], strict=True):
        assert row["test"] == {head: member["test"]["heads"][head]["metrics"]}
    for split in SPLITS:
        assert summary["data"]["images"].get(split) == before["data"]["images"].get(split)
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name in ("two", "members/1", "members/2"):
        assert f"<code>{name}</code>" in page
