"""What the benchmarks share: models with random weights, the machine's name, ratios of times."""

import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medtl_runtime.engines.processor import cpu_name
from medtl_runtime.pipeline import cores

CLASSES = ("negative", "positive")


def model_file(arch: str, size: int, precision: str) -> Path:
    """Return a model file of an architecture with random weights; it is made once a machine.

    Speed does not depend on what the weights are.
    """
    folder = Path(tempfile.gettempdir()) / "medtl-benchmarks"
    path = folder / f"{arch}-{size}-{precision}.onnx"
    if not path.is_file():
        _export(arch, size, precision, path)
    return path


def _export(arch: str, size: int, precision: str, path: Path) -> None:
    import torch

    from medtl_export import graph, quantise
    from medtl_models.network import Network
    from medtl_runtime.engines import Session
    from medtl_runtime.modelfile import Description, SelfTest
    from medtl_runtime.recipe import FixedWindow, Recipe
    from medtl_runtime.selftest import synthetic_image, synthetic_logits

    torch.manual_seed(0)
    recipe = Recipe(size=(size, size), channels=1, window=FixedWindow(centre=40, width=400))
    network = Network(arch, classes=2, channels=1, head="linear", dropout=0.0).eval()
    model = graph.to_onnx(network, recipe)
    if precision == "int8":
        images = np.stack([synthetic_image(seed, recipe) for seed in range(16)])
        model = quantise.quantise(model, images)
    logits = synthetic_logits(Session(model.SerializeToString(), device="cpu"), recipe, (1, 2))
    described = Description(
        name=path.stem,
        version="0",
        task="multiclass",
        classes=CLASSES,
        recipe=recipe,
        self_test=SelfTest(
            seeds=(1, 2),
            logits=tuple(tuple(map(float, row)) for row in logits),
            tolerance=0.1 * max(1.0, float(np.abs(logits).max())),
        ),
        precision=precision,
        provenance={},
        requires={},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph.described(model, described).SerializeToString())


def machine() -> str:
    """Return the processor, the cores that may be used, and the versions that matter."""
    import onnxruntime
    import pydicom

    return (
        f"{cpu_name()}, {cores()} cores, Python {platform.python_version()}, "
        f"onnxruntime {onnxruntime.__version__}, pydicom {pydicom.__version__}"
    )


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How two ways of doing a thing compare, from rounds in which both were done in turns."""

    first: float
    """Lower quartile of the first: what else the machine does can only add to it."""
    second: float
    value: float
    """second / first."""
    low: float
    high: float
    """95 % bootstrap interval of the value."""

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def compare(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Return the ratio of the lower quartiles of two series from the same rounds."""
    pairs = np.column_stack([first, second])
    drawn = np.random.default_rng(0).integers(len(pairs), size=(1000, len(pairs)))
    quartiles = np.quantile(pairs[drawn], 0.25, axis=1)
    low, high = np.quantile(quartiles[:, 1] / quartiles[:, 0], [0.025, 0.975])
    a, b = np.quantile(pairs, 0.25, axis=0)
    return Ratio(
        first=float(a), second=float(b), value=float(b / a), low=float(low), high=float(high)
    )


def ct_file(folder: Path, *, size: int = 512, seed: int = 0, compressed: bool = False) -> Path:
    """Write a CT-like image of ``size`` squared and return its path."""
    import pydicom
    from pydicom.data import get_testdata_file
    from pydicom.uid import UID

    source = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    noise = np.random.default_rng(seed)
    rows = np.linspace(-1, 1, size)
    body = (rows[:, None] ** 2 + rows[None, :] ** 2 < 0.8) * 1100
    stored = (body + noise.normal(0, 30, (size, size))).clip(0, 4095).astype(np.int16)
    source.Rows = source.Columns = size
    source.BitsStored, source.HighBit = 16, 15
    source.PixelData = stored.tobytes()
    source.SOPInstanceUID = UID(f"1.2.826.0.1.3680043.8.498.{seed + 1}.{size}")
    source.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
    if compressed:
        from pydicom.uid import JPEG2000Lossless

        source.compress(JPEG2000Lossless)
    path = folder / f"ct-{size}-{seed:05}{'-j2k' if compressed else ''}.dcm"
    source.save_as(path)
    return path


def spread(seconds: Sequence[float]) -> str:
    """Return the lower quartile and the median in milliseconds."""
    quartile = statistics.quantiles(seconds, n=4)[0]
    return f"{1000 * quartile:.2f} (median {1000 * statistics.median(seconds):.2f})"


def timed(action: Callable[[], object]) -> float:
    """Return how many seconds an action takes."""
    import time

    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def on_terminal(line: str) -> None:
    """Print progress on stderr."""
    print(line, file=sys.stderr, flush=True)
