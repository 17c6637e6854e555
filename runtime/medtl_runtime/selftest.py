"""The self-test: whether this machine computes what the exporter's machine computed.

Kernels differ between processors, and an int8 model that is right on one can be wrong on another.
Every model file carries seeds and expected logits; the inputs are made here from the seeds.

It runs once for each machine, model, engine and version of medtl: a marker in the user's cache
folder says that it passed. Nothing is kept of a failure, so that the next run tries again.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from medtl_runtime import __version__
from medtl_runtime.errors import OutputNotWritten, SelfTestFailed
from medtl_runtime.recipe import Recipe, as_batch

if TYPE_CHECKING:
    from medtl_runtime.engines.protocol import Engine

_BLOCK = 8


def synthetic_image(seed: int, recipe: Recipe) -> NDArray[np.uint16]:
    """Return the canonical image of a seed, uint16, C x H x W.

    Blocks of 8 x 8 pixels of one value, from the SplitMix64 generator (Steele, Lea and Flood,
    OOPSLA 2014) used as a counter, so that any language can make the same pixels:
    ``value = splitmix64(seed * 2**32 + index) >> 48`` with ``index`` counting the blocks in the
    order channel, row, column.
    """
    height, width = recipe.size
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    index = np.arange(recipe.channels * rows * columns, dtype=np.uint64)
    values = _splitmix64(np.uint64(seed << 32) + index) >> np.uint64(48)
    blocks = values.astype(np.uint16).reshape(recipe.channels, rows, columns)
    return blocks.repeat(_BLOCK, axis=1).repeat(_BLOCK, axis=2)[:, :height, :width]


def _splitmix64(counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the output of SplitMix64 for each state; arithmetic is modulo 2**64."""
    z = counter + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Runs(Protocol):
    """Anything that runs a network: an engine, or an exporter's session without a description."""

    def run(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        """See `Engine.run`."""
        ...


def synthetic_logits(network: Runs, recipe: Recipe, seeds: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits for the seeds, [len(seeds), K], run one image at a time."""
    images = [as_batch([synthetic_image(seed, recipe)]) for seed in seeds]
    return np.concatenate([network.run(image)["logits"] for image in images])


@dataclass(frozen=True, kw_only=True)
class SelfTestResult:
    """A self-test that passed."""

    difference: float
    """Largest absolute difference from a stored logit."""
    tolerance: float
    """How much is allowed."""
    images: int


def self_test(engine: "Engine") -> SelfTestResult:
    """Replay the model's self-test.

    Raises
    ------
    SelfTestFailed
        A logit differs by more than the stored tolerance.
    """
    stored = engine.description.self_test
    found = synthetic_logits(engine, engine.description.recipe, stored.seeds)
    difference = float(np.abs(found - np.asarray(stored.logits, np.float32)).max())
    if not difference <= stored.tolerance:  # NaN fails too
        raise SelfTestFailed(
            f"{engine.name} differs from the stored logits by {difference:.3g}; "
            f"at most {stored.tolerance:.3g} is allowed. Do not use this model on this machine"
        )
    return SelfTestResult(
        difference=difference, tolerance=stored.tolerance, images=len(stored.seeds)
    )


def checked_once(engine: "Engine", digest: str, folder: Path) -> SelfTestResult:
    """Return what the self-test found when it ran first, which may be now.

    Parameters
    ----------
    engine
        An engine whose ``name`` says its version and the device that it runs on.
    digest
        Of the model file.
    folder
        For markers. Where it cannot be written to, the self-test runs each time.

    Raises
    ------
    SelfTestFailed
        As for `self_test`.
    """
    marker = _marker(engine, digest, folder)
    found = _read(marker, engine)
    return checked_again(engine, digest, folder) if found is None else found


def checked_again(engine: "Engine", digest: str, folder: Path) -> SelfTestResult:
    """Run the self-test, whatever was found before; see `checked_once`."""
    from medtl_runtime.files import write_text

    marker = _marker(engine, digest, folder)
    try:
        result = self_test(engine)
    except SelfTestFailed:
        with suppress(OSError):
            marker.unlink()
        raise
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with suppress(OutputNotWritten):
        write_text(marker, json.dumps({**asdict(result), "when": now}))
    return result


def cache_folder() -> Path:
    """Return the folder for what can be made again, as the operating system names it."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("medtl", appauthor=False))


def _marker(engine: "Engine", digest: str, folder: Path) -> Path:
    """Return the marker's name: a SHA-256 of everything that can change the outcome."""
    from medtl_runtime.engines.processor import machine

    facts = json.dumps([digest, engine.name, __version__, machine()])
    return folder / f"{hashlib.sha256(facts.encode()).hexdigest()}.json"


def _read(marker: Path, engine: "Engine") -> SelfTestResult | None:
    """Return a marker's content; None without one, or with one that says something else."""
    stored = engine.description.self_test
    try:
        fields = json.loads(marker.read_text(encoding="utf-8"))
        result = SelfTestResult(
            difference=float(fields["difference"]),
            tolerance=float(fields["tolerance"]),
            images=int(fields["images"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    expected = (stored.tolerance, len(stored.seeds))
    if (result.tolerance, result.images) != expected or not 0 <= result.difference <= expected[0]:
        return None
    return result
