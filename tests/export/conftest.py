"""A real, tiny training run to export from."""

from pathlib import Path

import pytest
import torch

from medtl_train.config import (
    DataConfig,
    FitConfig,
    ImageConfig,
    NetworkConfig,
    TrainConfig,
)
from medtl_train.phantoms import write_studies
from medtl_train.run import train


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished resnet18 run on 64 phantom images of 64 x 64 pixels."""
    root = tmp_path_factory.mktemp("export")
    write_studies(root / "liver", organ="liver", patients=32, images=2, size=64, seed=3)
    config = TrainConfig(
        data=DataConfig(val_fraction=0.3, test_fraction=0.2),
        image=ImageConfig(size=64, window="90,250"),
        network=NetworkConfig(arch="resnet18", weights="none"),
        fit=FitConfig(epochs=2, lr=1e-3, batch_size=16),
    )
    train(root / "liver", root / "runs" / "liver", config, device=torch.device("cpu"))
    return root / "runs" / "liver"
