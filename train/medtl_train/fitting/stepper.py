"""Takes the gradient of a step's loss: in parts, in the chosen precision, over all processes."""

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medtl_models.drop_path import synchronise_norms
from medtl_models.network import Network, Outputs
from medtl_train.config import SpeedConfig
from medtl_train.errors import MemoryTooSmall
from medtl_train.fitting.distributed import ALONE, World, reported
from medtl_train.fitting.feed import Batch
from medtl_train.fitting.memory import parts_that_fit, tried
from medtl_train.fitting.precision import Precision, autocast, choose_precision, compiles

Forward = Callable[[Tensor], Outputs]
"""The network as a step has to call it."""

Loss = Callable[[Forward, Batch], Tensor]
"""What a step lowers, for a part of its batch: weighted as `Batch` says, so that parts add up."""

_CHECKED = 50
"""Steps between two looks at the loss, where a look makes a device or other processes wait."""


class Stepper:
    """Runs a network forward and backward as fast as its device allows.

    Parameters
    ----------
    network
        On the device; see `medtl_train.fitting.precision.place`.
    automatic
        Whether a batch that does not fit into the GPU's memory is cut into parts; else it is
        refused with the size that fits.
    seen, side
        Images that training sees in all, and their side; see `compiles`.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        speed: SpeedConfig,
        *,
        automatic: bool = False,
        seen: int = 0,
        side: float = 224,
        world: World = ALONE,
    ) -> None:
        self.network, self.device, self.world = network, device, world
        self.precision: Precision = choose_precision(speed.precision, device)
        self.compiled = compiles(speed.compile, device, images=seen, side=side)
        self.parts: int | None = None if automatic and device.type == "cuda" else 1
        """Of a batch; None until they have been tried."""
        self._called: Any = None
        self._others: tuple[nn.Parameter, ...] = ()

    def begin_phase(self, others: Iterable[nn.Parameter] = ()) -> None:
        """Take notice that other layers are trained from now on.

        Parameters
        ----------
        others
            Parameters of the loss.
        """
        self._called, self._others = None, tuple(others)

    def backward(self, batch: Batch, loss: Loss) -> Tensor:
        """Add the gradient of a batch's loss, averaged over the processes; return the loss.

        Raises
        ------
        MemoryTooSmall
            It does not fit into the GPU's memory.
        ProcessLost
            Another process is gone.
        """
        if self.parts is None:
            found = parts_that_fit(self._trial(batch, loss), len(batch.images))
            self.parts = self.world.most(found)
        if self._called is None:
            self._called = self._wrapped()
        try:
            with reported():
                return self._in_parts(batch.parts(self.parts), loss)
        except torch.OutOfMemoryError:
            pass  # outside of the handler, nothing holds the step's tensors any more
        raise self._too_small(batch, loss)

    def _in_parts(self, parts: list[Batch], loss: Loss) -> Tensor:
        total = torch.zeros((), device=self.device)
        for part in parts:
            with self._averaged(part is parts[-1]):
                with autocast(self.precision, self.device):
                    value = loss(self._forward, part)
                value.backward()
            total = total + value.detach()
        self.world.average_gradients(self._others)
        return total

    def _averaged(self, last: bool) -> AbstractContextManager[object]:
        """Let processes average their gradients after a step's last part only."""
        if last or self.world.size == 1:
            return nullcontext()
        return self._distributed.no_sync()

    def _forward(self, images: Tensor) -> Outputs:
        outputs = cast(Outputs, self._called(images))
        if self.precision == "fp32":
            return outputs
        return Outputs(*(one.float() for one in outputs))

    def _wrapped(self) -> Callable[[Tensor], Any]:
        called: nn.Module = self.network
        if self.world.size > 1:
            called = self._distributed = self._spread()
        # Batches are of two sizes, which differ by 1: two graphs are faster than one for any.
        return torch.compile(called, dynamic=False) if self.compiled else called

    def _spread(self) -> DistributedDataParallel:
        """Return the network with gradients averaged; a new one for each set of trained layers."""
        gpu = self.device.type == "cuda"
        if gpu:  # its BatchNorm layers take their statistics over all processes
            synchronise_norms(self.network)
        # Statistics are equal on GPUs, and joined after each epoch elsewhere: none are broadcast.
        with warnings.catch_warnings():  # the option's new name is not known to torch 2.9
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                self.network, device_ids=[self.device] if gpu else None, broadcast_buffers=False
            )

    def _trial(self, batch: Batch, loss: Loss) -> Callable[[int], object]:
        """Return what trains on one part of a batch, and leaves no trace."""

        def forward(images: Tensor) -> Outputs:
            return self.network(images)

        def attempt(parts: int) -> None:
            with tried(self.network, self.device), autocast(self.precision, self.device):
                loss(forward, batch.parts(parts)[0]).backward()
            for parameter in self._others:
                parameter.grad = None

        return attempt

    def _too_small(self, batch: Batch, loss: Loss) -> MemoryTooSmall:
        images = len(batch.images)
        found = f"a step of {images} images does not fit into the GPU's memory"
        if self.world.size > 1 or self.parts != 1:
            return MemoryTooSmall(f"{found}; expected a smaller --batch-size or --size")
        fitting = images // parts_that_fit(self._trial(batch, loss), images)
        return MemoryTooSmall(
            f"{found}; --batch-size {fitting} does, and --batch-size auto takes the same steps in "
            "parts"
        )


class Losses:
    """The losses of an epoch's steps; it looks at them now and then, since a look makes a GPU wait.

    With several processes they are the means over all of them, so that all stop at the same step.
    """

    def __init__(self, device: torch.device, world: World = ALONE) -> None:
        self._world = world
        self._looks = 1 if device.type == "cpu" and world.size == 1 else _CHECKED
        self._values: list[float] = []
        self._pending: list[Tensor] = []
        self.broken: tuple[int, float] | None = None
        """The first step, from 1, whose loss is not finite, and that loss; of those looked at."""

    def add(self, value: Tensor) -> None:
        """Take the loss of the next step."""
        self._pending.append(value)
        if len(self._pending) == self._looks:
            self._look()

    def mean(self) -> float:
        """Return the mean over all steps."""
        self._look()
        return float(np.mean(self._values))

    def _look(self) -> None:
        if not self._pending:
            return
        seen = self._world.mean(torch.stack(self._pending)).tolist()
        for step, value in enumerate(seen, len(self._values) + 1):
            if self.broken is None and not math.isfinite(value):
                self.broken = (step, value)
        self._values += seen
        self._pending = []
