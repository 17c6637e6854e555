"""Whether there is an NVIDIA GPU, asked of its driver.

ONNX Runtime lists the providers it was compiled with, not what is there.
"""

import ctypes
import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The first GPU."""

    name: str
    driver: str
    """Version of CUDA that the driver supports, such as ``13.0``."""


def find_gpu() -> Gpu | str:
    """Return the first GPU, or why there is none (CUDA Driver API)."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count, version = ctypes.c_int(0), ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return "the NVIDIA driver does not start"
        if count.value < 1:
            return "there is no NVIDIA GPU"
        device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(device), 0)
        driver.cuDeviceGetName(name, len(name), device)
        driver.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return "there is no NVIDIA driver"
    major, minor = version.value // 1000, version.value % 1000 // 10
    return Gpu(name=name.value.decode(errors="replace"), driver=f"{major}.{minor}")
