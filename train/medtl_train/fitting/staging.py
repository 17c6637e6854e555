"""Where training images wait for their step: in the device's memory, or on the way to it.

Canonical images are 16-bit fixed-point numbers: 100,000 of 224 x 224 in grey are 10 GB, which a GPU
of 80 GB holds with room to spare. There, a batch is a gather on the device and nothing else. What
does not fit is read by a thread into two pinned buffers in turn, and copied on a stream of its own
while the device computes on the batch before.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl_runtime.recipe import FULL_SCALE, as_batch

Rows = NDArray[np.intp]
"""Indices of a batch's images, shape (n,)."""

_UPLOAD = 256
"""Images that are copied to the device at once."""


class Pixels(Protocol):
    """Canonical images, N x C x H x W, uint16: an array, or one that lies on the disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return N, C, H, W."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Rows | slice, /) -> NDArray[np.uint16]: ...


class Staged(Protocol):
    """A place that batches come from."""

    place: str
    """What a person calls it."""

    def batches(self, parts: Sequence[Rows]) -> Iterator[Tensor]:
        """Yield the images of each part, n x C x H x W, float32 in [0, 1], on the device."""
        ...


def stage(pixels: Pixels, device: torch.device, *, largest: int, share: float) -> Staged:
    """Choose the place for images.

    Parameters
    ----------
    largest
        Images of the largest batch.
    share
        Of the GPU's free memory, what the images may take at most.
    """
    if device.type != "cuda":
        return OnHost(pixels)
    free, _ = torch.cuda.mem_get_info(device)
    if 2 * math.prod(pixels.shape) <= share * free:
        return OnDevice(pixels, device)
    return Streamed(pixels, device, largest)


class OnHost:
    """Images in the processor's memory, or on the disk; the processor is the device."""

    place = "in main memory or the cache"

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels

    def batches(self, parts: Sequence[Rows]) -> Iterator[Tensor]:
        """Yield the images of each part."""
        for rows in parts:
            yield torch.from_numpy(as_batch(self._pixels[rows]))


class OnDevice:
    """Images in the device's memory."""

    place = "in the GPU's memory"

    def __init__(self, pixels: Pixels, device: torch.device) -> None:
        # Not as uint16: torch can neither index nor convert it on every device.
        self._pixels = torch.empty(pixels.shape, dtype=torch.int16, device=device)
        self._scale = full_scale(device)
        for start in range(0, len(pixels), _UPLOAD):
            part = as_signed(pixels[start : start + _UPLOAD])
            self._pixels[start : start + len(part)] = part.to(device)

    def batches(self, parts: Sequence[Rows]) -> Iterator[Tensor]:
        """Yield the images of each part."""
        # All indices at once, because each copy from the host stops the queue of a GPU.
        order = torch.from_numpy(np.concatenate(parts)).to(self._pixels.device)
        for rows in order.split([len(part) for part in parts]):
            yield as_floats(self._pixels.index_select(0, rows), self._scale)


class Streamed:
    """Images in main memory or on the disk, brought to a GPU one batch ahead."""

    place = "streamed to the GPU"

    def __init__(self, pixels: Pixels, device: torch.device, largest: int) -> None:
        self._device, self._scale = device, full_scale(device)
        stream = torch.cuda.Stream(device)
        self._buffers = [_Buffer(pixels, largest, device, stream) for _ in range(2)]

    def batches(self, parts: Sequence[Rows]) -> Iterator[Tensor]:
        """Yield the images of each part."""
        coming: deque[Future[tuple[Tensor, torch.cuda.Event]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="medtl-feed") as reader:
            for rows, buffer in zip(parts, cycle(self._buffers), strict=False):
                coming.append(reader.submit(buffer.send, rows))
                if len(coming) == len(self._buffers):
                    yield self._arrived(coming.popleft())
            while coming:
                yield self._arrived(coming.popleft())

    def _arrived(self, coming: Future[tuple[Tensor, torch.cuda.Event]]) -> Tensor:
        images, copied = coming.result()
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(copied)
        images.record_stream(computing)  # else the copying stream would use its memory again
        return as_floats(images, self._scale)


class _Buffer:
    """Pinned memory for a batch, which the GPU fetches while the processor does other things."""

    def __init__(
        self, pixels: Pixels, largest: int, device: torch.device, stream: torch.cuda.Stream
    ) -> None:
        self._pixels, self._device, self._stream = pixels, device, stream
        shape = (largest, *pixels.shape[1:])
        self._pinned = torch.empty(shape, dtype=torch.int16, pin_memory=True)
        self._copied = torch.cuda.Event()

    def send(self, rows: Rows) -> tuple[Tensor, torch.cuda.Event]:
        """Read a batch and start its copy; return it with the event of its arrival."""
        self._copied.synchronize()  # what was in the buffer has left
        filled = self._pinned[: len(rows)]
        filled.copy_(as_signed(self._pixels[rows]))
        with torch.cuda.stream(self._stream):
            images = filled.to(self._device, non_blocking=True)
            self._copied.record(self._stream)
        return images, self._copied


def as_signed(pixels: NDArray[np.uint16]) -> Tensor:
    """Return the same bits as int16."""
    return torch.from_numpy(np.ascontiguousarray(pixels).view(np.int16))


def as_floats(signed: Tensor, scale: Tensor) -> Tensor:
    """Return the images that `as_signed` took, as `as_batch` does, to the bit."""
    return (signed.to(torch.int32) & 0xFFFF).float() / scale


def full_scale(device: torch.device) -> Tensor:
    """Return the divisor of `as_floats`.

    A tensor on the device, because CUDA divides by a number of Python's by multiplying with its
    inverse, which rounds differently.
    """
    return torch.tensor(float(FULL_SCALE), device=device)
