"""Heads that are solved for: a frozen network's embeddings, and a convex problem for each head.

Classes are told apart by logistic regressions and values by ridge regressions, on embeddings whose
columns have mean 0 and standard deviation 1. What comes out is the linear head's weights, so that
the network is exported like any other.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

from medtl_models.network import Network
from medtl_runtime.heads import Head
from medtl_train.images import ImageSet
from medtl_train.objective import validation_loss
from medtl_train.predict import predict_embeddings
from medtl_train.progress import EpochRow
from medtl_train.selection import Selection

STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-10, 3))
"""C, the inverse strength of the L2 penalty, from 1e-5 to 10: the first the simplest."""

_STEPS = 1000
_FLAT = 1e-6
"""A column of less standard deviation, of the largest, carries nothing."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearWeights:
    """A linear head's weights, C x D, and bias, (C,), for the C columns of the logits."""

    weight: Matrix
    bias: Matrix

    def logits(self, embeddings: NDArray[np.floating]) -> Matrix:
        """Return what the head says of embeddings, N x D: N x C."""
        return embeddings @ self.weight.T + self.bias

    @torch.no_grad()
    def install(self, network: Network) -> None:
        """Make it the linear head of a network."""
        linear = network.head.linear
        linear.weight.copy_(torch.from_numpy(self.weight))
        linear.bias.copy_(torch.from_numpy(self.bias))


def solutions(
    selection: Selection,
    network: Network,
    train: ImageSet,
    val: ImageSet,
    device: torch.device,
) -> Iterator[tuple[EpochRow, LinearWeights]]:
    """Yield each solution of `solve` with what it is worth, as a row like an epoch's.

    Parameters
    ----------
    selection
        About ``val``. Its options say whether classes are weighted.
    network
        On the device; it stays as it is.
    """
    heads, tasks = selection.heads, selection.config.tasks
    balanced = selection.config.imbalance.imbalance == "class-weights"
    seen, unseen = (predict_embeddings(network, some.pixels, device) for some in (train, val))
    started = time.perf_counter()
    solved = solve(heads, seen, train.targets, balanced=balanced)
    for number, (strength, weights) in enumerate(solved, start=1):
        row = {
            "epoch": number,
            "phase": f"C={strength:.2g}",
            "lr": 0.0,
            "train_loss": validation_loss(heads, tasks, weights.logits(seen), train.targets),
            **selection.measure(weights.logits(unseen)),
            "seconds": round(time.perf_counter() - started, 2),
        }
        yield row, weights
        started = time.perf_counter()


def solve(
    heads: Sequence[Head],
    embeddings: NDArray[np.floating],
    targets: NDArray[np.floating],
    *,
    balanced: bool,
) -> Iterator[tuple[float, LinearWeights]]:
    """Yield the solution for each of `STRENGTHS`.

    Parameters
    ----------
    embeddings
        Of the training images, N x D.
    targets
        N x heads; an image counts for the heads whose target is known. See `ImageSet.targets`.
    balanced
        Weight classes by their inverse frequency.
    """
    mean, std = embeddings.mean(0, np.float64), embeddings.std(0, np.float64)
    std = np.where(std > _FLAT * std.max(initial=0), std, np.inf)  # its weight becomes 0
    scaled = (embeddings - mean) / std
    for strength in STRENGTHS:
        parts = [
            _solve_head(head, scaled, targets[:, k], strength, balanced=balanced)
            for k, head in enumerate(heads)
        ]
        weight = np.concatenate([part.weight for part in parts]) / std
        bias = np.concatenate([part.bias for part in parts]) - weight @ mean
        yield strength, LinearWeights(weight=weight, bias=bias)


def _solve_head(
    head: Head, scaled: Matrix, targets: NDArray[np.floating], strength: float, *, balanced: bool
) -> LinearWeights:
    known = np.isfinite(targets)
    inputs, answers = scaled[known], targets[known]
    match head.kind:
        case "multiclass":
            return _classes(inputs, answers, len(head.classes), strength, balanced=balanced)
        case "regression":
            # |y - Xw|^2 + |w|^2 / C, the same weighing as in the logistic regressions.
            ridge = Ridge(alpha=1 / strength).fit(inputs, (answers - head.mean) / head.std)
            return LinearWeights(weight=ridge.coef_[None], bias=np.array([ridge.intercept_]))
        case _:
            steps = [
                _step(inputs[answers >= k], answers[answers >= k] > k, strength, balanced=balanced)
                for k in range(len(head.classes) - 1)
            ]
            return LinearWeights(
                weight=np.concatenate([step.weight for step in steps]),
                bias=np.concatenate([step.bias for step in steps]),
            )


def _classes(
    inputs: Matrix, answers: NDArray, classes: int, strength: float, *, balanced: bool
) -> LinearWeights:
    if classes == 2:  # softmax of these two columns is the sigmoid of the step's
        step = _step(inputs, answers > 0, strength, balanced=balanced)
        both = np.array([[-0.5], [0.5]])
        return LinearWeights(weight=both * step.weight, bias=(both * step.bias).ravel())
    model = _regression(strength, balanced=balanced).fit(inputs, answers.astype(int))
    assert len(model.classes_) == classes, "every class has training images"
    return LinearWeights(weight=model.coef_, bias=model.intercept_)


def _step(inputs: Matrix, above: NDArray, strength: float, *, balanced: bool) -> LinearWeights:
    """Return the logistic regression of a yes-or-no question, 1 x D and (1,)."""
    if above.all() or not above.any():  # nothing to tell apart: its frequency, never certain
        odds = (above.sum() + 0.5) / ((~above).sum() + 0.5)
        return LinearWeights(weight=np.zeros((1, inputs.shape[1])), bias=np.log([odds]))
    model = _regression(strength, balanced=balanced).fit(inputs, above)
    return LinearWeights(weight=model.coef_, bias=model.intercept_)


def _regression(strength: float, *, balanced: bool) -> LogisticRegression:
    weights = "balanced" if balanced else None
    return LogisticRegression(C=strength, class_weight=weights, max_iter=_STEPS)
