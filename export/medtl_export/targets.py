"""The machines that a model file can be made for, and what is known to be right for each."""

import platform
from dataclasses import dataclass
from typing import Literal

from medtl_export.qdq import Format
from medtl_runtime.engines.load import this_machine
from medtl_runtime.engines.processor import may_saturate
from medtl_runtime.errors import ExtraMissing
from medtl_runtime.selftest import Runs

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What quantising means for a machine."""

    name: str
    form: Format | None
    """None: float16, because the engine has no integer convolutions."""
    device: str
    """What medtl-infer calls the device."""
    engine: Literal["onnxruntime", "openvino"] = "onnxruntime"

    @property
    def precision(self) -> Precision:
        """The precision that --quantize aims at."""
        return "fp16" if self.form is None else "int8"


TARGETS: dict[str, Target] = {
    "cpu": Target(name="cpu", form=Format(), device="cpu"),
    "cpu-avx2": Target(name="cpu-avx2", form=Format(exact_pairs=True), device="cpu"),
    "arm": Target(name="arm", form=Format(signed=True), device="cpu"),
    "openvino": Target(
        name="openvino", form=Format(outputs=False), device="openvino", engine="openvino"
    ),
    "cuda": Target(name="cuda", form=None, device="cuda"),
    "tensorrt": Target(
        name="tensorrt",
        form=Format(signed=True, symmetric=True, outputs=False, integer_bias=False),
        device="tensorrt",
    ),
}
"""
- ``cpu``: ONNX Runtime on the kind of x86 processor that exports; uint8 activations, because int8
  ones have no fast kernels there. Without VNNI it is the same as ``cpu-avx2``.
- ``cpu-avx2``: weights whose products cannot saturate, see `qdq.overflowing`.
- ``arm``: int8 on both sides; with zero points, so that all 256 steps are above a Relu's 0.
- ``openvino``: QuantizeLinear before products and sums only; OpenVINO fuses what follows.
- ``cuda``: float16; ONNX Runtime has no int8 convolutions for CUDA.
- ``tensorrt``: int8 on both sides with zero points of 0, and biases in float.
"""


def find_target(name: str) -> Target:
    """Return a target by its name; ``cpu`` is that of this machine.

    Raises
    ------
    ExtraMissing
        Its engine is not installed.
    """
    target = TARGETS[name]
    if target.engine == "openvino" and not this_machine().openvino():
        raise ExtraMissing("openvino", extra="openvino", purpose="--target openvino")
    if name == "cpu":
        machine = platform.machine().lower()
        if machine in ("aarch64", "arm64"):
            return TARGETS["arm"]
        if may_saturate():
            return TARGETS["cpu-avx2"]
    return target


def not_measured(target: Target) -> str | None:
    """Return why speed on the target cannot be measured on this machine; None where it can."""
    is_arm = platform.machine().lower() in ("aarch64", "arm64")
    match target.name:
        case "arm":
            return None if is_arm else "this is no ARM processor"
        case "cpu-avx2":
            return None if may_saturate() else "this processor has VNNI, or is no x86"
        case "cuda" | "tensorrt":
            return None if this_machine().cuda() else "no NVIDIA GPU, or ONNX Runtime without CUDA"
    return None


def open_session(target: Target, model: bytes, *, threads: int | None, measured: bool) -> Runs:
    """Return a session for a graph on the target's engine.

    Parameters
    ----------
    measured
        Whether the target is this machine. Where it is not, the graph is computed on the CPU, which
        tells what it says of an image, and not how fast.
    """
    if target.engine == "openvino":
        from medtl_runtime.engines.openvino import OpenVinoSession

        return OpenVinoSession(model, threads=threads)
    from medtl_runtime.engines.onnxruntime import Session

    return Session(model, device=target.device if measured else "cpu", threads=threads)
