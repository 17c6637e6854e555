"""From the name of a device to the execution provider that ONNX Runtime is told to use."""

import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from medtl_runtime.devices import Device
from medtl_runtime.engines.cuda import Gpu, find_gpu
from medtl_runtime.errors import DeviceUnavailable

CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
# The exhaustive default makes the first run take seconds; TF32 breaks parity.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
_NO_CUDA = 'this ONNX Runtime has no CUDA: pip install "medtl[gpu]" instead of medtl[cpu]'
_ORDER = {"GPU": 0, "NPU": 1}
_MOST_OF_A_REASON = 240


def has_cuda(runtime: Any) -> bool:
    """Whether this build of ONNX Runtime has CUDA; there may be no GPU."""
    return _CUDA in runtime.get_available_providers()


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device as ONNX Runtime is told of it."""

    device: Device
    name: str
    provider: str
    providers: Sequence[str | tuple[str, Mapping[str, str]]] = ()
    ep_devices: Sequence[Any] = ()
    """For a plug-in, in place of ``providers``."""
    remedy: str = ""
    """What to do where the provider is compiled in and does not start."""


def find_target(runtime: Any, device: Device, compiled: Path | None) -> Target:
    """Return what to tell ONNX Runtime; ``compiled`` is for what TensorRT builds.

    Raises
    ------
    DeviceUnavailable
        No driver, no GPU, a build without the provider, or a plug-in that is none.
    """
    if device.kind == "cpu":
        return Target(device=device, name="CPU", provider=CPU, providers=[CPU])
    if device.kind == "plugin":
        return _plugin(runtime, device)
    assert device.kind in ("cuda", "tensorrt"), device
    gpu = find_gpu()
    if not isinstance(gpu, Gpu):
        raise DeviceUnavailable(str(device), gpu)
    if not has_cuda(runtime):
        raise DeviceUnavailable(str(device), _NO_CUDA)
    with silent():  # it prints what it does not find, and stdout is for results
        runtime.preload_dlls()
    place = f"on {gpu.name}, driver for CUDA {gpu.driver}"
    cuda = (_CUDA, _CUDA_OPTIONS)
    if device.kind == "cuda":
        needed = 'it needs the CUDA and cuDNN libraries that pip install "medtl[gpu]" brings'
        return Target(
            device=device,
            name=f"CUDA {place}",
            provider=_CUDA,
            providers=[cuda, CPU],
            remedy=needed,
        )
    if _TENSORRT not in runtime.get_available_providers():
        raise DeviceUnavailable(str(device), "this ONNX Runtime has no TensorRT")
    return Target(
        device=device,
        name=f"TensorRT {place}",
        provider=_TENSORRT,
        providers=[(_TENSORRT, _tensorrt_options(compiled)), cuda, CPU],
        remedy="it needs TensorRT's libraries (libnvinfer) where the loader finds them",
    )


def _tensorrt_options(compiled: Path | None) -> dict[str, str]:
    options = {"trt_fp16_enable": "0"}
    if compiled is None:
        return options
    # Built engines are found again by the graph's structure and not by its weights, so each model
    # has a folder of its own.
    return options | {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(compiled)}


def _plugin(runtime: Any, device: Device) -> Target:
    """Load a plug-in's library; ONNX Runtime keeps it for the life of the process."""
    library = Path(device.detail)
    if not library.is_file():
        raise DeviceUnavailable(str(device), "there is no such library")
    path = str(library.resolve())
    try:
        runtime.register_execution_provider_library(path, path)
    except Exception as cause:  # ORT's exceptions have no public base class
        if "already registered" not in str(cause):
            found = f"ONNX Runtime cannot load it: {reason(cause)}"
            raise DeviceUnavailable(str(device), found) from cause
    offered = [one for one in runtime.get_ep_devices() if _library_of(one) == path]
    if not offered:
        raise DeviceUnavailable(str(device), "it offers no device on this machine")
    chosen = min(offered, key=lambda one: _ORDER.get(one.device.type.name, 2))
    version = chosen.ep_metadata.get("version", "")
    name = f"{short(chosen.ep_name)} {version} on {chosen.device.type.name}"
    return Target(
        device=device,
        name=" ".join(name.split()),
        provider=chosen.ep_name,
        ep_devices=[chosen],
    )


def _library_of(ep_device: Any) -> str | None:
    return ep_device.ep_metadata.get("library_path")


def short(provider: str) -> str:
    """Return a provider's name as people say it."""
    return provider.replace("ExecutionProvider", "")


def reason(cause: BaseException) -> str:
    """Return an engine's message as a part of one line."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(cause))
    text = " ".join(text.split())
    return text if len(text) <= _MOST_OF_A_REASON else text[:_MOST_OF_A_REASON] + "…"


@contextmanager
def silent() -> Iterator[None]:
    """Drop what this thread writes to stdout; what other threads write meanwhile arrives."""
    original = sys.stdout
    sys.stdout = cast("TextIO", _OtherThreads(original))
    try:
        yield
    finally:
        sys.stdout = original


class _OtherThreads:
    """A text stream that ignores the thread that made it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._ignored = threading.get_ident()

    def write(self, text: str) -> int:
        ignored = threading.get_ident() == self._ignored
        return len(text) if ignored else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
