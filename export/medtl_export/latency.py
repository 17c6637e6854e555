"""Compares how long networks take, run in turns in one process."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.selftest import Runs

_WARM_UP = 3
_RESAMPLES = 1000
_OUTSIDE = 0.05
_LEAST_ROUNDS, _ROUNDS, _MOST_ROUNDS = 10, 60, 600


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Times of two networks, run in turns in one process.

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


def race(
    networks: Sequence[Runs], batches: Sequence[NDArray[np.float32]], *, seconds: float
) -> NDArray[np.float64]:
    """Run networks in turns on a few batches; return seconds, rounds x networks.

    There are at least 10 rounds, and at most 60; in between, as many as take ``seconds``.
    """
    for network in networks:
        for _ in range(_WARM_UP):
            network.run(batches[0])
    started, timed = time.perf_counter(), []
    while len(timed) < _ROUNDS:
        batch = batches[len(timed) % len(batches)]
        timed.append([_seconds(network, batch) for network in networks])
        if len(timed) >= _LEAST_ROUNDS and time.perf_counter() - started > seconds:
            break
    return np.array(timed)


def settle(
    reference: Runs,
    candidate: Runs,
    batches: Sequence[NDArray[np.float32]],
    *,
    seconds: float = 60.0,
) -> Latency:
    """Time two networks until it is clear which is faster, or rounds or seconds are used up."""
    started = time.perf_counter()
    pairs = np.empty((0, 2))
    while True:
        pairs = np.concatenate([pairs, race([reference, candidate], batches, seconds=seconds / 6)])
        # It is looked at up to ten times, so a look has to be surer than the outcome.
        low, high = _interval(pairs, outside=_OUTSIDE / 10)
        is_over = len(pairs) >= _MOST_ROUNDS or time.perf_counter() - started > seconds
        if low > 1 or high < 1 or is_over:
            return compare(pairs)


def compare(pairs: NDArray[np.float64]) -> Latency:
    """Return how times in seconds compare, rounds x (reference, candidate)."""
    low, high = _interval(pairs, outside=_OUTSIDE)
    before, after = np.quantile(pairs, 0.25, axis=0)
    return Latency(
        reference_ms=1000 * float(before),
        candidate_ms=1000 * float(after),
        speed_up=float(before / after),
        low=low,
        high=high,
        rounds=len(pairs),
    )


def _interval(pairs: NDArray[np.float64], *, outside: float) -> tuple[float, float]:
    """Return bounds of the speed-up with such a share of bootstrap resamples outside."""
    drawn = np.random.default_rng(0).integers(len(pairs), size=(_RESAMPLES, len(pairs)))
    quartiles = np.quantile(pairs[drawn], 0.25, axis=1)
    ratios = quartiles[:, 0] / quartiles[:, 1]
    low, high = np.quantile(ratios, [outside / 2, 1 - outside / 2])
    return float(low), float(high)


def _seconds(network: Runs, batch: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    network.run(batch)
    return time.perf_counter() - started
