"""One run on several devices: processes that `torchrun` starts, each with a share of every batch.

Every process knows the whole data set and draws the same order, takes its part of each batch, and
averages gradients with the others. The first one writes all files and notes.
"""

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from medtl_runtime.errors import UsageError
from medtl_train.errors import ProcessLost

# The first process decodes a large data set while the others wait for it.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run, and which of them this one is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and notes."""
        return self.rank == 0

    def share(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return this process's part of rows that all know, of nearly equal sizes, in order."""
        return np.array_split(rows, self.size)[self.rank]

    def stretch(self, count: int) -> slice:
        """Return this process's part of ``count`` rows in a row; all of them if they are few."""
        if count < self.size:
            return slice(0, count)
        mine = self.share(np.arange(count))
        return slice(int(mine[0]), int(mine[-1]) + 1)

    def whole(self, part: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """Join what every process has for its `stretch` of ``count`` rows, n x D."""
        if self.size == 1 or count < self.size:
            return part
        padded = torch.zeros((-(-count // self.size), *part.shape[1:]))
        padded[: len(part)] = torch.from_numpy(part)
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        with reported():
            dist.all_gather(gathered, padded)
        sizes = [len(some) for some in np.array_split(np.arange(count), self.size)]
        return np.concatenate([g[:n].numpy() for g, n in zip(gathered, sizes, strict=True)])

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, on the processor."""
        averaged = values.detach().cpu().double()
        if self.size > 1:
            with reported():
                dist.all_reduce(averaged)
        return averaged / self.size

    def most(self, value: int) -> int:
        """Return the largest value that any process has."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        with reported():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def share_statistics(self, network: nn.Module) -> None:
        """Give every process the mean of all BatchNorm statistics.

        On GPUs `SyncBatchNorm` keeps them equal; elsewhere each process has those of its images.
        """
        self._average([b for b in network.buffers() if b.is_floating_point()])

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of parameters that are not the network's."""
        self._average([p.grad for p in parameters if p.grad is not None])

    def _average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of all processes by their means."""
        if self.size == 1 or not tensors:
            return
        averaged = self.mean(torch.cat([one.flatten() for one in tensors]))
        for one, mean in zip(tensors, averaged.split([t.numel() for t in tensors]), strict=True):
            one.copy_(mean.view_as(one))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            self.most(0)

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Let the others in when the first process is through: what it caches, they find."""
        if not self.first:
            self.wait()
        try:
            yield
        finally:
            if self.first:
                self.wait()


ALONE = World()


def under_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `torchrun` or a launcher like it has started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys()


def restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``torchrun --max-restarts`` has started the processes again after one was lost."""
    return int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Join the other processes of `torchrun`, if there are any, until the block ends.

    Parameters
    ----------
    device
        The kind to run on; ``cuda`` becomes the GPU of this process's number on its machine.

    Yields
    ------
    The processes, and this one's device.

    Raises
    ------
    UsageError
        There are more processes on this machine than GPUs.
    ProcessLost
        Another process has ended before its time, or `torchrun` ends this one for that.
    """
    if not under_torchrun():
        yield ALONE, device
        return
    device = _own(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    world = World(rank=dist.get_rank(), size=dist.get_world_size())
    before = signal.signal(signal.SIGTERM, _told_to_end)
    try:
        yield world, device
    except UsageError as error:
        if world.first:
            raise
        raise SystemExit(error.exit_code) from error  # the first one says the same
    finally:
        signal.signal(signal.SIGTERM, before)
        with suppress(RuntimeError):  # a lost process has closed the connections
            dist.destroy_process_group()


def _own(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise UsageError(
            f"torchrun started {number + 1} or more processes on a machine with {there} GPUs; "
            f"expected --nproc-per-node {there} or fewer"
        )
    own = torch.device("cuda", number)
    torch.cuda.set_device(own)
    return own


def _told_to_end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise ProcessLost("torchrun ended this process, because another one was lost or it was told to")


@contextmanager
def reported() -> Iterator[None]:
    """Turn what a collective operation raises when a process is gone into `ProcessLost`."""
    try:
        yield
    except (dist.DistBackendError, dist.DistNetworkError) as cause:
        raise ProcessLost("another process of torchrun was lost") from cause
    except RuntimeError as cause:  # gloo has no class of its own
        if not _of_gloo(cause):
            raise
        raise ProcessLost("another process of torchrun was lost") from cause


def _of_gloo(cause: RuntimeError) -> bool:
    text = str(cause)
    return "gloo" in text or "Connection closed by peer" in text or "Connection reset" in text
