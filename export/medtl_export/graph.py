"""torch network to ONNX graph, and the facts about a graph that the exporter needs."""

import contextlib
import io
import logging
import warnings
from importlib.metadata import PackageNotFoundError, version

import onnx
import torch

from medtl_models.ensemble import Classifier, folded
from medtl_runtime.engines import import_onnxruntime
from medtl_runtime.modelfile import INPUT, METADATA_KEY, OUTPUTS, Description
from medtl_runtime.recipe import Recipe


def to_onnx(network: Classifier, recipe: Recipe) -> onnx.ModelProto:
    """Trace a network, or an ensemble, into one ONNX graph with a free batch dimension.

    Normalisation and channel repetition are folded into the first convolution, so the graph takes
    canonical images: float32 in [0, 1], N x C x H x W.
    """
    plain = folded(network).cpu().eval()
    example = torch.rand(2, recipe.channels, *recipe.size)
    with silenced("torch.onnx"):
        program = torch.onnx.export(
            plain,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return without_traces(program.model_proto)


@contextlib.contextmanager
def silenced(name: str):
    """Keep a library's chatter about itself from the user: its logger, warnings and stdout."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without stack traces and other texts that hold paths of this machine."""
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    clean.doc_string = ""
    del clean.metadata_props[:]
    for part in (clean.graph, *clean.graph.node, *clean.graph.initializer, *_values(clean.graph)):
        part.doc_string = ""
        del part.metadata_props[:]
    return clean


def _values(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    return [*graph.input, *graph.output, *graph.value_info]


def described(model: onnx.ModelProto, description: Description) -> onnx.ModelProto:
    """Return the graph with its description in ``metadata_props``."""
    whole = without_traces(model)
    onnx.helper.set_model_props(whole, {METADATA_KEY: description.to_json()})
    return whole


def head_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes between the feature map and the outputs.

    The feature map is the last tensor that all of ``cam`` and ``embedding`` depend on, so these
    are the nodes that make one of the outputs and that nothing but outputs depend on.
    """
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)

    def reaches(tensor: str, seen: dict[str, frozenset[str]]) -> frozenset[str]:
        if tensor not in seen:
            seen[tensor] = frozenset({tensor} & set(OUTPUTS)).union(
                *(reaches(out, seen) for node in consumers.get(tensor, []) for out in node.output)
            )
        return seen[tensor]

    seen: dict[str, frozenset[str]] = {}
    for node in reversed(model.graph.node):
        for out in node.output:
            reaches(out, seen)
    return [
        node.name
        for node in model.graph.node
        if not set(OUTPUTS) <= frozenset().union(*(seen[out] for out in node.output))
    ]


def operator_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Return how often each operator occurs."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in float16, with inputs and outputs in float32."""
    import_onnxruntime()  # turns its telemetry off
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with silenced("onnxruntime"):
        return without_traces(convert_float_to_float16(model, keep_io_types=True))


def versions() -> dict[str, str]:
    """Return the versions of what makes and runs graphs."""
    names = ("medtl", "numpy", "onnx", "onnxruntime", "onnxscript", "openvino", "torch", "torchao")
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
