"""Runs the network: one protocol, and the engines behind it."""

from medtl_runtime.engines.contract import describe_model
from medtl_runtime.engines.load import Loaded, load_engine
from medtl_runtime.engines.onnxruntime import OnnxRuntimeEngine, Session, import_onnxruntime
from medtl_runtime.engines.protocol import Engine

__all__ = [
    "Engine",
    "Loaded",
    "OnnxRuntimeEngine",
    "Session",
    "describe_model",
    "import_onnxruntime",
    "load_engine",
]
