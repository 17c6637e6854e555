"""What the benchmarks share: models, engines, the machine's name, statistics, commands, tables."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.engines.processor import cpu_name
from medtl_runtime.modelfile import SCHEMA_VERSION
from medtl_runtime.pipeline import cores

CLASSES = ("negative", "positive")


def model_file(arch: str, size: int, precision: str) -> Path:
    """Return a model file of an architecture with random weights; it is made once a machine.

    Speed does not depend on what the weights are.
    """
    folder = Path(tempfile.gettempdir()) / f"medtl-benchmarks-{SCHEMA_VERSION}"
    path = folder / f"{arch}-{size}-{precision}.onnx"
    if not path.is_file():
        _export(arch, size, precision, path)
    return path


def _export(arch: str, size: int, precision: str, path: Path) -> None:
    import torch

    from medtl_export import graph
    from medtl_models.network import Network
    from medtl_runtime.decision import plain_decision
    from medtl_runtime.engines import Session
    from medtl_runtime.heads import Head
    from medtl_runtime.modelfile import Description, SelfTest
    from medtl_runtime.recipe import FixedWindow, Recipe
    from medtl_runtime.selftest import synthetic_image, synthetic_logits

    torch.manual_seed(0)
    recipe = Recipe(size=(size, size), channels=1, window=FixedWindow(centre=40, width=400))
    network = Network(arch, logits=2, channels=1, head="linear", dropout=0.0).eval()
    model = graph.to_onnx(network, recipe)
    if precision == "int8":
        model = _in_integers(model, np.stack([synthetic_image(seed, recipe) for seed in range(16)]))
    logits = synthetic_logits(Session(model.SerializeToString(), device="cpu"), recipe, (1, 2))
    heads = (Head(name="label", classes=CLASSES),)
    described = Description(
        name=path.stem,
        version="0",
        heads=heads,
        decision=plain_decision(heads),
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


def _in_integers(model: Any, pixels: NDArray[np.uint16]) -> Any:
    """Return a graph with all but its head in integers, whatever that does to its accuracy."""
    from medtl_export.graph import head_nodes
    from medtl_export.qdq import Format, Plan, lay_out, write
    from medtl_export.ranges import collect, ranges_of
    from medtl_export.topology import Topology

    topology = Topology(model)
    plan = Plan(form=Format(), in_float=frozenset(head_nodes(model)))
    spreads = collect(model, lay_out(topology, plan).quantised, pixels)
    return write(topology, model, plan, ranges_of(spreads, "min-max"))


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


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A measure's difference between two networks on the same images."""

    value: float
    low: float
    """Lower end of the 95 % paired bootstrap interval."""


def auroc(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean AUROC of each class against the rest, for images of given weights.

    Parameters
    ----------
    probabilities
        N x K.
    labels
        Indices of classes, N.
    weights
        D x N: a draw of the bootstrap is how often it draws each image.
    """
    found = []
    for index in range(probabilities.shape[1]):
        its, scores = labels == index, probabilities[:, index]
        wins = np.sign(scores[its][:, None] - scores[~its]) / 2 + 0.5
        inside, outside = weights[:, its], weights[:, ~its]
        won = ((inside @ wins) * outside).sum(axis=1)
        found.append(won / (inside.sum(axis=1) * outside.sum(axis=1)))
    return np.mean(found, axis=0)


def auroc_difference(given: np.ndarray, other: np.ndarray, labels: np.ndarray) -> Difference:
    """Return the AUROC of other probabilities less that of the given ones, both N x K."""
    count = len(labels)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=1000)
    weights = np.concatenate([np.ones((1, count)), drawn])  # first the images as they are
    differences = auroc(other, labels, weights) - auroc(given, labels, weights)
    return Difference(
        value=float(differences[0]), low=float(np.nanquantile(differences[1:], 0.025))
    )


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that has ended."""

    seconds: float
    peak_mib: float
    """Largest resident memory of its process."""
    error: str
    """The last line on stderr if it failed, else empty."""


def finished(command: Sequence[str]) -> Finished:
    """Run a command; what it prints is left out."""
    started = time.perf_counter()
    child = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )
    assert child.stderr is not None
    lines = child.stderr.read().decode(errors="replace").strip().splitlines()
    _, status, usage = os.wait4(child.pid, 0)
    return Finished(
        seconds=time.perf_counter() - started,
        peak_mib=usage.ru_maxrss / 1024,
        error=(lines or [f"status {status}"])[-1] if status else "",
    )


Network = Callable[[np.ndarray], np.ndarray]
"""Images, N x C x H x W, to logits, N x K."""


def on_onnxruntime(path: Path, threads: int) -> Network:
    """Load a file into ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # Else its threads go on spinning after a run, on the cores of whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = ["logits", "cam", "embedding"]
    return lambda images: np.asarray(session.run(outputs, {"image": images})[0])


def on_openvino(path: Path, threads: int) -> Network:
    """Load a file into OpenVINO, for one image at a time."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    _, *shape = model.input("image").partial_shape
    model.reshape([1, *shape])
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # some processors would compute in bfloat16
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda images: request.infer({"image": images})["logits"].copy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, N x K."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def on_terminal(line: str) -> None:
    """Print progress on stderr."""
    print(line, file=sys.stderr, flush=True)
