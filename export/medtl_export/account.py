"""What goes into the model file about its quantisation: what was tried, measured and chosen."""

from dataclasses import asdict
from typing import Any

import onnx
from onnx import NodeProto

from medtl_export import graph
from medtl_export.compare import machine
from medtl_export.gate import Gate, Verdict
from medtl_export.latency import Latency
from medtl_export.qdq import JOINING, PASSING, PRODUCTS, Format, overflowing
from medtl_export.search import Row
from medtl_export.targets import Target
from medtl_export.topology import Topology

_PASSIVE = {"QuantizeLinear", "DequantizeLinear", "Identity", "Reshape", "Flatten", "Transpose"}
_INTEGER = {*PRODUCTS, *PASSING, *JOINING}


def scheme(form: Format | None) -> str:
    """Return a number format in words."""
    if form is None:
        return "float16 inside, float32 inputs and outputs"
    activations = "int8" if form.signed else "uint8"
    zero = ", zero points of 0" if form.symmetric else ""
    pairs = ", whose products fit into 16 bits in pairs" if form.exact_pairs else ""
    return f"QDQ, {activations} activations{zero}, int8 weights per output channel{pairs}"


def saturation(model: onnx.ModelProto, form: Format) -> str:
    """Return whether sums can saturate on x86 processors without VNNI, in words."""
    if form.signed:
        return "no: activations are int8"
    return "possible without VNNI" if overflowing(model) else "impossible, by its weights"


def kept_in_float(model: onnx.ModelProto, form: Format) -> list[dict[str, str]]:
    """Return the computing nodes of a quantised graph that run in float, and why."""
    head = set(graph.head_nodes(model))
    topology = Topology(model)
    kept = []
    for node in topology.nodes:
        if node.op_type in _PASSIVE or _is_integer(topology, node, form):
            continue
        if node.name in head:
            reason = "head"
        else:
            reason = "chosen" if node.op_type in _INTEGER else "no int8 kernel"
        kept.append({"node": node.name, "operator": node.op_type, "reason": reason})
    return kept


def _is_integer(topology: Topology, node: NodeProto, form: Format) -> bool:
    """Whether an engine finds all that it needs around a node to compute it in integers."""
    sources = [topology.producer.get(name) for name in topology.data_inputs(node)]
    rounded = all(one is not None and one.op_type == "DequantizeLinear" for one in sources)
    if node.op_type not in _INTEGER or not rounded:
        return False
    if node.op_type in PRODUCTS:
        return node.input[1] not in topology.constants
    readers = topology.consumers.get(node.output[0], [])
    return not form.outputs or "QuantizeLinear" in {one.op_type for one in readers}


def account(
    *,
    target: Target,
    model: onnx.ModelProto,
    precision: str,
    gate: Gate,
    before: Verdict,
    after: Verdict,
    latency: Latency | None,
    reason: str,
    not_measured: str | None,
    rows: tuple[Row, ...],
    images: dict[str, int],
    conditions: dict[str, Any],
    engine: str,
) -> dict[str, Any]:
    """Return the account as JSON values; `docs/model-file.md` specifies it.

    Parameters
    ----------
    model, precision
        What goes into the file.
    before, after
        What the validation images say of the float network, and of what goes into the file.
    images
        How many there were, by what they were for.
    """
    is_int8 = precision == "int8"
    form = target.form
    return {
        "target": target.name,
        "scheme": scheme(form) if precision == target.precision else "float32",
        "saturation": saturation(model, form) if is_int8 and form is not None else None,
        "reason": reason,
        "metric": gate.metric,
        "max_drop": gate.max_drop,
        **{f"{name}_images": count for name, count in images.items()},
        "accuracy": {"fp32": before.accuracy, "chosen": after.accuracy},
        "difference": None if after.difference is None else asdict(after.difference),
        "head": after.head,
        "not_judged": list(gate.not_judged),
        "flips": after.flips,
        "latency": None if latency is None else asdict(latency),
        "not_measured": not_measured,
        "conditions": conditions,
        "machine": {**machine(), "engine": engine},
        "kept_in_float": kept_in_float(model, form) if is_int8 and form is not None else [],
        "operators": graph.operator_counts(model),
        "search": [_row(row) for row in rows],
    }


def _row(row: Row) -> dict[str, Any]:
    verdict = row.verdict
    return {
        "name": row.choice.name,
        "latency": None if row.latency is None else asdict(row.latency),
        "difference": None
        if verdict is None or verdict.difference is None
        else asdict(verdict.difference),
        "head": None if verdict is None else verdict.head,
        "flips": None if verdict is None else verdict.flips,
        "error": row.error,
        "verdict": row.remark,
    }
