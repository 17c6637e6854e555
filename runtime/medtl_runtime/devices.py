"""The names of devices: what ``--device`` takes, for inference and for training."""

import re
from dataclasses import dataclass
from typing import Literal

from medtl_runtime.errors import UsageError

Kind = Literal["auto", "cpu", "cuda", "tensorrt", "openvino", "plugin"]

TRAINING = ("auto", "cpu", "cuda")
INFERENCE = (*TRAINING, "tensorrt", "openvino")
DEVICE_HELP = (
    "Where to run: auto (CUDA if it is really there, else the CPU), cpu, cuda, tensorrt, "
    "openvino, openvino:GPU, or plugin:LIBRARY, an execution provider for ONNX Runtime."
)

_CHOOSES_ITSELF = ("AUTO", "MULTI", "HETERO", "BATCH")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device for inference, as it was asked for."""

    kind: Kind
    detail: str = ""
    """OpenVINO's name of a device, such as ``GPU``; the library of a plug-in."""

    @property
    def is_cpu(self) -> bool:
        """Whether it is the processor, by any engine."""
        return self.kind == "cpu" or (self.kind == "openvino" and self.detail in ("", "CPU"))

    def __str__(self) -> str:
        return f"{self.kind}:{self.detail}" if self.detail else self.kind


def parse_device(text: str) -> Device:
    """Read the name of a device for inference.

    ``auto``, ``cpu``, ``cuda``, ``tensorrt``, ``openvino`` (its CPU), ``openvino:NAME`` with
    OpenVINO's name of a device, or ``plugin:LIBRARY`` with the file of a plug-in execution
    provider.

    Raises
    ------
    UsageError
        Another name, or one of OpenVINO's devices that choose the real device themselves.
    """
    kind, colon, detail = text.partition(":")
    if kind == "plugin" and detail:
        return Device(kind="plugin", detail=detail)
    if kind == "openvino" and re.fullmatch(r"[A-Z]+(\.\d+)*", detail):
        if detail in _CHOOSES_ITSELF:
            found = f"OpenVINO's {detail} chooses a device without a word"
            raise UsageError(f"--device is {text}; {found}, name the device")
        return Device(kind="openvino", detail=detail)
    for name in INFERENCE:
        if kind == name and not colon:
            return Device(kind=name)
    expected = f"{', '.join(INFERENCE)}, openvino:NAME or plugin:LIBRARY"
    raise UsageError(f"--device is {text}; expected {expected}")


def require_training_device(name: str) -> None:
    """Raise `UsageError` unless ``name`` is a device for training."""
    if name not in TRAINING:
        raise UsageError(f"--device is {name}; expected {', '.join(TRAINING[:-1])} or cuda")
