"""ONNX Runtime: the processor, NVIDIA GPUs, and execution providers that come as a plug-in."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.devices import Device, parse_device
from medtl_runtime.engines.contract import check_graph, describe_model, require_version
from medtl_runtime.engines.processor import may_saturate
from medtl_runtime.engines.providers import CPU, Target, find_target, reason, short
from medtl_runtime.errors import DeviceUnavailable, EngineMissing, ModelUnusable
from medtl_runtime.modelfile import INPUT, OUTPUTS

if TYPE_CHECKING:
    from medtl_runtime.onnxfile import ModelBytes


def import_onnxruntime() -> Any:
    """Return the package onnxruntime, whose telemetry `medtl_runtime` has turned off.

    Raises
    ------
    EngineMissing
        It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as cause:
        raise EngineMissing from cause
    return onnxruntime


class OnnxRuntimeEngine:
    """An `Engine` that is an ONNX Runtime session."""

    def __init__(
        self,
        model: "ModelBytes",
        *,
        device: Device | str = "cpu",
        threads: int | None = None,
        compiled: Path | None = None,
    ) -> None:
        """Load a model.

        Parameters
        ----------
        model
            A checked model file.
        device
            ``cpu``, ``cuda``, ``tensorrt`` or ``plugin:LIBRARY``.
        threads
            Threads on the CPU; as many as physical cores by default.
        compiled
            A folder for what TensorRT builds of this very model, which takes minutes.

        Raises
        ------
        ModelUnusable
            Without a description, for a newer engine, or not what its description says.
        DeviceUnavailable, EngineMissing
            As their names say.
        """
        self.description = describe_model(model)
        runtime = import_onnxruntime()
        require_version("onnxruntime", runtime.__version__, self.description, model.path)
        self._session = Session(
            model.data, device=device, threads=threads, compiled=compiled, source=model.path
        )
        self.name = self._session.name
        self.notes = self._session.notes
        inputs, outputs = self._session.shapes()
        kind = self._session.input_type()
        input_type = "float32" if kind == "tensor(float)" else kind
        check_graph(self.description, inputs, outputs, input_type, model.path)

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the three outputs; see `Engine.run`."""
        return self._session.run(images)


class Session:
    """An ONNX Runtime session with medtl's settings, for a graph with or without a description."""

    def __init__(
        self,
        model: Path | bytes,
        *,
        device: Device | str = "cpu",
        threads: int | None = None,
        compiled: Path | None = None,
        source: Path | None = None,
    ) -> None:
        """Create a session.

        Parameters
        ----------
        model
            A file, or its bytes.
        device, threads, compiled
            See `OnnxRuntimeEngine`.
        source
            What errors call the model.

        Raises
        ------
        ModelUnusable
            ONNX Runtime cannot load it, on the CPU either.
        DeviceUnavailable, EngineMissing
            As their names say; there is no fallback to another device.
        """
        asked = device if isinstance(device, Device) else parse_device(device)
        runtime = import_onnxruntime()
        self._source = source or ("the graph" if isinstance(model, bytes) else model)
        target = find_target(runtime, asked, compiled)
        self._session = _created(runtime, model, target, threads, self._source)
        self.notes = _require_used(self._session, target)
        self.name = f"ONNX Runtime {runtime.__version__}, {target.name}"

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the three outputs; see `Engine.run`.

        Raises
        ------
        ModelUnusable
            The graph loads, but cannot be computed for these images on this machine.
        """
        try:
            values = self._session.run(OUTPUTS, {INPUT: images})
        except Exception as cause:  # ORT's exceptions have no public base class
            raise ModelUnusable(self._source, "ONNX Runtime cannot run it") from cause
        return {name: np.asarray(value) for name, value in zip(OUTPUTS, values, strict=True)}

    def input_type(self) -> str:
        """Return the element type of the input in ONNX Runtime's words, as ``tensor(float)``."""
        return self._session.get_inputs()[0].type

    def shapes(self) -> tuple[dict[str, list], dict[str, list]]:
        """Return the shapes of inputs and outputs by name; a free dimension is a string."""
        return (
            {item.name: item.shape for item in self._session.get_inputs()},
            {item.name: item.shape for item in self._session.get_outputs()},
        )


def _created(
    runtime: Any, model: Path | bytes, target: Target, threads: int | None, source: Path | str
) -> Any:
    try:
        return _session(runtime, model, target, threads)
    except Exception as cause:  # as in Session.run
        if target.provider == CPU:
            raise ModelUnusable(source, _why_not_loaded(runtime, cause)) from cause
        # Whether the device or the model is to blame, the CPU tells.
        cpu = Target(device=Device(kind="cpu"), name="CPU", provider=CPU, providers=[CPU])
        _created(runtime, model, cpu, threads, source)
        found = f"{short(target.provider)} cannot take the model: {reason(cause)}"
        raise DeviceUnavailable(str(target.device), found) from cause


def _session(runtime: Any, model: Path | bytes, target: Target, threads: int | None) -> Any:
    options = _options(runtime, threads)
    if target.provider != CPU:  # see require_computed_there
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if target.ep_devices:
        options.add_provider_for_devices(target.ep_devices, {})
    return runtime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=list(target.providers) or None,
        # Else a failing provider is replaced by the CPU, here or in a later run, with a message on
        # stdout.
        enable_fallback=0,
    )


def _options(runtime: Any, threads: int | None) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # failures come as exceptions
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Else its threads go on spinning after a run, and take the cores from whatever comes next: the
    # next image's decoding, or another session (1.5 to 2.4 times slower, measured on two cores).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if may_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _require_used(session: Any, target: Target) -> tuple[str, ...]:
    """Refuse a session that runs elsewhere than asked; return notes on parts that do."""
    if session.get_providers()[0] != target.provider:
        remedy = f"; {target.remedy}" if target.remedy else ""
        found = f"ONNX Runtime left {short(target.provider)} out{remedy}"
        raise DeviceUnavailable(str(target.device), found)
    if target.provider == CPU or not hasattr(session, "get_provider_graph_assignment_info"):
        return ()
    return require_computed_there(
        str(target.device), target.provider, session.get_provider_graph_assignment_info
    )


def require_computed_there(
    device: str, provider: str, assignment: Callable[[], Sequence[Any]]
) -> tuple[str, ...]:
    """Refuse a device that computes nothing, which is then done by the CPU; note what is left.

    Parameters
    ----------
    device, provider
        As it was asked for, and its execution provider.
    assignment
        Returns parts of the graph with their provider, ``ep_name``, and operators, ``get_nodes``.
    """
    counts: Counter[str] = Counter()
    for part in assignment():
        counts[part.ep_name] += len(part.get_nodes())
    total, taken = counts.total(), counts[provider]
    if total and not taken:
        found = f"{short(provider)} computes none of the model's {total} operators"
        raise DeviceUnavailable(device, found)
    if taken == total:
        return ()
    others = ", ".join(f"{short(name)} {n}" for name, n in counts.items() if name != provider)
    return (f"{short(provider)} computes {taken} of {total} operators, {others}",)


def _why_not_loaded(runtime: Any, cause: Exception) -> str:
    """Return what ONNX Runtime makes of a file, from the parts of its message that are facts."""
    text, engine = str(cause), f"ONNX Runtime {runtime.__version__}"
    if found := re.search(r"IR version: (\d+), max supported IR version: (\d+)", text):
        return f"IR version {found[1]}; {engine} reads up to {found[2]}"
    if found := re.search(r"Opset (\d+) is under development.*till opset (\d+)", text, re.DOTALL):
        return f"operator set {found[1]}; {engine} has up to {found[2]}"
    return "ONNX Runtime cannot load it; it may be cut short"
