"""The training loop: epochs, early stopping, checkpoints that resume to the same result.

Every epoch draws its order, dropout and augmentation from generators seeded by (seed, epoch), so
that no generator's state has to be stored: an interrupted run repeats the epoch it was in.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtl_models.network import Network
from medtl_runtime.decision import OperatingPoint, probabilities
from medtl_runtime.recipe import as_batch
from medtl_train import checkpoint as checkpoints
from medtl_train import metrics
from medtl_train.checkpoint import About, Checkpoint
from medtl_train.config import AugmentConfig, FitConfig
from medtl_train.dataset import ImageSet
from medtl_train.errors import Diverged
from medtl_train.feed import Batch, Feed
from medtl_train.objective import (
    Phase,
    Teacher,
    class_weights,
    learning_rate,
    loss_of,
    make_optimizer,
    penalty,
    phases,
    trained_layers,
)

EVALUATION_BATCH = 64

EpochRow = dict[str, Any]
"""epoch, phase, lr, train_loss, val_loss, seconds and the validation metrics."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the fit has come; all of it is stored in ``last.pt``."""

    history: tuple[EpochRow, ...] = ()
    best_epoch: int = 0
    best_score: tuple[float, float] = (-math.inf, -math.inf)
    """The monitored metric (higher is better) and, between equals, the negative loss."""
    stopped_early: bool = False

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.history)


@dataclass(kw_only=True)
class Fit:
    """A fit in progress: the network, the data, and where checkpoints go."""

    network: Network
    about: About
    train: ImageSet
    val: ImageSet
    positive: str | None
    config: FitConfig
    augmentation: AugmentConfig
    folder: Path
    device: torch.device
    pretrained: bool
    teacher: Teacher | None = None
    """Whom the network learns from, beside the labels."""
    progress: Progress = Progress()
    _anchor: dict[str, Tensor] = field(default_factory=dict, init=False)
    _optimizer_state: dict[str, Any] | None = field(default=None, init=False)

    def run(self, on_epoch: Callable[[EpochRow], None], on_step: Callable[[], None]) -> Progress:
        """Train to the end, saving ``last.pt`` after each epoch and ``best.pt`` when it is best.

        Parameters
        ----------
        on_epoch, on_step
            Called after each epoch with its row, and after each optimisation step.

        Raises
        ------
        Diverged
            The loss is not a number.
        """
        self.network.to(self.device)
        if self.config.l2_sp and not self._anchor:
            named = self.network.backbone.named_parameters()
            self._anchor = {name: p.detach().clone() for name, p in named}
        first = 0
        for phase in phases(self.config, pretrained=self.pretrained):
            if self.progress.epoch < first + phase.epochs and not self.progress.stopped_early:
                self._run_phase(phase, first, on_epoch, on_step)
            first += phase.epochs
        return self.progress

    def resume(self, saved: Checkpoint) -> None:
        """Continue from a ``last.pt``."""
        assert saved.training is not None
        self.network.load_state_dict(saved.network)
        state = json.loads(saved.training["progress"])
        self.progress = Progress(
            history=tuple(state["history"]),
            best_epoch=state["best_epoch"],
            best_score=tuple(state["best_score"]),
            stopped_early=state["stopped_early"],
        )
        self._optimizer_state = saved.training["optimizer"]
        self._anchor = {n: t.to(self.device) for n, t in saved.training["anchor"].items()}

    def _run_phase(
        self,
        phase: Phase,
        first: int,
        on_epoch: Callable[[EpochRow], None],
        on_step: Callable[[], None],
    ) -> None:
        module = trained_layers(self.network, phase)
        _set_training(self.network, module)
        optimizer = make_optimizer(module, self.config)
        if self.progress.epoch > first and self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
        for epoch in range(self.progress.epoch - first, phase.epochs):
            started = time.perf_counter()
            train_loss, lr = self._run_epoch(phase, module, optimizer, epoch, first, on_step)
            row = {
                "epoch": first + epoch + 1,
                "phase": phase.name,
                "lr": lr,
                "train_loss": train_loss,
                **self._validate(phase),
                "seconds": round(time.perf_counter() - started, 2),
            }
            self._record(row, first, optimizer)
            on_epoch(row)
            if self.progress.stopped_early:
                return

    def _run_epoch(
        self,
        phase: Phase,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        first: int,
        on_step: Callable[[], None],
    ) -> tuple[float, float]:
        """Train for one epoch and return the mean loss and the last learning rate."""
        seeds = np.random.SeedSequence([self.config.seed, first + epoch]).generate_state(3)
        torch.manual_seed(int(seeds[0]))
        feed = self._feed()
        weights = self._class_weights()
        _set_training(self.network, module)
        losses, lr = [], 0.0
        batches = feed.epoch(order=int(seeds[2]), changes=int(seeds[1]))
        for index, batch in enumerate(batches):
            step = epoch * feed.batches + index
            steps = phase.epochs * feed.batches
            lr = learning_rate(step, steps, phase.peak_lr, self.config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = self._loss(batch, weights)
            objective = loss + penalty(self.network, module, self._anchor, self.config)
            losses.append(float(objective.detach()))
            if not math.isfinite(losses[-1]):
                raise self._diverged(f"the loss is {losses[-1]} at step {index + 1}", phase)
            optimizer.zero_grad(set_to_none=True)
            objective.backward()
            optimizer.step()
            on_step()
        return float(np.mean(losses)), lr

    def _feed(self) -> Feed:
        return Feed(
            images=self.train,
            batch_size=self.config.batch_size,
            augmentation=self.augmentation,
            device=self.device,
        )

    def _loss(self, batch: Batch, weights: Tensor | None) -> Tensor:
        logits = self.network(batch.images).logits
        loss = loss_of(logits, batch.targets[:, 0].long(), weights, self.config)
        return loss if self.teacher is None else self.teacher.blend(loss, logits, batch.images)

    def _class_weights(self) -> Tensor | None:
        labels = torch.from_numpy(self.train.labels)
        weights = class_weights(labels, len(self.about.classes), self.config)
        return None if weights is None else weights.to(self.device)

    def _diverged(self, found: str, phase: Phase) -> Diverged:
        option = "--head-lr" if phase.name == "head" else "--lr"
        best = self.progress.best_epoch
        kept = f"best.pt is that of epoch {best}" if best else "there is no checkpoint yet"
        return Diverged(
            f"{found} of epoch {self.progress.epoch + 1}, with {option} {phase.peak_lr:g}; "
            f"try a lower one ({kept})"
        )

    def _validate(self, phase: Phase) -> dict[str, float]:
        logits = predict_logits(self.network, self.val.pixels, self.device)
        if not np.isfinite(logits).all():
            raise self._diverged("the logits are not finite after the last step", phase)
        chances = probabilities(logits, 1.0)
        scored = metrics.Scored(
            labels=self.val.labels,
            probabilities=chances,
            patients=self.val.patients,
            classes=self.about.classes,
            point=_default_point(self.positive),
        )
        found = metrics.measure(scored)
        loss = metrics.cross_entropy(self.val.labels, chances)
        return {"val_loss": loss, **{name: found[name] for name in metrics.NAMES}}

    def _record(self, row: EpochRow, first: int, optimizer: torch.optim.Optimizer) -> None:
        """Note the epoch; write ``best.pt`` if it is the best so far, and ``last.pt``."""
        monitored = -row["val_loss"] if self.config.monitor == "loss" else row[self.config.monitor]
        score = (monitored, -row["val_loss"])
        progress = replace(self.progress, history=(*self.progress.history, row))
        if score > progress.best_score:
            progress = replace(progress, best_epoch=row["epoch"], best_score=score)
        # Patience starts anew with each phase: the first epochs of a new one are often worse.
        waited = row["epoch"] - max(progress.best_epoch, first)
        if self.config.patience and waited >= self.config.patience and row["phase"] == self._last():
            progress = replace(progress, stopped_early=True)
        state = {name: t.detach().cpu() for name, t in self.network.state_dict().items()}
        if progress.best_epoch == row["epoch"]:
            best = Checkpoint(about=self.about, network=state)
            checkpoints.save(self.folder / "best.pt", best)
        training = {
            "progress": json.dumps(vars(progress)),
            "optimizer": optimizer.state_dict(),
            "anchor": {name: t.cpu() for name, t in self._anchor.items()},
            "distilled": self.teacher is not None,
        }
        last = Checkpoint(about=self.about, network=state, training=training)
        checkpoints.save(self.folder / "last.pt", last)
        self.progress = progress  # after it is on the disk, since an interrupt may come any time

    def _last(self) -> str:
        return phases(self.config, pretrained=self.pretrained)[-1].name


def _default_point(positive: str | None) -> OperatingPoint:
    """Return the point before one is chosen: the more probable class."""
    if positive is None:
        return OperatingPoint()
    return OperatingPoint(rule="threshold", positive=positive, threshold=0.5)


def _set_training(network: Network, module: nn.Module) -> None:
    """Put ``module`` in training mode and freeze the rest, BatchNorm statistics included."""
    network.eval()
    network.requires_grad_(False)
    module.train()
    module.requires_grad_(True)


@torch.inference_mode()
def predict_logits(
    network: Network, pixels: NDArray[np.uint16], device: torch.device
) -> NDArray[np.float32]:
    """Return the logits of canonical images (N x C x H x W), N x K."""
    network.eval()
    parts = [
        network(torch.from_numpy(as_batch(pixels[start : start + EVALUATION_BATCH])).to(device))
        .logits.float()
        .cpu()
        .numpy()
        for start in range(0, len(pixels), EVALUATION_BATCH)
    ]
    return np.concatenate(parts)
