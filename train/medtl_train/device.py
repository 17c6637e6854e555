"""The device that training runs on."""

import torch

from medtl_runtime.devices import require_training_device
from medtl_runtime.errors import DeviceUnavailable


def choose_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    DeviceUnavailable
        ``cuda`` was asked for and torch cannot use it; there is no silent fallback.
    UsageError
        Another name.
    """
    require_training_device(name)
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable(name, "torch finds no usable NVIDIA GPU")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"
