"""Reads a model file that nobody vouches for, before any engine sees it.

An engine is a large program in C++ that does as it is told: an ONNX file can name other files to
be read, hold loops that do not end, or call for operators that are programs of their own. So a
model file is read once, walked (see `medtl_runtime.onnxwire`), and refused unless it holds one
graph of plain tensor operators from ``image`` to ``logits``, ``cam`` and ``embedding``, with all
weights inside. Digest, signature and engine then take the very bytes that were checked.

What is not bounded is how much memory and time the operators take when they run.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from medtl_runtime import onnxwire
from medtl_runtime.errors import ModelNotFound, ModelUnusable
from medtl_runtime.modelfile import INPUT, OUTPUTS
from medtl_runtime.onnxwire import Refused, Walk, text

MOST_MODEL_BYTES = 2**30
"""Half of what protobuf can hold, and several times the largest of medtl's networks."""

_ELEMENT_BY_ELEMENT = """
    Abs Add And Ceil Clip Div Equal Erf Exp Floor Greater GreaterOrEqual IsInf IsNaN Less
    LessOrEqual Log Max Mean Min Mod Mul Neg Not Or Pow Reciprocal Round Sign Sqrt Sub Sum Where Xor
"""
_ACTIVATIONS = """
    Celu Elu Gelu HardSigmoid HardSwish LeakyRelu LogSoftmax Mish PRelu Relu Selu Sigmoid Softmax
    Softplus Softsign Swish Tanh ThresholdedRelu
"""
_LAYERS = """
    Attention AveragePool BatchNormalization Conv ConvTranspose Einsum Gemm GlobalAveragePool
    GlobalLpPool GlobalMaxPool GroupNormalization InstanceNormalization LayerNormalization
    LpNormalization LpPool LRN MatMul MaxPool MeanVarianceNormalization RMSNormalization
"""
_REDUCTIONS = """
    ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare TopK
"""
_SHAPES = """
    Cast CastLike Concat Constant ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements
    GatherND Identity Pad Range Reshape Resize Shape Size Slice SpaceToDepth Split Squeeze Tile
    Transpose Trilu Unsqueeze
"""
_INTEGERS = """
    ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul
    QuantizeLinear
"""
OPERATORS = frozenset(
    (_ELEMENT_BY_ELEMENT + _ACTIVATIONS + _LAYERS + _REDUCTIONS + _SHAPES + _INTEGERS).split()
)
"""What a model may compute with: operators of the standard domain that turn tensors into tensors.

Left out are subgraphs (If, Loop, Scan), random numbers, training, and whatever handles sequences,
optional values, strings and encoded images.
"""

STANDARD_DOMAINS = ("", "ai.onnx")

NUMBERS = frozenset({*range(1, 8), *range(9, 14), *range(16, 23)})
"""TensorProto.DataType without undefined, strings, complex numbers and what came after int4."""

_OF_STRINGS = ("type", 3), ("type", 8)
"""AttributeProto.AttributeType STRING and STRINGS."""

_ORT_CONFIG = "ort_config"


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelBytes:
    """A model file in memory, as it was checked."""

    path: Path
    """Where it came from; it is not read again."""
    data: bytes = field(repr=False)
    """The whole file."""
    metadata: Mapping[str, str] = field(repr=False)
    """ONNX ``metadata_props``."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    """In the order of the file."""
    operators: frozenset[tuple[str, str]]
    """Domain and type of every operator that occurs."""
    opsets: Mapping[str, int]
    """Version of each operator set by domain, whether it is used or not."""
    ir_version: int

    @cached_property
    def digest(self) -> str:
        """``sha256:`` and the file's hexadecimal SHA-256, a signature in it included.

        Computed when it is first asked for, so that a session can be created meanwhile.
        """
        return "sha256:" + hashlib.sha256(self.data).hexdigest()


def read_model_file(path: Path, *, most_bytes: int = MOST_MODEL_BYTES) -> ModelBytes:
    """Read a model file, once, and check it.

    Raises
    ------
    ModelNotFound
        There is no such file.
    ModelUnusable
        Not a regular file, not readable, larger than ``most_bytes``; or as for `inspect_model`.
    """
    try:
        # A pipe that nobody writes to would wait for ever; Path.open takes no opener.
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelUnusable(path, "not a regular file")
            if status.st_size > most_bytes:
                found = f"{status.st_size} bytes; expected at most {most_bytes}"
                raise ModelUnusable(path, found)
            data = file.read(status.st_size + 1)
    except FileNotFoundError as cause:
        raise ModelNotFound(f"{path}: no such model file") from cause
    except OSError as cause:
        raise ModelUnusable(path, f"it cannot be read ({cause.strerror})") from cause
    if len(data) != status.st_size:
        raise ModelUnusable(path, "it changed while it was read")
    return inspect_model(data, path)


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def inspect_model(data: bytes, path: Path) -> ModelBytes:
    """Check a serialised model; ``path`` is what errors call it.

    Raises
    ------
    ModelUnusable
        Not ONNX, damaged or cut short; other inputs and outputs than medtl's; an operator that is
        not one of `OPERATORS`; weights outside the file; functions, subgraphs, training; a
        metadata key that occurs twice.
    """
    try:
        return _model(data, path)
    except Refused as cause:
        raise ModelUnusable(path, str(cause)) from cause


def _model(data: bytes, path: Path) -> ModelBytes:
    if not data:
        raise Refused("an empty file")
    if data[4:8] == b"ORTM":  # ONNX Runtime takes such bytes for its own format, unlike the walk
        raise Refused("an ORT file, or one that poses as one; expected ONNX")
    walk = Walk()
    parts = list(walk.fields(memoryview(data), onnxwire.MODEL))
    found = dict(parts)
    if "graph" not in found or "ir_version" not in found:
        raise Refused("it holds no whole ONNX graph; it may be cut short")
    inputs, outputs, operators = _graph(walk, found["graph"])
    return ModelBytes(
        path=path,
        data=data,
        metadata=_metadata(walk, _named("metadata_props", parts)),
        inputs=inputs,
        outputs=outputs,
        operators=operators,
        opsets=_opsets(walk, _named("opset_import", parts)),
        ir_version=found["ir_version"],
    )


def _named(name: str, parts: Iterable[tuple[str, Any]]) -> list[memoryview]:
    return [value for each, value in parts if each == name]


def _metadata(walk: Walk, entries: Iterable[memoryview]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for part in entries:
        entry = walk.single(part, onnxwire.ENTRY)
        key, value = (text(entry.get(name, memoryview(b""))) for name in ("key", "value"))
        if key in metadata:
            raise Refused(f"metadata {_shown(key)} occurs twice")
        if key == _ORT_CONFIG:
            raise Refused("metadata ort_config, by which a file configures ONNX Runtime")
        metadata[key] = value
    return metadata


def _opsets(walk: Walk, imports: Iterable[memoryview]) -> dict[str, int]:
    opsets: dict[str, int] = {}
    for part in imports:
        entry = walk.single(part, onnxwire.OPSET)
        domain = text(entry.get("domain", memoryview(b"")))
        if domain in opsets:
            raise Refused(f"operator set {_shown(domain)} occurs twice")
        opsets[domain] = entry.get("version", 0)
    if not opsets.keys() & set(STANDARD_DOMAINS):
        raise Refused("it names no version of the standard operators")
    return opsets


def _graph(
    walk: Walk, graph: memoryview
) -> tuple[tuple[str, ...], tuple[str, ...], frozenset[tuple[str, str]]]:
    """Return the names of inputs and outputs, and the operators."""
    values: dict[str, list[str]] = {"input": [], "output": [], "value_info": []}
    operators: set[tuple[str, str]] = set()
    for name, part in walk.fields(graph, onnxwire.GRAPH):
        if name in values:
            values[name].append(_value(walk, part))
        elif name == "node":
            operators.add(_node(walk, part))
        elif name == "initializer":
            _check_tensor(walk, part)
    inputs, outputs = values["input"], values["output"]
    if inputs != [INPUT]:
        raise Refused(f"inputs {_listed(inputs)}; expected {INPUT} alone")
    if sorted(outputs) != sorted(OUTPUTS):
        raise Refused(f"outputs {_listed(outputs)}; expected {', '.join(OUTPUTS)}")
    return tuple(inputs), tuple(outputs), frozenset(operators)


def _value(walk: Walk, part: memoryview) -> str:
    """Return the name of an input, output or intermediate value, which has to be a tensor."""
    value = walk.single(part, onnxwire.VALUE)
    if "type" in value:
        walk.single(value["type"], onnxwire.VALUE_TYPE)
    return text(value.get("name", memoryview(b"")))


def _node(walk: Walk, part: memoryview) -> tuple[str, str]:
    """Return domain and type of an operator."""
    domain = kind = ""
    attributes: list[memoryview] = []
    for name, value in walk.fields(part, onnxwire.NODE):
        if name == "attribute":
            attributes.append(value)
        elif name == "op_type":
            kind = text(value)
        elif name == "domain":
            domain = text(value)
    if domain not in STANDARD_DOMAINS:
        found = f"operator {_shown(kind)} of {_shown(domain)}"
        raise Refused(f"{found}; expected ONNX's standard operators")
    if kind not in OPERATORS:
        raise Refused(f"operator {_shown(kind)}, which medtl does not run in a classifier")
    for attribute in attributes:
        _check_attribute(walk, attribute, kind)
    return domain, kind


def _check_attribute(walk: Walk, part: memoryview, kind: str) -> None:
    """Refuse what brings in strings or data from outside; ``kind`` is the operator's type."""
    called, integers = "", []
    for name, value in walk.fields(part, onnxwire.ATTRIBUTE):
        if name in ("t", "tensors"):
            _check_tensor(walk, value)
        elif name == "name":
            called = text(value)
        elif name == "i":
            integers.append(value)
        if kind == "Constant" and (name in ("s", "strings") or (name, value) in _OF_STRINGS):
            raise Refused("a constant of strings; expected numbers")
    # Without a value it is 0, the undefined type.
    if kind == "Cast" and called == "to" and not NUMBERS.issuperset(integers or [0]):
        raise Refused(f"a cast to data type {integers or 0}; expected numbers")


def _check_tensor(walk: Walk, part: memoryview) -> None:
    tensor = walk.single(part, onnxwire.TENSOR)
    if tensor.get("data_location", 0) != 0:
        raise Refused(onnxwire.OUTSIDE)
    if tensor.get("data_type") not in NUMBERS:
        raise Refused(f"a tensor of data type {tensor.get('data_type')}; expected numbers")


def _listed(names: Iterable[str]) -> str:
    return "[" + ", ".join(sorted(map(_shown, names))[:8]) + "]"


def _shown(name: str) -> str:
    """Return a name from the file so that it can do nothing to a terminal or a log."""
    short = name if len(name) <= 40 else name[:40] + "..."
    return short if short.isprintable() and short else ascii(short)
