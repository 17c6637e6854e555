"""Runs the network; an engine is a protocol, so that tests and others can bring their own."""

import ctypes
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import DeviceUnavailable, EngineMissing, ModelUnusable, UsageError
from medtl_runtime.modelfile import INPUT, METADATA_KEY, OUTPUTS, Description

Device = Literal["auto", "cpu", "cuda"]


class Engine(Protocol):
    """What a `Predictor` needs of an engine."""

    @property
    def name(self) -> str:
        """What runs and where, for people and for results."""
        ...

    @property
    def description(self) -> Description:
        """What the loaded model says of itself."""
        ...

    def run(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        """Return ``logits`` [N, K], ``cam`` [N, K, h, w] and ``embedding`` [N, D].

        ``images`` are canonical: float32 in [0, 1], N x C x H x W.
        """
        ...


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU or an NVIDIA GPU."""

    def __init__(self, path: Path, *, device: Device = "auto", threads: int | None = None) -> None:
        """Load a model file.

        Parameters
        ----------
        path
            A medtl model file.
        device
            ``auto`` takes CUDA where it is really there, else the CPU. ``cuda`` fails where it
            is not: there is no silent fallback.
        threads
            Threads on the CPU; as many as physical cores by default.

        Raises
        ------
        ModelUnusable
            Not ONNX, cut short, not a medtl model, or with other inputs and outputs.
        DeviceUnavailable, EngineMissing
            As their names say.
        """
        self.session = Session(path, device=device, threads=threads)
        self.name = self.session.name
        self.description = _described(self.session, path)

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the three outputs; see `Engine.run`."""
        return self.session.run(images)


class Session:
    """An ONNX Runtime session with medtl's settings, for a graph with or without a description."""

    def __init__(
        self, model: Path | bytes, *, device: Device = "auto", threads: int | None = None
    ) -> None:
        runtime = _onnxruntime()
        provider = _provider(device)
        self._source = "the graph" if isinstance(model, bytes) else model
        try:
            self._session = runtime.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                _options(runtime, threads),
                providers=_with_options(provider),
            )
        except Exception as cause:  # ORT's exceptions have no public base class
            if device == "cuda":
                raise DeviceUnavailable(device, "ONNX Runtime cannot use it") from cause
            found = "ONNX Runtime cannot load it; it may be cut short"
            raise ModelUnusable(self._source, found) from cause
        used = self._session.get_providers()[0]
        if used != provider and device != "auto":
            raise DeviceUnavailable(device, "ONNX Runtime fell back to the CPU")
        self.name = f"ONNX Runtime {runtime.__version__}, {used.removesuffix('ExecutionProvider')}"

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the three outputs; see `Engine.run`.

        Raises
        ------
        ModelUnusable
            The graph loads, but cannot be computed for these images on this machine.
        """
        try:
            values = self._session.run(OUTPUTS, {INPUT: images})
        except Exception as cause:  # as above
            raise ModelUnusable(self._source, "ONNX Runtime cannot run it") from cause
        return {name: np.asarray(value) for name, value in zip(OUTPUTS, values, strict=True)}

    def metadata(self) -> Mapping[str, str]:
        """Return the file's ``metadata_props``."""
        return self._session.get_modelmeta().custom_metadata_map

    def input_type(self) -> str:
        """Return the element type of the input in ONNX Runtime's words, as ``tensor(float)``."""
        return self._session.get_inputs()[0].type

    def shapes(self) -> tuple[dict[str, list], dict[str, list]]:
        """Return the shapes of inputs and outputs by name; a free dimension is a string."""
        return (
            {item.name: item.shape for item in self._session.get_inputs()},
            {item.name: item.shape for item in self._session.get_outputs()},
        )


def _described(session: Session, path: Path) -> Description:
    """Return the file's description, checked against its inputs and outputs."""
    properties = session.metadata()
    if METADATA_KEY not in properties:
        raise ModelUnusable(path, "an ONNX file without a medtl description")
    description = Description.from_json(properties[METADATA_KEY], path)
    inputs, outputs = session.shapes()
    expected = [description.recipe.channels, *description.recipe.size]
    if list(inputs) != [INPUT] or list(inputs[INPUT][1:]) != expected:
        raise ModelUnusable(path, f"inputs {inputs}; expected {INPUT} [N, C, H, W] = {expected}")
    if isinstance(inputs[INPUT][0], int) and inputs[INPUT][0] != 1:
        raise ModelUnusable(path, f"a fixed batch of {inputs[INPUT][0]}; expected a free one")
    if session.input_type() != "tensor(float)":
        raise ModelUnusable(path, f"input of {session.input_type()}; expected float32")
    if set(outputs) != set(OUTPUTS):
        raise ModelUnusable(path, f"outputs {sorted(outputs)}; expected {', '.join(OUTPUTS)}")
    _check_outputs(outputs, len(description.classes), path)
    return description


def _check_outputs(outputs: Mapping[str, list], classes: int, path: Path) -> None:
    for name, rank in zip(OUTPUTS, (2, 4, 2), strict=True):
        if len(outputs[name]) != rank:
            raise ModelUnusable(path, f"{name} of shape {outputs[name]}; expected {rank} axes")
    for name in ("logits", "cam"):
        if outputs[name][1] != classes:
            raise ModelUnusable(path, f"{outputs[name][1]} {name} for {classes} classes")


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError as cause:
        raise EngineMissing from cause
    return onnxruntime


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
        try:
            cpu_flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        except OSError:
            return True
    return not {"avx512_vnni", "avx_vnni"} & set(cpu_flags.split())


def _options(runtime, threads: int | None):
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # failures come as exceptions
    if threads is not None:
        options.intra_op_num_threads = threads
    if may_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _with_options(provider: str) -> list:
    if provider == "CUDAExecutionProvider":
        # The exhaustive default makes the first run take seconds; tf32 breaks parity.
        options = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
        return [(provider, options), "CPUExecutionProvider"]
    return [provider]


def _provider(device: str) -> str:
    if device not in get_args(Device):
        raise UsageError(f"device is {device}; expected {', '.join(get_args(Device))}")
    if device == "cpu":
        return "CPUExecutionProvider"
    missing = _why_no_cuda()
    if missing is None:
        return "CUDAExecutionProvider"
    if device == "cuda":
        raise DeviceUnavailable(device, missing)
    return "CPUExecutionProvider"


def _why_no_cuda() -> str | None:
    """Return why CUDA cannot be used, or None if it can.

    ``get_available_providers`` lists what was compiled in, not what is there, so the driver is
    asked first.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return "the NVIDIA driver does not start"
    except (OSError, AttributeError):
        return "there is no NVIDIA driver"
    if count.value < 1:
        return "there is no NVIDIA GPU"
    runtime = _onnxruntime()
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        return 'this ONNX Runtime has no CUDA: pip install "medtl[gpu]" instead of medtl[cpu]'
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    return None
