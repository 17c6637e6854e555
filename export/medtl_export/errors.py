"""Refusals of the exporter; each leaves no file.

ModelError
├── ParityFailed              the ONNX file does not compute what torch computes
├── QuantisationIncomplete    not everything is in integers that was fine-tuned for it
├── QuantisedWorse            nothing that was tried is accurate enough, and float is no way out
└── GateUndefined             accuracy cannot be compared on the validation images
"""

from medtl_runtime.errors import ModelError


class ParityFailed(ModelError, ArithmeticError):
    """The ONNX graph and the torch network disagree."""

    code = "parity-failed"


class QuantisationIncomplete(ModelError, ArithmeticError):
    """The quantised graph holds more or fewer integer operators than were fine-tuned for it."""

    code = "quantisation-incomplete"


class QuantisedWorse(ModelError):
    """What would be written loses too much accuracy, and there is nothing to fall back to."""

    code = "quantised-worse"


class GateUndefined(ModelError, ValueError):
    """The metric that decides cannot be computed on the validation images."""

    code = "gate-undefined"
