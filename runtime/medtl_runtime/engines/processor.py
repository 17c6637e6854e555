"""The processor and the graphics driver of this machine: what decides which kernels run."""

import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_NAMING = {"model name", "flags", "Features", "CPU implementer", "CPU part"}
_NVIDIA = Path("/proc/driver/nvidia/version")


def machine() -> str:
    """Return a text that changes when the processor, its features or the NVIDIA driver do."""
    parts = [platform.system(), platform.machine(), *_cpu_lines()]
    with suppress(OSError):
        parts.append(_NVIDIA.read_text(encoding="utf-8"))
    return "\n".join(parts)


def cpu_name() -> str:
    """Return what people call the processor."""
    names = [line for line in _cpu_lines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else _plain_name()


def has_nvidia_driver() -> bool:
    """Whether the NVIDIA driver is loaded, as far as Linux tells without starting it."""
    return _NVIDIA.exists()


def may_saturate(cpu_flags: str | None = None) -> bool:
    """Whether u8 x s8 products may saturate on this processor, and int8 models lose accuracy.

    x86 processors without VNNI add such products in 16 bits. ONNX Runtime's option
    ``session.x64quantprecision`` takes exact kernels there; they take twice the time, and they are
    taken on processors with VNNI too, so it is set only where it is needed.

    Parameters
    ----------
    cpu_flags
        The processor's features as Linux names them; those of this machine by default. Where they
        cannot be read, the answer is yes.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    if cpu_flags is None:
        cpu_flags = " ".join(_cpu_lines())
    return not {"avx512_vnni", "avx_vnni"} & set(cpu_flags.split())


def _cpu_lines() -> list[str]:
    """Return what the system says of the first processor's kind."""
    with suppress(OSError):
        return list(first_processor(Path("/proc/cpuinfo")))
    return [_plain_name()]


def _plain_name() -> str:
    return platform.processor() or platform.machine()


def first_processor(cpuinfo: Path) -> Iterator[str]:
    """Yield the lines on name and features of the first processor in ``/proc/cpuinfo``."""
    # The kernel measures every core's clock while it is read: on many cores, most of a second.
    with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                return
            if line.split(":")[0].strip() in _NAMING:
                yield line.strip()
