"""Heads that are solved for: a frozen network's embeddings, and a convex problem for each head.

Classes are told apart by logistic regressions and values by ridge regressions, on embeddings whose
columns have mean 0 and standard deviation 1. What comes out is the linear head's weights, so that
the network is exported like any other.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from medtl_models.network import Network
from medtl_runtime.heads import Head
from medtl_train.data.images import ImageSet, Pixels
from medtl_train.errors import Diverged
from medtl_train.fitting.distributed import ALONE, World
from medtl_train.fitting.objective import validation_loss
from medtl_train.fitting.predict import predict_embeddings
from medtl_train.fitting.progress import EpochRow
from medtl_train.fitting.selection import Selection

STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-10, 3))
"""C, the inverse strength of the L2 penalty, from 1e-5 to 10: the first the simplest."""

ENOUGH = 10_000
"""Training images that a start is solved with: more of them change it little and take minutes."""

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

    @staticmethod
    def of(network: Network) -> "LinearWeights":
        """Return the linear head of a network."""
        linear = network.head.linear
        weight, bias = (one.detach().cpu().double().numpy() for one in (linear.weight, linear.bias))
        return LinearWeights(weight=weight, bias=bias)

    @torch.no_grad()
    def install(self, network: Network) -> None:
        """Make it the linear head of a network."""
        linear = network.head.linear
        linear.weight.copy_(torch.from_numpy(self.weight))
        linear.bias.copy_(torch.from_numpy(self.bias))


def best_head(
    selection: Selection,
    network: Network,
    train: ImageSet,
    val: ImageSet,
    device: torch.device,
    *,
    as_start: bool = False,
    own_too: bool = False,
    world: World = ALONE,
) -> tuple[EpochRow, LinearWeights]:
    """Return the solution of `solve` that is best on validation, and a row like an epoch's of it.

    As a start for training, solutions are compared by their loss: AUROC does not see how large
    logits are, and those of a head that is sure of every training image leave no gradient.

    Parameters
    ----------
    selection
        About ``val``. Classes are weighted by their inverse frequency with any ``--imbalance``.
    network
        On the device; it stays as it is.
    as_start
        Compare by loss, and solve with no more than `ENOUGH` training images, drawn by chance.
    own_too
        Compare them with the head that the network has, and keep that between equals.
    world
        The processes that share the images; each of them finds the same.

    Raises
    ------
    Diverged
        The features are not finite.
    """
    heads, tasks = selection.heads, selection.config.tasks
    balanced = selection.config.imbalance.imbalance != "none"
    started = time.perf_counter()
    pixels, targets = train.pixels, train.targets
    if as_start and len(train) > ENOUGH:
        chosen = np.random.default_rng(0).choice(len(train), ENOUGH, replace=False)
        pixels, targets = Pixels([pixels[index] for index in chosen]), targets[chosen]
    seen, unseen = (_embedded(network, some, device, world) for some in (pixels, val.pixels))
    solved = solve(heads, seen, targets, balanced=balanced)
    tried = [(f"solved, C={strength:.2g}", weights) for strength, weights in solved]
    if own_too:
        tried.insert(0, ("as it came", LinearWeights.of(network)))
    measured = [selection.measure(weights.logits(unseen)) for _, weights in tried]
    scores = [(-row["val_loss"],) if as_start else selection.score(row) for row in measured]
    best = scores.index(max(scores))
    phase, weights = tried[best]
    row = {
        "epoch": 1,
        "phase": phase,
        "lr": 0.0,
        "train_loss": validation_loss(heads, tasks, weights.logits(seen), targets),
        **measured[best],
        "seconds": round(time.perf_counter() - started, 2),
    }
    return row, weights


def _embedded(
    network: Network, pixels: Pixels | NDArray[np.uint16], device: torch.device, world: World
) -> NDArray[np.float32]:
    count = len(pixels)
    part = predict_embeddings(network, pixels, device, world.stretch(count))
    found = world.whole(part, count)
    if not np.isfinite(found).all():
        raise Diverged("the features of the network are not finite: its weights are damaged")
    return found


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
        with warnings.catch_warnings():  # one that is not yet exact is judged on validation, too
            warnings.simplefilter("ignore", ConvergenceWarning)
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
    # Of several heads, one may lack images of a class: it is rare, and never certain to be absent.
    present = np.unique(answers).astype(int)
    weight = np.zeros((classes, inputs.shape[1]))
    bias = np.full(classes, -np.log(2 * len(answers) + 1))
    if len(present) == 2:
        found = _classes(inputs, answers == present[1], 2, strength, balanced=balanced)
        weight[present], bias[present] = found.weight, found.bias
    elif len(present) > 2:
        model = _regression(strength, balanced=balanced).fit(inputs, answers.astype(int))
        weight[present], bias[present] = model.coef_, model.intercept_
    else:
        bias[present] = 0
    return LinearWeights(weight=weight, bias=bias)


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
