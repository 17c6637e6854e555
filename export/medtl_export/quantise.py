"""Static int8 quantisation for ONNX Runtime's CPU provider: QDQ, U8S8, per channel.

Ranges are minimum and maximum (entropy loses
accuracy on efficient networks); weights are signed and per output channel, activations unsigned;
only operators are quantised that have int8 kernels or pass int8 through, because an island of
float in between costs more than it saves; the head stays in float, which keeps CAMs exact.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from medtl_export.graph import head_nodes, silenced, without_traces
from medtl_runtime.engines import import_onnxruntime
from medtl_runtime.modelfile import INPUT
from medtl_runtime.recipe import as_batch

SCHEME = "QDQ, uint8 activations, int8 weights per channel, min-max ranges"
OPERATORS = (
    "Conv",
    "Relu",
    "Clip",
    "Add",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
)


def quantise(model: onnx.ModelProto, pixels: NDArray[np.uint16]) -> onnx.ModelProto:
    """Return the quantised graph.

    Parameters
    ----------
    model
        The float graph.
    pixels
        Canonical images for calibration, N x C x H x W; one is in memory as float at a time.
    """
    import_onnxruntime()  # turns its telemetry off
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, silenced("root"):
        given, prepared, made = (Path(folder, name) for name in ("given", "prepared", "int8"))
        onnx.save(model, given)
        # Infers shapes and fuses what is left of BatchNormalization.
        quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(made),
            _reader(pixels),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=head_nodes(onnx.load(prepared)),
        )
        return without_traces(onnx.load(made))


def _reader(pixels: NDArray[np.uint16]):
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Feeds one image at a time."""

        def __init__(self) -> None:
            self._images: Iterator[NDArray[np.uint16]] = iter(pixels)

        def get_next(self) -> dict | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            image = next(self._images, None)
            return None if image is None else {INPUT: as_batch([image])}

    return Reader()


def kept_in_float(model: onnx.ModelProto) -> list[dict[str, str]]:
    """Return the computing nodes of a quantised graph that run in float, and why."""
    head = set(head_nodes(model))
    quantised = {
        out for n in model.graph.node if n.op_type == "DequantizeLinear" for out in n.output
    }
    passive = {"QuantizeLinear", "DequantizeLinear", "Identity", "Reshape", "Flatten", "Transpose"}
    kept = []
    for node in model.graph.node:
        if node.op_type in passive:
            continue
        if node.name in head:
            kept.append({"node": node.name, "operator": node.op_type, "reason": "head"})
        elif not quantised & set(node.input):
            reason = "no int8 kernel" if node.op_type not in OPERATORS else "float input"
            kept.append({"node": node.name, "operator": node.op_type, "reason": reason})
    return kept
