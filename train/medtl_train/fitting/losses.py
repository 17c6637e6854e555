"""The loss of each kind of head, image by image; unknown targets cost nothing."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medtl_runtime.heads import Head, columns_of
from medtl_train.config.tasks import RegressionLoss


class Costs(NamedTuple):
    """What each image costs, and how much it counts: the loss is the ratio of their sums."""

    costs: Tensor
    """(N,)."""
    counts: Tensor
    """(N,); 0 where the target is not known."""


def class_costs(
    logits_nk: Tensor,
    targets_n: Tensor,
    *,
    weights_k: Tensor | None = None,
    smoothing: float = 0.0,
    focal: float = 0.0,
) -> Costs:
    """Return the cross-entropies of alternatives.

    Parameters
    ----------
    targets_n
        Index of the class; NaN where it is not known.
    weights_k
        Of the classes.
    smoothing
        Share of the target that is spread over all classes (Szegedy et al., CVPR 2016).
    focal
        gamma: the cross-entropy times (1 - p)^gamma, with p the probability of the true class
        (Lin et al., ICCV 2017).
    """
    known = targets_n.isfinite()
    labels = targets_n.nan_to_num(0).long()
    costs = F.cross_entropy(
        logits_nk, labels, weights_k, reduction="none", label_smoothing=smoothing
    )
    if focal:
        chances = logits_nk.softmax(1).gather(1, labels[:, None])[:, 0]
        costs = costs * (1 - chances) ** focal
    counts = torch.ones_like(costs) if weights_k is None else weights_k[labels]
    return Costs(torch.where(known, costs, 0), torch.where(known, counts, 0))


def step_costs(
    logits_ns: Tensor,
    targets_n: Tensor,
    *,
    weights_k: Tensor | None = None,
    smoothing: float = 0.0,
    focal: float = 0.0,
) -> Costs:
    """Return the binary cross-entropies of a head with S = K - 1 steps between its K classes.

    Step s asks whether the class lies above s, of those images only that do not lie below it: CORN
    (Shi, Cao and Raschka, Pattern Analysis and Applications 2023). With one step it is the plain
    binary cross-entropy. Parameters are those of `class_costs`.
    """
    steps = torch.arange(logits_ns.shape[1], device=logits_ns.device)
    asked = targets_n[:, None] >= steps  # false where the target is NaN
    above = (targets_n[:, None] > steps).to(logits_ns.dtype)
    soft = above * (1 - smoothing) + smoothing / 2
    costs = F.binary_cross_entropy_with_logits(logits_ns, soft, reduction="none")
    if focal:
        wrong = torch.where(above > 0, -logits_ns, logits_ns).sigmoid()
        costs = costs * wrong**focal
    costs, counts = torch.where(asked, costs, 0).sum(1), asked.sum(1).to(costs.dtype)
    if weights_k is not None:
        of_class = weights_k[targets_n.nan_to_num(0).long()]
        costs, counts = costs * of_class, counts * of_class
    return Costs(costs, counts)


def value_costs(column_n: Tensor, targets_n: Tensor, head: Head, kind: RegressionLoss) -> Costs:
    """Return squared or Huber errors, in standard deviations of the training values.

    Parameters
    ----------
    column_n
        The head's logit.
    targets_n
        In the head's unit; NaN where it is not known.
    """
    known = targets_n.isfinite()
    wanted = ((targets_n - head.mean) / head.std).nan_to_num(0).to(column_n.dtype)
    loss = F.mse_loss if kind == "mse" else F.huber_loss
    costs = loss(column_n, wanted, reduction="none")
    return Costs(torch.where(known, costs, 0), known.to(costs.dtype))


def distillation_loss(
    heads: Sequence[Head], logits_nc: Tensor, taught_nc: Tensor, temperature: float
) -> Tensor:
    """Return how far the logits are from a teacher's: the mean over the heads and the images.

    For classes it is T^2 KL(teacher || student) of the probabilities at temperature T; the factor
    keeps the gradient's size while T changes (Hinton, Vinyals and Dean, 2015). For values it is the
    squared difference in standard deviations.

    Parameters
    ----------
    logits_nc, taught_nc
        N x the columns of all heads.
    """
    parts = [
        _head_distance(head, logits_nc[:, columns], taught_nc[:, columns], temperature)
        for head, columns in zip(heads, columns_of(heads), strict=True)
    ]
    return torch.stack(parts).mean()


def _head_distance(head: Head, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    if head.kind == "regression":
        return F.mse_loss(logits, taught)
    of_student = _log_probabilities(head, logits / temperature)
    of_teacher = _log_probabilities(head, taught / temperature)
    divergence = F.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def _log_probabilities(head: Head, logits: Tensor) -> Tensor:
    """Return the logarithms of the classes' probabilities, N x K; see `Head.probabilities`."""
    if head.kind == "multiclass":
        return F.log_softmax(logits, 1)
    none = torch.zeros_like(logits[:, :1])
    reached = torch.cat([none, F.logsigmoid(logits).cumsum(1)], 1)
    return reached + torch.cat([F.logsigmoid(-logits), none], 1)
