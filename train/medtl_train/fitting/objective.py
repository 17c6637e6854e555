"""What training minimises: the heads' losses as one, penalties, and a teacher's say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtl_models.ensemble import Classifier
from medtl_models.network import Network
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head, columns_of
from medtl_train.config import ImbalanceConfig, RegularisationConfig, TasksConfig, TrainConfig
from medtl_train.config.tasks import RegressionLoss
from medtl_train.fitting.imbalance import class_weights, prior_logits
from medtl_train.fitting.losses import (
    Costs,
    class_costs,
    distillation_loss,
    step_costs,
    value_costs,
)
from medtl_train.fitting.mixing import Part, unmixed


class Objective(nn.Module):
    """The loss of all heads as one number.

    With ``--head-weights uncertainty`` it has parameters, which are learned with the network's: the
    logarithms of the heads' variances.

    Parameters
    ----------
    targets
        Of the training images, N x heads: they tell how frequent classes are.
    """

    weights: Tensor

    def __init__(
        self, heads: Sequence[Head], config: TrainConfig, targets: NDArray[np.floating]
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleList(
            _Term(k, head, columns, config, targets[:, k])
            for k, (head, columns) in enumerate(zip(heads, columns_of(heads), strict=True))
        )
        self.register_buffer("weights", head_weights(heads, config.tasks))
        self.log_variances: nn.Parameter | None = None
        if config.tasks.head_weights == "uncertainty":
            self.log_variances = nn.Parameter(torch.zeros(len(heads)))

    def forward(
        self,
        logits_nc: Tensor,
        parts: Sequence[Part],
        *,
        fraction: float = 1.0,
        known_h: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch, or a part's contribution to it.

        Parameters
        ----------
        logits_nc
            N x the columns of all heads.
        parts
            What the images show; see `medtl_train.fitting.mixing`.
        fraction, known_h
            What part of the step this is, for all images and for each head's known targets; see
            `medtl_train.fitting.feed.Batch`.
        """
        terms = [cast(_Term, term) for term in self.terms]
        sums = [term(logits_nc, parts) for term in terms]
        costs, counts = (torch.stack(column) for column in zip(*sums, strict=True))
        losses = costs / counts.clamp(min=torch.finfo(counts.dtype).tiny)
        losses = losses * (fraction if known_h is None else known_h)
        if self.log_variances is None:
            return (self.weights * losses).sum() / self.weights.sum()
        # Kendall, Gal and Cipolla, CVPR 2018: L / (2 s^2) + log s of values, L / s^2 + log s of
        # classes; here with log s^2, which may be any number.
        scales = losses.new_tensor([term.scale for term in terms])
        logarithms = fraction * self.log_variances / 2
        return (scales * torch.exp(-self.log_variances) * losses + logarithms).mean()


class _Term(nn.Module):
    """The loss of one head, as two sums: of what the images cost, and of how much they count.

    An image whose target is known counts what one does on average, by class weights and steps
    between grades, in the training set. So a batch is divided by no accident of its own, and the
    losses of its parts add up.
    """

    weights_k: Tensor | None
    offsets_c: Tensor | None

    def __init__(
        self,
        index: int,
        head: Head,
        columns: slice,
        config: TrainConfig,
        targets: NDArray[np.floating],
    ) -> None:
        super().__init__()
        self.index, self.head, self.columns = index, head, columns
        self.kind: RegressionLoss = config.tasks.regression_loss
        self.smoothing = config.regularisation.label_smoothing
        self.focal = config.imbalance.focal
        weights, offsets = _remedies(head, config.imbalance, targets)
        self.register_buffer("weights_k", weights)
        self.register_buffer("offsets_c", offsets)
        columns_of_it = torch.zeros(len(targets), head.columns)
        counts = self._costs(columns_of_it, torch.from_numpy(targets).float()).counts
        self.unit = float(counts[counts > 0].mean()) if (counts > 0).any() else 1.0
        # Huber's loss is halved already.
        self.scale = 0.5 if head.kind == "regression" and self.kind == "mse" else 1.0

    def forward(self, logits_nc: Tensor, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
        """Return the two sums; both are 0 if no target is known."""
        logits = logits_nc[:, self.columns]
        if self.offsets_c is not None:
            logits = logits + self.offsets_c
        found = [self._costs(logits, part.targets_nh[:, self.index]) for part in parts]
        pairs = list(zip(parts, found, strict=True))
        total = torch.stack([(part.shares_n * one.costs).sum() for part, one in pairs]).sum()
        known = torch.stack([(part.shares_n * (one.counts > 0)).sum() for part, one in pairs]).sum()
        return total, self.unit * known

    def _costs(self, logits: Tensor, targets: Tensor) -> Costs:
        if self.head.kind == "regression":
            return value_costs(logits[:, 0], targets, self.head, self.kind)
        costs_of = class_costs if self.head.kind == "multiclass" else step_costs
        return costs_of(
            logits,
            targets,
            weights_k=self.weights_k,
            smoothing=self.smoothing,
            focal=self.focal,
        )


def _remedies(
    head: Head, config: ImbalanceConfig, targets: NDArray[np.floating]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the weights of the classes, and what is added to the logits in training.

    Logits that are adjusted by the prior learn what speaks for a class beside its frequency
    (Menon et al., ICLR 2021).
    """
    if head.kind == "regression":
        return None, None
    match config.imbalance:
        case "class-weights":
            return torch.from_numpy(class_weights(head, targets)).float(), None
        case "logit-adjustment":
            return None, config.tau * torch.from_numpy(prior_logits(head, targets)).float()
        case _:
            return None, None


def head_weights(heads: Sequence[Head], config: TasksConfig) -> Tensor:
    """Return the fixed weight of each head's loss, (heads,).

    Raises
    ------
    UsageError
        A weight is for no head, or all heads have the weight 0.
    """
    given, names = config.fixed_weights(), [head.name for head in heads]
    unknown = sorted(given.keys() - set(names))
    if unknown:
        raise UsageError(f"--head-weights names {unknown[0]}; the heads are {', '.join(names)}")
    weights = [given.get(name, 1.0) for name in names]
    if not any(weights):
        raise UsageError("--head-weights is 0 for every head; expected one above 0")
    return torch.tensor(weights)


def validation_loss(
    heads: Sequence[Head],
    config: TasksConfig,
    logits: NDArray[np.floating],
    targets: NDArray[np.floating],
) -> float:
    """Return the loss without smoothing and remedies; learned weights of heads count as equal.

    Parameters
    ----------
    logits, targets
        N x the columns of all heads, and N x heads.
    """
    learned = config.head_weights == "uncertainty"
    plain = TrainConfig(
        regularisation=RegularisationConfig(label_smoothing=0.0),
        tasks=replace(config, head_weights="equal") if learned else config,
    )
    objective = Objective(heads, plain, targets)
    with torch.no_grad():
        given = torch.from_numpy(np.asarray(logits, np.float64))
        return float(objective(given, unmixed(torch.from_numpy(targets))))


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A trained network whose outputs a student learns to give (Hinton, Vinyals and Dean, 2015)."""

    network: Classifier
    """In evaluation mode, on the student's device; it is never changed."""
    heads: tuple[Head, ...]
    """Of teacher and student."""
    temperature: float
    """Softens both networks' probabilities; more than 0."""
    alpha: float
    """Share of the labels' loss, 0 to 1; the rest is the teacher's."""

    def blend(
        self,
        labels_loss: Tensor,
        logits_nc: Tensor,
        images_nchw: Tensor,
        *,
        fraction: float = 1.0,
    ) -> Tensor:
        """Return the student's loss: of the labels, and of the teacher on the same images.

        The teacher sees the very batch that the student saw, augmentation included: stored answers
        to other views teach less (Beyer et al., CVPR 2022).
        """
        with torch.no_grad():  # in inference mode, autograd could not use what it gives
            taught_nc = self.network(images_nchw).logits
        taught_loss = distillation_loss(self.heads, logits_nc, taught_nc, self.temperature)
        return self.alpha * labels_loss + (1 - self.alpha) * fraction * taught_loss


def penalty(network: Network, pretrained: Mapping[str, Tensor], config: TrainConfig) -> Tensor:
    """Return the sum of the L1, L2 and L2-SP penalties on the parameters that move.

    Parameters
    ----------
    network
        L1 and L2 act on its weights, not on norms and biases.
    pretrained
        Backbone parameters by name, as they were loaded; L2-SP pulls towards them
        (Li, Grandvalet and Davoine, ICML 2018).
    """
    weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    total = torch.zeros((), device=weights[0].device)
    if config.regularisation.l1:
        total = total + config.regularisation.l1 * _total(p.abs().sum() for p in weights)
    if config.regularisation.l2:
        total = total + config.regularisation.l2 * _total(p.square().sum() for p in weights)
    backbone = [(n, p) for n, p in network.backbone.named_parameters() if p.requires_grad]
    if config.transfer.l2_sp and backbone:
        moved = ((p - pretrained[name]).square().sum() for name, p in backbone)
        total = total + config.transfer.l2_sp * _total(moved)
    return total


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
