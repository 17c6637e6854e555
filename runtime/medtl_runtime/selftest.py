"""The self-test: whether this machine computes what the exporter's machine computed.

Kernels differ between processors, and an int8 model that is right on one can be wrong on another.
Every model file carries seeds and expected logits; the inputs are made here from the seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.engine import Engine
from medtl_runtime.errors import SelfTestFailed
from medtl_runtime.recipe import Recipe, as_batch

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
    """The largest difference from the stored logits, and how much is allowed."""

    difference: float
    tolerance: float
    images: int


def self_test(engine: Engine) -> SelfTestResult:
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
