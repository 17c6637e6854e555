"""Compares what two networks say of the same images: numbers, maps and decisions."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_export.errors import ParityFailed
from medtl_runtime.decision import Decision
from medtl_runtime.engines.processor import cpu_name
from medtl_runtime.heads import Head, columns_of
from medtl_runtime.recipe import as_batch
from medtl_runtime.selftest import Runs
from medtl_train.fitting.staging import Pixels
from medtl_train.scoring import metrics
from medtl_train.scoring.scored import Answers, score

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
    """Images that a head decides otherwise."""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """What a network says of the validation images."""

    answers: Mapping[str, Answers]
    """By the names of the heads, of the images whose target is known."""
    called: NDArray[np.int64]
    """Index of the class of every image by each head that has classes, N x heads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """The validation images, and how a network's logits of them become answers."""

    heads: tuple[Head, ...]
    targets: NDArray[np.float64]
    """N x heads; NaN where one is not known."""
    patients: NDArray[np.str_]
    """(N,)."""
    decision: Decision
    """The network's temperatures and operating points."""

    def judged(self, logits: NDArray[np.float32]) -> Judgement:
        """Return what a network says, from its logits, N x the columns of all heads."""
        decided = dict(zip((head.name for head in self.heads), self.decision.heads, strict=True))
        answers = score(
            self.heads,
            logits,
            self.targets,
            self.patients,
            temperatures={name: own.temperature for name, own in decided.items()},
            points={name: own.operating_point for name, own in decided.items()},
        )
        return Judgement(answers=answers, called=self._called(logits))

    def _called(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        columns = []
        of_heads = zip(self.heads, self.decision.heads, columns_of(self.heads), strict=True)
        for head, own, where in of_heads:
            if head.kind != "regression":
                chances = head.probabilities(logits[:, where], own.temperature)
                point, names = own.operating_point, head.classes
                columns.append([names.index(point.decide(names, row)) for row in chances])
        return np.array(columns, np.int64).reshape(len(columns), len(logits)).T


def run_all(network: Runs, pixels: Pixels) -> Outputs:
    """Run canonical images, N x C x H x W, one at a time as at the scanner."""
    logits, embeddings, gaps = [], [], []
    for index in range(len(pixels)):
        found = network.run(as_batch(pixels[index : index + 1]))
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
    validation: Validation,
) -> Parity:
    """Compare two networks' logits of the validation images, N x K.

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
        flips=flips(validation.judged(reference), validation.judged(found)),
        tolerance=tolerance,
    )


def flips(one: Judgement, other: Judgement) -> int:
    """Return how many images a head decides otherwise."""
    return int((one.called != other.called).any(axis=1).sum())


Accuracy = dict[str, dict[str, float | None]]
"""The metrics of each head, by its name."""


def accuracy(judged: Judgement) -> Accuracy:
    """Return the metrics as JSON values; None where one is not defined."""
    return {
        head: {n: v if np.isfinite(v) else None for n, v in metrics.measure(answers).items()}
        for head, answers in judged.answers.items()
    }


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
