"""A fit from its first phase to its last: early stopping, checkpoints that resume to the same.

An interrupted run repeats the epoch that it was in: all that is random in an epoch depends on its
number and the seed, so that no generator's state has to be stored.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl_models.network import Network
from medtl_train import checkpoint as checkpoints
from medtl_train.checkpoint import About, Checkpoint
from medtl_train.config import TrainConfig
from medtl_train.data.images import ImageSet
from medtl_train.errors import Diverged
from medtl_train.fitting import features
from medtl_train.fitting.applicable import require_applicable
from medtl_train.fitting.averaging import (
    Candidate,
    MovingAverage,
    Score,
    State,
    best_candidates,
    greedy_soup,
)
from medtl_train.fitting.distributed import ALONE, World
from medtl_train.fitting.epochs import Epochs, NotFinite
from medtl_train.fitting.feed import Feed
from medtl_train.fitting.imbalance import sampling_weights
from medtl_train.fitting.objective import Objective, Teacher
from medtl_train.fitting.optimisation import Phase, freezes_norms, make_optimizer, phases
from medtl_train.fitting.precision import place, tuned
from medtl_train.fitting.predict import predict_logits
from medtl_train.fitting.progress import EpochRow, Progress
from medtl_train.fitting.selection import Selection
from medtl_train.fitting.stepper import Stepper

OnEpoch = Callable[[EpochRow], None]
OnStep = Callable[[], None]


@dataclass(kw_only=True)
class Fit:
    """A fit in progress: the network, the data, and where checkpoints go.

    Raises
    ------
    UsageError
        An option cannot have an effect on this network and these heads.
    """

    network: Network
    about: About
    train: ImageSet
    val: ImageSet
    positive: str | None
    config: TrainConfig
    folder: Path
    device: torch.device
    pretrained: bool
    """Whether the backbone's weights are those of another training."""
    knows_head: bool = False
    """Whether the head's are, too, of the same classes."""
    teacher: Teacher | None = None
    """Whom the network learns from, beside the labels."""
    world: World = ALONE
    """The processes that share the fit; the first one writes."""
    progress: Progress = field(default_factory=Progress)
    phases: tuple[Phase, ...] = field(init=False)
    _objective: Objective = field(init=False)
    _average: MovingAverage | None = field(default=None, init=False)
    _anchor: dict[str, Tensor] = field(default_factory=dict, init=False)
    _candidates: tuple[Candidate, ...] = field(default=(), init=False)
    _optimizer_state: dict[str, Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        heads = self.about.heads
        require_applicable(self.config, self.network, heads, pretrained=self.pretrained)
        self.phases = phases(self.config, self.network.arch, pretrained=self.pretrained)
        self._objective = Objective(heads, self.config, self.train.targets)

    @property
    def selection(self) -> Selection:
        """How epochs are compared."""
        return Selection(
            heads=self.about.heads,
            targets=self.val.targets,
            positive=self.positive,
            config=self.config,
        )

    @property
    def steps_left(self) -> int:
        """How often `run` will call ``on_step``, unless it stops early."""
        done = self.progress.epoch
        left = 0
        for phase in self.phases:
            left += 0 if phase.solves else max(0, phase.epochs - max(0, done))
            done -= phase.epochs
        return left * self._feed.batches

    @property
    def execution(self) -> dict[str, Any]:
        """How steps are taken, as JSON values."""
        return {
            "precision": self._stepper.precision,
            "compiled": self._stepper.compiled,
            "parts": self._stepper.parts,
            "processes": self.world.size,
        }

    def run(self, on_epoch: OnEpoch, on_step: OnStep) -> Progress:
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
        self._prepare()
        with tuned(self.device):
            first = 0
            for phase in self.phases:
                if self.progress.epoch < first + phase.epochs and not self.progress.stopped_early:
                    if phase.solves:
                        self._solve(first, on_epoch)
                    else:
                        self._run_phase(phase, first, on_epoch, on_step)
                first += phase.epochs
            if self._candidates:
                self._cook()
        return self.progress

    def resume(self, saved: Checkpoint) -> None:
        """Continue from a ``last.pt``."""
        assert saved.training is not None
        self.network.load_state_dict(saved.network)
        self.progress = Progress.from_json(saved.training["progress"])
        self._optimizer_state = saved.training["optimizer"]
        self._objective.load_state_dict(saved.training["objective"])
        self._anchor = saved.training["anchor"]
        self._candidates = tuple(Candidate(**one) for one in saved.training["candidates"])
        if saved.training["average"] is not None:
            self._average = MovingAverage(self.network, self.config.regularisation.ema)
            self._average.load(saved.training["average"])

    def _prepare(self) -> None:
        """Bring all that takes part to the device, and take note of the pretrained weights."""
        place(self.network, self.device)
        self._objective.to(self.device)
        if self.config.transfer.l2_sp and not self._anchor:
            named = self.network.backbone.named_parameters()
            self._anchor = {name: p.detach().clone() for name, p in named}
        self._anchor = {name: tensor.to(self.device) for name, tensor in self._anchor.items()}
        if self.config.regularisation.ema and self._average is None:
            self._average = MovingAverage(self.network, self.config.regularisation.ema)
        if self._average is not None:
            place(self._average.network, self.device)

    @cached_property
    def _feed(self) -> Feed:
        draws = self.config.imbalance.imbalance == "sampling"
        return Feed(
            images=self.train,
            batch_size=self.config.fit.step_images,
            augmentation=self.config.augment,
            device=self.device,
            sampling=sampling_weights(self.about.heads, self.train.targets) if draws else None,
            speed=self.config.speed,
            world=self.world,
        )

    @cached_property
    def _stepper(self) -> Stepper:
        fit, (count, _, *size) = self.config.fit, self.train.pixels.shape
        return Stepper(
            self.network,
            self.device,
            self.config.speed,
            automatic=fit.batch_size == "auto",
            seen=fit.epochs * count,
            side=math.sqrt(math.prod(size)),
            world=self.world,
        )

    def _logits_of(self, network: Network) -> NDArray[np.float32]:
        """Return the validation images' logits; each process computes some of them."""
        count = len(self.val)
        part = predict_logits(network, self.val.pixels, self.device, self.world.stretch(count))
        return self.world.whole(part, count)

    @property
    def _evaluated(self) -> Network:
        """The network that is evaluated and kept."""
        return self.network if self._average is None else self._average.network

    def _run_phase(self, phase: Phase, first: int, on_epoch: OnEpoch, on_step: OnStep) -> None:
        epochs = self._epochs(phase)
        if self.progress.epoch > first and self._optimizer_state is not None:
            epochs.optimizer.load_state_dict(self._optimizer_state)
        for number in range(self.progress.epoch, first + phase.epochs):
            started = time.perf_counter()
            try:
                train_loss, lr = epochs.run(number - first, number, on_step)
            except NotFinite as cause:
                raise self._diverged(str(cause), phase, cause.lr) from cause
            self.world.share_statistics(self.network)
            self.world.share_statistics(self._evaluated)
            logits = self._logits_of(self._evaluated)
            if not np.isfinite(logits).all():
                raise self._diverged("the logits are not finite after the last step", phase, lr)
            row = {
                "epoch": number + 1,
                "phase": phase.name,
                "lr": lr,
                "train_loss": train_loss,
                **self.selection.measure(logits),
                "seconds": round(time.perf_counter() - started, 2),
            }
            self._record(row, first, epochs.optimizer.state_dict())
            on_epoch(row)
            if self.progress.stopped_early:
                return

    def _epochs(self, phase: Phase) -> Epochs:
        others = list(self._objective.parameters())
        self._stepper.begin_phase(others)
        size = self.config.fit.step_images
        return Epochs(
            network=self.network,
            objective=self._objective,
            teacher=self.teacher,
            average=self._average,
            anchor=self._anchor,
            feed=self._feed,
            stepper=self._stepper,
            config=self.config,
            phase=phase,
            freeze_norms=freezes_norms(self.config, size, pretrained=self.pretrained),
            optimizer=make_optimizer(self.network, phase, self.config.fit, others),
        )

    def _diverged(self, found: str, phase: Phase, lr: float) -> Diverged:
        option = "lr" if phase.moves_backbone else "head_lr"
        best, last = self.progress.best_epoch, self.progress.epoch
        kept = f"last.pt is that of epoch {last}, best.pt that of epoch {best}"
        return Diverged(
            f"{found} of epoch {last + 1}, at the learning rate {lr:.3g} of "
            f"--{option.replace('_', '-')} {getattr(self.config.fit, option):g}; try a lower one "
            f"({kept if last else 'there is no checkpoint yet'})"
        )

    def _solve(self, first: int, on_epoch: OnEpoch) -> None:
        """Solve for the head; one that came with the backbone is left if it is better."""
        alone = self.config.fit.mode == "features"
        row, weights = features.best_head(
            self.selection,
            self.network,
            self.train,
            self.val,
            self.device,
            as_start=not alone,
            own_too=self.knows_head and not alone,
            world=self.world,
        )
        weights.install(self.network)
        if self._average is not None:
            self._average.update(self.network)  # the first time it takes all of it
        row = {**row, "epoch": first + 1}
        self._record(row, first, optimizer={})
        on_epoch(row)

    def _record(self, row: EpochRow, first: int, optimizer: dict[str, Any]) -> None:
        """Note the epoch; write ``best.pt`` if it is the best so far, and ``last.pt``."""
        score = self.selection.score(row)
        progress = self.progress.after(row, score)
        # Patience starts anew with each phase: the first epochs of a new one are often worse.
        waited = row["epoch"] - max(progress.best_epoch, first)
        in_last = row["phase"] == self.phases[-1].name
        if in_last and 0 < self.config.fit.patience <= waited:
            progress = replace(progress, stopped_early=True)
        kept = _state_of(self._evaluated)
        candidates = self._candidates
        if at_most := self.config.regularisation.soup:
            new = Candidate(epoch=row["epoch"], score=score, state=kept)
            candidates = best_candidates((*candidates, new), at_most)
        if progress.best_epoch == row["epoch"]:
            self._save("best.pt", kept)
        training = self._training_state(progress, optimizer, candidates)
        self._save("last.pt", _state_of(self.network), training)
        # After it is on the disk, since an interrupt may come any time.
        self.progress, self._candidates = progress, candidates

    def _training_state(
        self,
        progress: Progress,
        optimizer: dict[str, Any],
        candidates: tuple[Candidate, ...],
    ) -> dict[str, Any]:
        """Return what `resume` needs beside the network."""
        return {
            "progress": progress.to_json(),
            "optimizer": optimizer,
            "objective": self._objective.state_dict(),
            "anchor": {name: t.cpu() for name, t in self._anchor.items()},
            "average": None if self._average is None else self._average.state(),
            "candidates": [vars(one) for one in candidates],
            "distilled": self.teacher is not None,
        }

    def _save(self, name: str, state: State, training: dict[str, Any] | None = None) -> None:
        if not self.world.first:
            return
        saved = Checkpoint(about=self.about, network=state, training=training)
        checkpoints.save(self.folder / name, saved)

    def _cook(self) -> None:
        """Make ``best.pt`` the mean of the best epochs, if it is no worse than the best one."""
        tried = self.about.build_member().to(self.device)

        def score_of(state: State) -> Score:
            tried.load_state_dict(state)
            logits = self._logits_of(tried)
            return self.selection.score(self.selection.measure(logits))

        state, epochs, score = greedy_soup(self._candidates, score_of)
        if len(epochs) > 1:
            self._save("best.pt", state)
            self.progress = replace(self.progress, soup=epochs, best_score=score)


def _state_of(network: Network) -> State:
    return {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
