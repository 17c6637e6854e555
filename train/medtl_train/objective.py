"""What training minimises, and the optimiser that does it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtl_models.network import Network
from medtl_train.config import FitConfig


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of epochs with the same trained layers."""

    name: str
    """``head`` (backbone frozen) or ``all``."""
    epochs: int
    peak_lr: float


def phases(config: FitConfig, *, pretrained: bool) -> tuple[Phase, ...]:
    """Return the phases of a run.

    ``head-then-all`` (LP-FT; Kumar et al., ICLR 2022) protects pretrained features from a random
    head. A backbone that is not pretrained has nothing to protect and is trained at once.
    """
    if config.mode == "head":
        return (Phase(name="head", epochs=config.epochs, peak_lr=config.head_lr),)
    first = config.head_epochs if config.mode == "head-then-all" and pretrained else 0
    first = min(first, config.epochs - 1)
    both = (
        Phase(name="head", epochs=first, peak_lr=config.head_lr),
        Phase(name="all", epochs=config.epochs - first, peak_lr=config.lr),
    )
    return tuple(phase for phase in both if phase.epochs)


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Return the learning rate of a step: a linear rise, then a half cosine to 0.

    ``step`` counts from 0 to ``steps`` - 1; ``warmup`` is the share of the steps that rise.
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, steps - rising)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def trained_layers(network: Network, phase: Phase) -> nn.Module:
    """Return the part of the network that a phase trains."""
    return network.head if phase.name == "head" else network


def make_optimizer(module: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """Return the optimiser; weight decay acts on weights only, not on norms and biases."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr)
        case "sgd":
            return torch.optim.SGD(
                groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0
            )
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=config.lr, momentum=config.momentum)


def class_weights(labels: Tensor, classes: int, config: FitConfig) -> Tensor | None:
    """Return a weight for each class, shape (K,), averaging 1 over the images; or None."""
    if config.class_weights == "none":
        return None
    counts = torch.bincount(labels, minlength=classes).float()
    return len(labels) / (classes * counts)


def loss_of(logits: Tensor, labels: Tensor, weights: Tensor | None, config: FitConfig) -> Tensor:
    """Return the cross-entropy with label smoothing and class weights."""
    return F.cross_entropy(logits, labels, weights, label_smoothing=config.label_smoothing)


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A trained network whose outputs a student learns to give (Hinton, Vinyals and Dean, 2015)."""

    network: Network
    """In evaluation mode, on the student's device; it is never changed."""
    temperature: float
    """Softens both networks' probabilities; more than 0."""
    alpha: float
    """Share of the labels' loss, 0 to 1; the rest is the teacher's."""

    def blend(self, labels_loss: Tensor, logits_nk: Tensor, images_nchw: Tensor) -> Tensor:
        """Return the student's loss: of the labels, and of the teacher on the same images.

        The teacher sees the very batch that the student saw, augmentation included: stored answers
        to other views teach less (Beyer et al., CVPR 2022).
        """
        with torch.no_grad():  # in inference mode, autograd could not use what it gives
            taught_nk = self.network(images_nchw).logits
        taught_loss = distillation_loss(logits_nk, taught_nk, self.temperature)
        return self.alpha * labels_loss + (1 - self.alpha) * taught_loss


def distillation_loss(logits_nk: Tensor, taught_nk: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(taught / T) || softmax(logits / T)), the mean over the images.

    The factor T^2 keeps the gradient's size while T changes (Hinton, Vinyals and Dean, 2015).
    """
    student_nk = F.log_softmax(logits_nk / temperature, 1)
    teacher_nk = F.log_softmax(taught_nk / temperature, 1)
    divergence = F.kl_div(student_nk, teacher_nk, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def penalty(
    network: Network, module: nn.Module, pretrained: Mapping[str, Tensor], config: FitConfig
) -> Tensor:
    """Return the sum of the L1, L2 and L2-SP penalties.

    Parameters
    ----------
    module
        The layers in training; L1 and L2 act on their weights, not on norms and biases.
    pretrained
        Backbone parameters by name, as they were loaded; L2-SP pulls towards them
        (Li, Grandvalet and Davoine, ICML 2018).
    """
    weights = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    total = torch.zeros((), device=weights[0].device)
    if config.l1:
        total = total + config.l1 * _total(p.abs().sum() for p in weights)
    if config.l2:
        total = total + config.l2 * _total(p.square().sum() for p in weights)
    if config.l2_sp and module is network:
        moved = (
            (p - pretrained[name]).square().sum() for name, p in network.backbone.named_parameters()
        )
        total = total + config.l2_sp * _total(moved)
    return total


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()
