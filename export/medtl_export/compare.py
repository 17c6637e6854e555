"""Compares two networks on the same images: numbers, decisions, accuracy and time."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_export.errors import ParityFailed
from medtl_runtime.decision import probabilities
from medtl_runtime.engines.processor import cpu_name
from medtl_runtime.recipe import as_batch
from medtl_runtime.selftest import Runs
from medtl_train import metrics

# Differences of float arithmetic in another order, relative to the largest logit.
PARITY_TOLERANCE = 1e-4

_WARM_UP = 10
_ROUNDS = 60
_MOST_ROUNDS = 600


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the ONNX graph is from torch on real images."""

    images: int
    largest_difference: float
    """max |delta logit|."""
    flips: int
    """Images with another decision at the operating point."""
    tolerance: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """What a network says of N images."""

    logits: NDArray[np.float32]
    """(N, K)."""
    embeddings: NDArray[np.float32]
    """(N, D)."""


def run_all(network: Runs, pixels: NDArray[np.uint16]) -> Outputs:
    """Run canonical images, N x C x H x W, one at a time as at the scanner."""
    found = [network.run(as_batch([image])) for image in pixels]
    return Outputs(
        logits=np.concatenate([one["logits"] for one in found]),
        embeddings=np.concatenate([one["embedding"] for one in found]),
    )


def check_parity(
    reference: NDArray[np.float32],
    found: NDArray[np.float32],
    scored: metrics.Scored,
    temperature: float,
) -> Parity:
    """Compare logits of the same images, N x K; decisions are taken at the temperature.

    Raises
    ------
    ParityFailed
        They differ by more than float arithmetic explains.
    """
    difference = float(np.abs(reference - found).max())
    tolerance = PARITY_TOLERANCE * max(1.0, float(np.abs(reference).max()))
    if not difference <= tolerance:
        raise ParityFailed(
            f"the ONNX graph differs from torch by {difference:.3g} in a logit on "
            f"{len(found)} validation images; at most {tolerance:.3g} is allowed. No file written"
        )
    return Parity(
        images=len(found),
        largest_difference=difference,
        flips=flips(
            with_logits(scored, reference, temperature), with_logits(scored, found, temperature)
        ),
        tolerance=tolerance,
    )


def with_logits(
    scored: metrics.Scored, logits: NDArray[np.float32], temperature: float
) -> metrics.Scored:
    """Return the same images with what another network says of them."""
    return replace(scored, probabilities=probabilities(logits, temperature))


def flips(one: metrics.Scored, other: metrics.Scored) -> int:
    """Return how many images are decided differently."""
    return int((one.predicted != other.predicted).sum())


def accuracy(one: metrics.Scored) -> dict[str, float | None]:
    """Return the metrics as JSON values."""
    found = metrics.measure(one)
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Times of two networks, run in turns in one process, one image at a time.

    Times are lower quartiles: what else the machine does can only add to them.
    """

    reference_ms: float
    candidate_ms: float
    speed_up: float
    """Reference time / candidate time; above 1 is faster."""
    low: float
    high: float
    """95 % bootstrap interval of the speed-up over the rounds."""
    rounds: int


def compare_latency(reference: Runs, candidate: Runs, pixels: NDArray[np.uint16]) -> Latency:
    """Time two networks in turns, until it is clear which is faster or the rounds are used up.

    ``pixels`` are canonical images, N x C x H x W, of which a few are run.
    """
    images = [as_batch([image]) for image in pixels[:8]]
    pairs = np.empty((0, 2))
    _time_rounds(reference, candidate, images, _WARM_UP)
    while True:
        timed = _time_rounds(reference, candidate, images, _ROUNDS)
        pairs = np.concatenate([pairs, timed])
        latency = _latency(pairs)
        if latency.low > 1 or latency.high < 1 or len(pairs) >= _MOST_ROUNDS:
            return latency


def _time_rounds(
    reference: Runs, candidate: Runs, images: Sequence[NDArray[np.float32]], rounds: int
) -> NDArray[np.float64]:
    """Return seconds of both networks, rounds x 2."""
    turns = (images[i % len(images)] for i in range(rounds))
    return np.array([[_seconds(reference, image), _seconds(candidate, image)] for image in turns])


def _latency(pairs: NDArray[np.float64]) -> Latency:
    drawn = np.random.default_rng(0).integers(len(pairs), size=(500, len(pairs)))
    quartiles = np.quantile(pairs[drawn], 0.25, axis=1)
    low, high = np.quantile(quartiles[:, 0] / quartiles[:, 1], [0.025, 0.975])
    before, after = np.quantile(pairs, 0.25, axis=0)
    return Latency(
        reference_ms=1000 * float(before),
        candidate_ms=1000 * float(after),
        speed_up=float(before / after),
        low=float(low),
        high=float(high),
        rounds=len(pairs),
    )


def _seconds(network: Runs, image: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    network.run(image)
    return time.perf_counter() - started


def machine() -> dict[str, Any]:
    """Return the processor's name and core count, for what was measured on it."""
    return {"cpu": cpu_name(), "cores": os.cpu_count()}
