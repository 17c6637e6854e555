"""Chooses an engine, loads the model into it and lets it prove itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medtl_runtime import selftest
from medtl_runtime.devices import Device, parse_device
from medtl_runtime.engines.contract import describe_model
from medtl_runtime.engines.processor import has_nvidia_driver
from medtl_runtime.engines.protocol import Engine
from medtl_runtime.errors import (
    DeviceUnavailable,
    EngineMissing,
    ExtraMissing,
    ModelUnusable,
    SelfTestFailed,
)
from medtl_runtime.selftest import SelfTestResult

if TYPE_CHECKING:
    from medtl_runtime.onnxfile import ModelBytes

SelfTestMode = Literal["once", "always", "never"]

_CPU = Device(kind="cpu")
_CUDA = Device(kind="cuda")
_OPENVINO = Device(kind="openvino")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An engine that holds a model, ready to run."""

    engine: Engine
    notes: tuple[str, ...] = ()
    """What people should know of the choice: a device that was passed over, and why."""
    self_test: SelfTestResult | None = None
    """None when it was not asked for."""


@dataclass(frozen=True, kw_only=True)
class Here:
    """What this machine has; each is asked only when it matters."""

    onnxruntime: Callable[[], bool]
    openvino: Callable[[], bool]
    cuda: Callable[[], bool]
    """Whether ONNX Runtime has CUDA and there is a GPU for it."""
    nvidia_driver: Callable[[], bool]


def load_engine(
    model: "ModelBytes",
    *,
    device: str = "auto",
    threads: int | None = None,
    self_test: SelfTestMode = "once",
) -> Loaded:
    """Load a model into the engine for a device.

    Parameters
    ----------
    model
        A checked model file.
    device
        See `devices.parse_device`. ``auto`` takes OpenVINO for a model that was made for it, where
        it is installed; else CUDA where it is really there; else the CPU through ONNX Runtime, or
        through OpenVINO where that is the only engine. Where CUDA fails to
        load or to run the model, or fails the self-test, the CPU is taken and ``notes`` says why.
        Any other device is taken or refused: there is no fallback.
    threads
        Threads on the CPU; as many as physical cores by default. With CUDA and TensorRT they
        compute what these leave to the CPU.
    self_test
        ``once`` per machine, model, engine and version of medtl; ``always`` or ``never``.

    Raises
    ------
    UsageError
        No such device, or threads for a device of OpenVINO's that has none.
    ModelUnusable
        Without a description, for a newer engine, not what its description says, or not readable
        for the engine.
    SelfTestFailed
        The engine, or with ``auto`` the last that was tried, does not reproduce the stored logits.
    DeviceUnavailable, EngineMissing, ExtraMissing
        As their names say.
    """
    asked = parse_device(device)

    def load(candidate: Device) -> Loaded:
        engine, notes = _engine(model, candidate, threads)
        tested = self_tested(engine, model.digest, candidate, self_test)
        return Loaded(engine=engine, notes=notes, self_test=tested)

    here = this_machine()
    target = describe_model(model).target
    loaded = first_that_works(candidates(asked, here, target), load)
    return replace(loaded, notes=(*overlooked(asked, here, target), *loaded.notes))


def this_machine() -> Here:
    """Return the questions to this machine."""
    return Here(
        onnxruntime=lambda: _installed("onnxruntime"),
        openvino=lambda: _installed("openvino"),
        cuda=_cuda,
        nvidia_driver=has_nvidia_driver,
    )


def candidates(asked: Device, here: Here, target: str) -> tuple[Device, ...]:
    """Return the devices to try, the first first; only ``auto`` has several.

    TensorRT is not among them, since it builds for minutes before it runs.

    Parameters
    ----------
    target
        What the model was made for.

    Raises
    ------
    EngineMissing
        No engine is installed.
    ExtraMissing
        The CPU is asked for by its name, and only OpenVINO is there.
    """
    if asked.kind == "openvino":
        return (asked,)
    if here.onnxruntime():
        if asked.kind != "auto":
            return (asked,)
        if target == "openvino" and here.openvino():
            return (_OPENVINO, _CPU)
        return (_CUDA, _CPU) if here.cuda() else (_CPU,)
    if not here.openvino():
        raise EngineMissing
    if asked.kind == "auto":
        return (_OPENVINO,)
    raise ExtraMissing("onnxruntime", extra="cpu", purpose=f"--device {asked}")


def overlooked(asked: Device, here: Here, target: str) -> tuple[str, ...]:
    """Return a note where ``auto`` cannot take the model's engine, or a GPU that seems there."""
    if asked.kind != "auto" or not here.onnxruntime():
        return ()
    if target == "openvino":
        missing = 'the model was made for OpenVINO (pip install "medtl[openvino]")'
        return () if here.openvino() else (missing,)
    if here.nvidia_driver() and not here.cuda():
        return (
            "an NVIDIA driver is here, but ONNX Runtime finds no GPU or has no CUDA "
            '(pip install "medtl[gpu]" instead of medtl[cpu])',
        )
    return ()


def first_that_works(devices: Sequence[Device], load: Callable[[Device], Loaded]) -> Loaded:
    """Load for the first device that can be had and passes; say of the others why not.

    Raises
    ------
    DeviceUnavailable, SelfTestFailed
        Of the last device, when none works.
    """
    passed_over: list[str] = []
    for device in devices[:-1]:
        try:
            loaded = load(device)
        except (DeviceUnavailable, SelfTestFailed) as error:
            passed_over.append(f"{device} is not used: {error}")
        else:
            return replace(loaded, notes=(*passed_over, *loaded.notes))
    loaded = load(devices[-1])
    return replace(loaded, notes=(*passed_over, *loaded.notes))


def _engine(
    model: "ModelBytes", device: Device, threads: int | None
) -> tuple[Engine, tuple[str, ...]]:
    """Return the engine for a device, and notes on it."""
    if device.kind == "openvino":
        from medtl_runtime.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(model, device=device, threads=threads), ()
    from medtl_runtime.engines.onnxruntime import OnnxRuntimeEngine

    compiled = _folder_for(model) if device.kind == "tensorrt" else None
    engine = OnnxRuntimeEngine(model, device=device, threads=threads, compiled=compiled)
    return engine, engine.notes


def _folder_for(model: "ModelBytes") -> Path:
    return selftest.cache_folder() / "tensorrt" / model.digest.removeprefix("sha256:")


def self_tested(
    engine: Engine, digest: str, device: Device, mode: SelfTestMode
) -> SelfTestResult | None:
    """Return what the self-test found; None when it is not to run.

    Raises
    ------
    SelfTestFailed
        The engine does not reproduce the stored logits.
    DeviceUnavailable, ModelUnusable
        The engine cannot run the model at all. Whether another device or the model is to blame, the
        CPU tells: only there it is the model.
    """
    if mode == "never":
        return None
    folder = selftest.cache_folder() / "selftest"
    check = selftest.checked_once if mode == "once" else selftest.checked_again
    try:
        return check(engine, digest, folder)
    except ModelUnusable as cause:
        if device.is_cpu:
            raise
        from medtl_runtime.engines.providers import reason

        found = f"it fails while it runs the self-test: {reason(cause.__cause__ or cause)}"
        raise DeviceUnavailable(str(device), found) from cause


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # what find_spec says of a module that was imported as None
        return False


def _cuda() -> bool:
    from medtl_runtime.engines.cuda import Gpu, find_gpu
    from medtl_runtime.engines.onnxruntime import import_onnxruntime
    from medtl_runtime.engines.providers import has_cuda

    return has_cuda(import_onnxruntime()) and isinstance(find_gpu(), Gpu)
