"""Compares what two networks say of the same images: numbers, maps and decisions."""

import os
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

MAPS_TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2, "int8": 1e-4}
"""Of the mean of an activation map from its logit, by precision; the head of int8 is in float."""


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
    map_gap: float
    """max |mean(cam) - logit|."""


def run_all(network: Runs, pixels: NDArray[np.uint16]) -> Outputs:
    """Run canonical images, N x C x H x W, one at a time as at the scanner."""
    logits, embeddings, gaps = [], [], []
    for image in pixels:
        found = network.run(as_batch([image]))
        logits.append(found["logits"])
        embeddings.append(found["embedding"])
        gaps.append(np.abs(found["cam"].mean((2, 3), dtype=np.float64) - found["logits"]).max())
    return Outputs(
        logits=np.concatenate(logits),
        embeddings=np.concatenate(embeddings),
        map_gap=float(np.max(gaps)),
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


def check_maps(outputs: Outputs, tolerance: float) -> float:
    """Return how far the mean of an activation map is from its logit, at most.

    Raises
    ------
    ParityFailed
        By more than ``tolerance``, relative to the largest logit if that is above 1: the maps would
        not explain the logits.
    """
    allowed = tolerance * max(1.0, float(np.abs(outputs.logits).max()))
    if not outputs.map_gap <= allowed:
        raise ParityFailed(
            f"the mean of an activation map differs from its logit by {outputs.map_gap:.3g}; "
            f"at most {allowed:.3g} is allowed. No file written"
        )
    return outputs.map_gap


def machine() -> dict[str, Any]:
    """Return the processor's name and core count, for what was measured on it."""
    return {"cpu": cpu_name(), "cores": os.cpu_count()}
