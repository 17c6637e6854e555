"""Refusals of the exporter; each leaves no file.

ModelError
├── ParityFailed              the ONNX file does not compute what torch computes
├── QuantisedWorse            int8 loses more than --max-drop on the validation set
└── QuantisedSlower           int8 is not faster on this machine
"""

from medtl_runtime.errors import ModelError, UsageError


class ParityFailed(ModelError, ArithmeticError):
    """The ONNX graph and the torch network disagree."""

    code = "parity-failed"


class QuantisedWorse(ModelError):
    """The quantised model loses too much accuracy."""

    code = "quantised-worse"


class QuantisedSlower(ModelError):
    """The quantised model is not faster than what it replaces."""

    code = "quantised-slower"


class ImagesMissing(UsageError, FileNotFoundError):
    """Images of the run's splits cannot be read any more."""

    code = "images-missing"
    __str__ = Exception.__str__
