"""Data on disk in the forms that medtl-train takes, and small configurations."""

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from medtl_train.config import AugmentConfig, TrainConfig
from medtl_train.options import config_from, flat
from medtl_train.phantoms import write_studies
from medtl_train.run import train

STILL = {
    "rotation": 0.0, "shift": 0.0, "scale": 0.0, "shear": 0.0, "crop": 0.0, "brightness": 0.0,
    "contrast": 0.0, "gamma": 0.0, "noise": 0.0, "blur": 0.0,
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are faster so, above all where other programs compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def lung(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return phantom CT of 24 patients with two images each, a folder per class."""
    folder = tmp_path_factory.mktemp("data") / "lung"
    write_studies(folder, organ="lung", patients=24, images=2, size=64)
    return folder


@pytest.fixture(scope="session")
def pydicom_files() -> Path:
    """Return the folder of the real DICOM files that pydicom ships."""
    return Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real material beside the repository, where there is one."""
    folder = Path(__file__).parents[2].resolve().parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real material beside the repository is not here")
    return folder


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TrainConfig]:
    """Return a maker of configurations that train in a second; arguments are options by name."""

    def make(**options: Any) -> TrainConfig:
        given = {
            "size": 32,
            "arch": "squeezenet1_1",
            "weights": "none",
            "epochs": 1,
            "batch_size": 16,
            "lr": 1e-3,
            "offline": True,
        }
        return config_from({**flat(TrainConfig()), **given, **options})

    return make


@pytest.fixture(scope="session")
def finished(
    lung: Path, tiny: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a run of ``tiny(epochs=2)`` on ``lung``; it is not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "lung"
    train(lung, folder, tiny(epochs=2), device=torch.device("cpu"))
    return folder


@pytest.fixture(scope="session")
def still() -> Callable[..., AugmentConfig]:
    """Return a maker of augmentations that change nothing but what is named."""

    def make(**changes: Any) -> AugmentConfig:
        return replace(AugmentConfig(**STILL), **changes)

    return make


@pytest.fixture(scope="session")
def disk_of() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which no file grows beyond a size: writing fails as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def write_image() -> Callable[..., Path]:
    """Return a function that writes an image of its own for each seed, PNG or NPY by its name."""

    def write(path: Path, seed: int, *, colour: bool = False, side: int = 16) -> Path:
        rng = np.random.default_rng(seed)
        shape = (side, side, 3) if colour else (side, side)
        values = rng.integers(0, 256, shape, dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, values)
        else:
            Image.fromarray(values).save(path)
        return path

    return write
