"""The epochs of a phase: batches, steps, and what moves with them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from medtl_models.network import Network
from medtl_train.config import TrainConfig
from medtl_train.fitting.averaging import MovingAverage
from medtl_train.fitting.feed import Batch, Feed
from medtl_train.fitting.mixing import mix
from medtl_train.fitting.objective import Objective, Teacher, penalty
from medtl_train.fitting.optimisation import Phase, set_rates, set_training
from medtl_train.fitting.stepper import Forward, Losses, Stepper


class NotFinite(ArithmeticError):
    """The loss of a step is NaN or infinite."""

    def __init__(self, loss: float, step: int, lr: float) -> None:
        super().__init__(f"the loss is {loss} at step {step}")
        self.lr = lr
        """The highest learning rate when it was seen: on a GPU some steps later."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Epochs:
    """Runs the epochs of a phase."""

    network: Network
    objective: Objective
    teacher: Teacher | None
    average: MovingAverage | None
    anchor: dict[str, Tensor]
    """The backbone as it was loaded; see `penalty`."""
    feed: Feed
    stepper: Stepper
    config: TrainConfig
    phase: Phase
    freeze_norms: bool
    optimizer: torch.optim.Optimizer

    def run(self, epoch: int, number: int, on_step: Callable[[], None]) -> tuple[float, float]:
        """Take the steps of an epoch; return their mean loss and the last, highest learning rate.

        Parameters
        ----------
        epoch, number
            Counted within the phase and over all phases, from 0. Order, dropout, augmentation and
            mixtures depend on nothing but the number and the seed.

        Raises
        ------
        NotFinite
            The loss is not a number. On the processor no step was taken with it.
        """
        sequence = np.random.SeedSequence([self.config.fit.seed, number])
        dropout, changes, order, mixtures = map(int, sequence.generate_state(4))
        rank = self.feed.world.rank
        torch.manual_seed(dropout + rank)
        rng = np.random.default_rng(mixtures + rank)
        set_training(self.network, self.phase, freeze_norms=self.freeze_norms)
        losses, lr = Losses(self.feed.device, self.feed.world), 0.0
        steps = self.phase.epochs * self.feed.batches
        for index, batch in enumerate(self.feed.epoch(order=order, changes=changes)):
            step = epoch * self.feed.batches + index
            lr = set_rates(self.optimizer, step, steps, self.config.fit.warmup)
            self.optimizer.zero_grad(set_to_none=True)
            losses.add(self.stepper.backward(batch, partial(self._loss, rng)))
            _require_finite(losses, lr)
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.network)
            on_step()
        mean = losses.mean()
        _require_finite(losses, lr)
        return mean, lr

    def _loss(self, rng: np.random.Generator, forward: Forward, batch: Batch) -> Tensor:
        """Return what a step lowers; of a part of its batch, the part's contribution."""
        images, parts = mix(batch, self.config.regularisation, rng)
        logits = forward(images).logits
        loss = self.objective(logits, parts, fraction=batch.fraction, known_h=batch.known)
        if self.teacher is not None:
            loss = self.teacher.blend(loss, logits, images, fraction=batch.fraction)
        return loss + batch.fraction * penalty(self.network, self.anchor, self.config)


def _require_finite(losses: Losses, lr: float) -> None:
    if losses.broken is not None:
        step, loss = losses.broken
        raise NotFinite(loss, step, lr)
