"""Weights are found before any image is read, or a line says what is missing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medtl_runtime.errors import UsageError
from medtl_train import checkpoint as checkpoints
from medtl_train.config import NetworkConfig, TrainConfig
from medtl_train.errors import RunUnfit
from medtl_train.run import train
from medtl_train.start import find_origins


def test_without_a_word_it_is_resnet18_from_imagenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints_folder = tmp_path / "hub" / "checkpoints"
    checkpoints_folder.mkdir(parents=True)
    (checkpoints_folder / "resnet18-f37072fd.pth").write_bytes(b"later")
    (origin,) = find_origins(NetworkConfig(offline=True))
    assert (origin.arch, origin.weights, origin.run) == ("resnet18", "imagenet", None)


def test_another_run_gives_its_architecture(finished: Path) -> None:
    (origin,) = find_origins(NetworkConfig(from_run=(str(finished),)))
    assert origin.arch == "squeezenet1_1"
    assert origin.run is not None
    assert origin.run.about == checkpoints.load_run(finished).about
    (same,) = find_origins(NetworkConfig(from_run=(str(finished),), arch="squeezenet1_1"))
    assert same.arch == "squeezenet1_1"


def test_another_architecture_than_the_runs_is_refused(finished: Path) -> None:
    with pytest.raises(RunUnfit, match="is a squeezenet1_1, not a vgg16"):
        find_origins(NetworkConfig(from_run=(str(finished),), arch="vgg16"))


def test_a_file_of_weights_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.pth: expected imagenet, none or a file"):
        find_origins(NetworkConfig(weights=str(tmp_path / "nowhere.pth")))
    (tmp_path / "here.pth").write_bytes(b"x")
    (origin,) = find_origins(NetworkConfig(weights=str(tmp_path / "here.pth")))
    assert origin.arch == "resnet18"


def test_weights_that_are_missing_are_refused_before_the_data_are_looked_at(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny(weights=str(tmp_path / "nowhere.pth"))
    with pytest.raises(UsageError, match=r"nowhere\.pth"):
        train(tmp_path / "no data", tmp_path / "run", config, device=torch.device("cpu"))
    assert not list(tmp_path.iterdir())
