"""How many parts a batch has to be cut into so that a step fits into a GPU's memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from medtl_train.errors import MemoryTooSmall

Result = TypeVar("Result")


def parts_that_fit(attempt: Callable[[int], object], images: int) -> int:
    """Return the smallest power of 2 of parts in which a batch fits.

    Parameters
    ----------
    attempt
        Trains on one part of so many; raises `torch.OutOfMemoryError` if that does not fit.
    images
        Of the batch.

    Raises
    ------
    MemoryTooSmall
        Not even 2 images fit.
    """
    parts = 1
    while unless_too_large(lambda parts=parts: (attempt(parts), True)) is None:
        parts *= 2
        if images // parts < 2:
            raise MemoryTooSmall(
                "not even 2 images fit into the GPU's memory; expected a smaller --size, a smaller "
                "--arch, or a GPU that nothing else uses"
            )
    return parts


def unless_too_large(attempt: Callable[[], Result]) -> Result | None:
    """Return what an attempt returns; None where it does not fit into the GPU's memory."""
    try:
        return attempt()
    except torch.OutOfMemoryError:
        pass
    # Outside of the handler, where nothing holds the tensors of the attempt any more.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


@contextmanager
def tried(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Put all layers in training for a trial step; afterwards all is as it was before.

    Memory for an optimiser of two moments a parameter is set aside meanwhile.
    """
    training = [(module, module.training) for module in network.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    moments = 2 * sum(parameter.numel() for parameter, _ in trained)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        network.train().requires_grad_(True)
        reserve = torch.empty(moments, device=device)
        try:
            yield
        finally:
            del reserve
            network.zero_grad(set_to_none=True)
            for module, was in training:
                module.training = was
            for parameter, was in trained:
                parameter.requires_grad_(was)
            for buffer, kept in buffers:
                buffer.copy_(kept)
