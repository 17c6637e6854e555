"""OpenVINO, an engine for Intel's processors, graphics and neural units."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.devices import Device, parse_device
from medtl_runtime.engines.contract import check_graph, describe_model, require_version
from medtl_runtime.errors import DeviceUnavailable, ExtraMissing, ModelUnusable, UsageError
from medtl_runtime.modelfile import INPUT, OUTPUTS

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from medtl_runtime.onnxfile import ModelBytes


class OpenVinoEngine:
    """An `Engine` that is a model compiled by OpenVINO."""

    def __init__(
        self,
        model: "ModelBytes",
        *,
        device: Device | str = "openvino",
        threads: int | None = None,
    ) -> None:
        """Load a model.

        Parameters
        ----------
        model
            A checked model file.
        device, threads
            See `OpenVinoSession`.

        Raises
        ------
        UsageError
            Threads for another device than the CPU.
        ModelUnusable
            Without a description, or not what its description says; OpenVINO cannot read it.
        DeviceUnavailable
            OpenVINO does not find the device, or cannot compile the model for it.
        ExtraMissing
            OpenVINO is not installed.
        """
        self._path = model.path
        self.description = describe_model(model)
        self._session = OpenVinoSession(
            model.data, device=device, threads=threads, source=model.path
        )
        require_version("openvino", self._session.version, self.description, model.path)
        check_graph(self.description, *self._session.shapes(), model.path)
        self.name = self._session.name

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the three outputs; see `Engine.run`.

        Raises
        ------
        ModelUnusable
            The network cannot be computed for these images on this machine.
        """
        recipe = self.description.recipe
        expected = (recipe.channels, *recipe.size)
        if images.shape[1:] != expected:  # OpenVINO would compute something for them
            found = f"images of shape {images.shape}; expected (N, *{expected})"
            raise ModelUnusable(self._path, f"OpenVINO cannot run it for {found}")
        return self._session.run(images)


class OpenVinoSession:
    """A graph compiled by OpenVINO with medtl's settings, with or without a description."""

    def __init__(
        self,
        model: bytes,
        *,
        device: Device | str = "openvino",
        threads: int | None = None,
        source: "Path | str" = "the graph",
    ) -> None:
        """Compile a graph.

        Parameters
        ----------
        model
            The bytes of an ONNX file.
        device
            ``openvino`` for the CPU, or ``openvino:NAME`` with OpenVINO's name of a device.
        threads
            Threads on the CPU; OpenVINO's choice by default.
        source
            What errors call the model.

        Raises
        ------
        UsageError, ModelUnusable, DeviceUnavailable, ExtraMissing
            See `OpenVinoEngine`.
        """
        asked = device if isinstance(device, Device) else parse_device(device)
        assert asked.kind == "openvino", asked
        if threads is not None and not asked.is_cpu:
            raise UsageError(f"--threads is for processors; --device is {asked}")
        self._source = source
        openvino = _import(asked)
        self.version: str = openvino.get_version().split("-")[0]
        core = openvino.Core()
        target = asked.detail or "CPU"
        _require_device(core, asked, target)
        try:
            network = core.read_model(model=model, weights=b"")
        except RuntimeError as cause:
            raise ModelUnusable(source, "OpenVINO cannot read it") from cause
        self._shapes = _shapes(network)
        compiled = _compiled(core, network, target, threads, asked)
        self.name = f"OpenVINO {self.version}, {_place(core, target)}"
        self._request = compiled.create_infer_request()
        self._one_at_a_time = threading.Lock()  # a request holds the tensors of one run

    def shapes(self) -> tuple[dict[str, list], dict[str, list], str]:
        """Return the shapes of inputs and outputs by name, and the input's element type."""
        return self._shapes

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the three outputs; see `Engine.run`.

        Raises
        ------
        ModelUnusable
            The network cannot be computed for these images on this machine.
        """
        try:
            with self._one_at_a_time:
                values = self._request.infer({INPUT: images})
        except RuntimeError as cause:
            raise ModelUnusable(self._source, "OpenVINO cannot run it") from cause
        return {name: np.asarray(values[name]) for name in OUTPUTS}


def _import(device: Device) -> Any:
    try:
        # While it is imported, OpenVINO reports its use to an analytics service through this
        # package; without it, it takes a stand-in of its own that does nothing.
        with _hidden("openvino_telemetry"):
            import openvino
    except ImportError as cause:
        purpose = f"--device {device}"
        raise ExtraMissing("openvino", extra="openvino", purpose=purpose) from cause
    return openvino


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let imports of a package fail as if it were not installed, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = cast("ModuleType", None)  # which is how Python marks a missing module
    try:
        yield
    finally:
        del sys.modules[package]


def _require_device(core: Any, asked: Device, target: str) -> None:
    # A machine with two GPUs lists GPU.0 and GPU.1, and GPU is the first.
    there = core.available_devices
    if not any(target in (name, name.split(".")[0]) for name in there):
        found = f"OpenVINO finds {', '.join(there) or 'no device'} and no {target}"
        raise DeviceUnavailable(str(asked), f"{found} (a driver may be missing)")


def _place(core: Any, target: str) -> str:
    if target == "CPU":
        return "CPU"
    return f"{target} ({core.get_property(target, 'FULL_DEVICE_NAME')})"


def _shapes(network: Any) -> tuple[dict[str, list], dict[str, list], str]:
    """Return the shapes of inputs and outputs by name, and the input's element type."""
    inputs = {one.get_any_name(): _shape(one) for one in network.inputs}
    outputs = {one.get_any_name(): _shape(one) for one in network.outputs}
    types = {one.get_element_type().to_dtype().name for one in network.inputs}
    return inputs, outputs, " and ".join(sorted(types))


def _shape(port: Any) -> list[int | str]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return []
    return ["?" if size.is_dynamic else size.get_length() for size in shape]


def _compiled(core: Any, network: Any, target: str, threads: int | None, asked: Device) -> Any:
    # Devices that can would compute in bfloat16 or float16, which is not what was validated.
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        return core.compile_model(network, target, options)
    except RuntimeError as cause:
        reason = " ".join(str(cause).split())[-240:]
        found = f"OpenVINO cannot compile the model for it: {reason}"
        raise DeviceUnavailable(str(asked), found) from cause
