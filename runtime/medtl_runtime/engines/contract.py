"""What every engine checks of a model: its description, and that the graph is what it says."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from medtl_runtime.errors import ModelUnusable
from medtl_runtime.heads import width
from medtl_runtime.modelfile import INPUT, METADATA_KEY, OUTPUTS, Description

if TYPE_CHECKING:
    from pathlib import Path

    from medtl_runtime.onnxfile import ModelBytes

Shape = Sequence[int | str]
"""A free dimension is a string."""


def describe_model(model: "ModelBytes") -> Description:
    """Return what a model file says of itself; no engine is needed for it.

    Raises
    ------
    ModelUnusable
        No description, one that cannot be read, or one that is of another file.
    """
    if METADATA_KEY not in model.metadata:
        raise ModelUnusable(model.path, "an ONNX file without a medtl description")
    description = Description.from_json(model.metadata[METADATA_KEY], model.path)
    opset = model.opsets.get("", model.opsets.get("ai.onnx"))
    for name, found in (("ir_version", model.ir_version), ("opset", opset)):
        said = description.requires.get(name, found)
        if said != found:
            raise ModelUnusable(model.path, f"{name} {found}; its description says {said}")
    return description


def require_version(engine: str, found: str, description: Description, path: "Path") -> None:
    """Refuse a model that needs a newer engine.

    Parameters
    ----------
    engine
        The name under which ``requires`` holds the oldest version: ``onnxruntime``, ``openvino``.
    found
        The version that is installed.
    """
    oldest = description.requires.get(engine)
    if oldest is None:
        return
    if not isinstance(oldest, str) or not re.fullmatch(r"\d{1,6}(\.\d{1,6})*", oldest):
        raise ModelUnusable(path, f"it requires {engine} {oldest}; expected a version")
    if _numbers(found) < _numbers(oldest):
        raise ModelUnusable(path, f"it needs {engine} {oldest} or newer; installed is {found}")


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, so that 1.9 is older than 1.10."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()


def check_graph(
    description: Description,
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    input_type: str,
    path: "Path",
) -> None:
    """Check the graph, as the engine understood it, against its description.

    Parameters
    ----------
    inputs, outputs
        Shapes by name.
    input_type
        ``float32``, or the engine's word for another element type.

    Raises
    ------
    ModelUnusable
        Other inputs or outputs, shapes or types.
    """
    expected = [description.recipe.channels, *description.recipe.size]
    if list(inputs) != [INPUT] or list(inputs[INPUT][1:]) != expected:
        found = {name: list(shape) for name, shape in inputs.items()}
        raise ModelUnusable(path, f"inputs {found}; expected {INPUT} [N, C, H, W] = {expected}")
    if isinstance(inputs[INPUT][0], int):
        raise ModelUnusable(path, f"a fixed batch of {inputs[INPUT][0]}; expected a free one")
    if input_type != "float32":
        raise ModelUnusable(path, f"input of {input_type}; expected float32")
    if set(outputs) != set(OUTPUTS):
        raise ModelUnusable(path, f"outputs {sorted(outputs)}; expected {', '.join(OUTPUTS)}")
    for name, rank in zip(OUTPUTS, (2, 4, 2), strict=True):
        if len(outputs[name]) != rank:
            found = f"{name} of shape {list(outputs[name])}"
            raise ModelUnusable(path, f"{found}; expected {rank} axes")
    columns = width(description.heads)
    for name in ("logits", "cam"):
        if outputs[name][1] != columns:
            raise ModelUnusable(path, f"{outputs[name][1]} {name} for {columns} columns of heads")
    reference, size = description.embedding_reference, outputs["embedding"][1]
    if reference is not None and reference.means.shape[1] != size:
        found = f"an embedding of {size}, and a reference of {reference.means.shape[1]}"
        raise ModelUnusable(path, f"{found} dimensions")
