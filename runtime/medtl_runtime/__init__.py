"""Reads a medical image, prepares its pixels and runs a medtl model on it. Never imports torch.

>>> from medtl_runtime import Predictor                      # doctest: +SKIP
>>> Predictor("models/liver.onnx")("scan.dcm").finding       # doctest: +SKIP
'lesion'
"""

import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Builds of ONNX Runtime from 1.29 on send names and hashes of models to their vendor, unless this
# is set before they are imported, by whomever. A value that the user has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from medtl_runtime.predictor import Predictor
    from medtl_runtime.reading import read_scan
    from medtl_runtime.recipe import Recipe
    from medtl_runtime.results import Result

__all__ = ["Predictor", "Recipe", "Result", "__version__", "read_scan"]

_HOME = {
    "Predictor": "medtl_runtime.predictor",
    "Result": "medtl_runtime.results",
    "Recipe": "medtl_runtime.recipe",
    "read_scan": "medtl_runtime.reading",
}


def __getattr__(name: str) -> object:
    """Import the public names on first use, so that ``medtl-infer --help`` stays fast."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
