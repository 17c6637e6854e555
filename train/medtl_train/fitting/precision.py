"""In which number format and layout a network is trained, and whether it is compiled."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

from medtl_runtime.errors import UsageError
from medtl_train.config.speed import CompileChoice, PrecisionName

Precision = Literal["fp32", "bf16"]

# torch.compile takes one to two minutes for forward and backward of a resnet50, and wins about
# 0.05 ms an image of 224 x 224 on a large GPU: an estimate, to be replaced by a measurement.
_WORTH_COMPILING = 2_000_000


def choose_precision(name: PrecisionName, device: torch.device) -> Precision:
    """Return the format; bfloat16 needs no scaling of the loss, as float16 does.

    Raises
    ------
    UsageError
        bf16 was asked for, and the GPU does not compute it.
    """
    if device.type != "cuda":
        return "bf16" if name == "bf16" else "fp32"
    with torch.cuda.device(device):
        can = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not can:
        found = torch.cuda.get_device_name(device)
        raise UsageError(f"--precision bf16: {found} does not compute it; use --precision fp32")
    return "bf16" if can and name != "fp32" else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which matrix products and convolutions are in that format."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def compiles(choice: CompileChoice, device: torch.device, *, images: int, side: float) -> bool:
    """Whether a network is to be compiled.

    ``auto`` compiles on a GPU where the run sees at least 2 million images of 224 x 224, or as
    many pixels in other sizes.

    Parameters
    ----------
    images
        That training sees in all: epochs times images.
    side
        Of an image, pixels; the root of the area where it is not square.
    """
    if choice == "auto":
        return device.type == "cuda" and images * (side / 224) ** 2 >= _WORTH_COMPILING
    return choice == "yes"


def place(network: nn.Module, device: torch.device) -> None:
    """Bring a network to its device; on a GPU with channels last, as its tensor cores take them."""
    network.to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@contextmanager
def tuned(device: torch.device) -> Iterator[None]:
    """Let a GPU take TF32 for products of float32, and the fastest of cuDNN's algorithms.

    TF32 rounds the factors to 10 bits of mantissa and adds in float32. What was set before comes
    back at the end.
    """
    if device.type != "cuda":
        yield
        return
    matmul, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("high")  # cuDNN's convolutions take TF32 anyway
    torch.backends.cudnn.benchmark = True  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.benchmark = benchmark  # pyright: ignore[reportAttributeAccessIssue]
