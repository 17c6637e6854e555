"""Every engine loads the same models, gives the same outputs and refuses the same files."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from medtl_runtime.engines import Engine, OnnxRuntimeEngine, describe_model
from medtl_runtime.engines.contract import check_graph, require_version
from medtl_runtime.engines.openvino import OpenVinoEngine
from medtl_runtime.errors import ModelUnusable
from medtl_runtime.modelfile import METADATA_KEY
from medtl_runtime.onnxfile import read_model_file
from medtl_runtime.recipe import FULL_SCALE, HeaderVoi, Recipe, as_batch
from medtl_runtime.testing import describe

MakeModel = Callable[..., Path]
Load = Callable[..., Engine]

ABSENT = importlib.util.find_spec("openvino") is None


def onnxruntime(path: Path, **options: Any) -> Engine:
    return OnnxRuntimeEngine(read_model_file(path), threads=1, **options)


def openvino(path: Path, **options: Any) -> Engine:
    return OpenVinoEngine(read_model_file(path), threads=1, **options)


@pytest.fixture(
    params=[
        onnxruntime,
        pytest.param(openvino, marks=pytest.mark.skipif(ABSENT, reason="no openvino")),
    ],
    ids=["onnxruntime", "openvino"],
)
def load(request: pytest.FixtureRequest) -> Load:
    """Return a function that loads a file into an engine on the processor, with one thread."""
    return request.param


def images(count: int, channels: int = 1) -> np.ndarray:
    random = np.random.default_rng(6)
    shape = (count, channels, 32, 32)
    return as_batch(random.integers(0, FULL_SCALE + 1, shape, dtype=np.uint16))


def test_an_engine_gives_the_three_outputs(load: Load, tiny_model: Path) -> None:
    outputs = load(tiny_model).run(images(3))
    assert {name: value.shape for name, value in outputs.items()} == {
        "logits": (3, 2),
        "cam": (3, 2, 4, 4),
        "embedding": (3, 1),
    }
    assert all(value.dtype == np.float32 for value in outputs.values())
    np.testing.assert_allclose(outputs["cam"].mean(axis=(2, 3)), outputs["logits"], atol=1e-6)
    # A class's weight is -4 or 4, and its bias half of that.
    means = images(3).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(outputs["logits"][:, 1], 4 * means - 2, atol=1e-5)


def test_an_engine_describes_the_model(load: Load, tiny_model: Path) -> None:
    engine = load(tiny_model)
    assert engine.name.endswith(", CPU")
    assert engine.description.name == "tiny"
    assert engine.description.classes == ("dark", "bright")


def test_outputs_do_not_depend_on_the_batch_and_outlive_the_next_run(
    load: Load, tiny_model: Path
) -> None:
    engine, batch = load(tiny_model), images(4)
    together = engine.run(batch)["logits"]
    alone = [engine.run(image[None])["logits"] for image in batch]
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-6)


def test_a_colour_model_of_three_classes_loads_as_well(load: Load, make_model: MakeModel) -> None:
    recipe = Recipe(size=(32, 32), channels=3, window=HeaderVoi())
    engine = load(make_model(recipe=recipe, classes=("a", "b", "c")))
    assert engine.run(images(2, channels=3))["logits"].shape == (2, 3)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_unusable(load: Load, make_model: MakeModel, batch: int) -> None:
    with pytest.raises(ModelUnusable, match=f"a fixed batch of {batch}; expected a free one"):
        load(make_model(batch=batch))


@pytest.mark.parametrize(("height", "channels"), [(16, 1), (32, 3)])
def test_another_input_than_the_recipe_s_is_unusable(
    load: Load, make_model: MakeModel, height: int, channels: int
) -> None:
    other = describe(recipe=Recipe(size=(height, 32), channels=channels, window=HeaderVoi()))
    expected = rf"inputs .*1, 32, 32.* expected image .* = \[{channels}, {height}, 32\]"
    with pytest.raises(ModelUnusable, match=expected):
        load(make_model(metadata={METADATA_KEY: other.to_json()}))


def test_an_input_of_another_type_is_unusable(load: Load, tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model)
    nodes = list(model.graph.node)
    nodes[0].input[0] = "cast"
    cast = helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT)
    del model.graph.node[:]
    model.graph.node.extend([cast, *nodes])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelUnusable, match=r"input of .*(double|float64).*; expected float32"):
        load(tmp_path / "m.onnx")


def test_another_number_of_logits_than_classes_is_unusable(
    load: Load, make_model: MakeModel
) -> None:
    with pytest.raises(ModelUnusable, match="3 logits for 2 columns of heads"):
        load(make_model(graph_classes=3))


@pytest.mark.parametrize("name", ["logits", "cam", "embedding"])
def test_an_output_of_another_rank_is_unusable(
    load: Load, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    model = onnx.load(tiny_model)
    graph = model.graph
    (node,) = (node for node in graph.node if node.output[0] == name)
    node.output[0] = f"{name}_before"
    for other in graph.node:
        other.input[:] = [f"{name}_before" if one == name else one for one in other.input]
    graph.initializer.append(helper.make_tensor("flat", TensorProto.INT64, [1], [-1]))
    graph.node.append(helper.make_node("Reshape", [f"{name}_before", "flat"], [name]))
    (output,) = (output for output in graph.output if output.name == name)
    output.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M"]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelUnusable, match=f"{name} of shape .* axes"):
        load(tmp_path / "m.onnx")


def test_a_graph_that_makes_no_sense_is_unusable(
    load: Load, tiny_model: Path, tmp_path: Path
) -> None:
    model = onnx.load(tiny_model)
    model.graph.node[1].input[1] = "nowhere"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelUnusable, match=r"m\.onnx is not .*(cannot load|cannot read) it"):
        load(tmp_path / "m.onnx")


def test_images_of_another_size_are_an_error_and_no_result(load: Load, tiny_model: Path) -> None:
    engine = load(tiny_model)
    with pytest.raises(ModelUnusable, match=r"tiny\.onnx is not .* cannot run it"):
        engine.run(np.zeros((1, 1, 32, 31), np.float32))


# --- the description, for which no engine is needed


@pytest.mark.parametrize("metadata", [{}, {"other": "{}"}])
def test_an_onnx_file_of_others_is_unusable(make_model: MakeModel, metadata: dict) -> None:
    with pytest.raises(ModelUnusable, match="an ONNX file without a medtl description"):
        describe_model(read_model_file(make_model(metadata=metadata)))


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"schema_version": 1}'])
def test_a_description_that_cannot_be_read_is_unusable(make_model: MakeModel, text: str) -> None:
    with pytest.raises(ModelUnusable, match=r"description|schema version"):
        describe_model(read_model_file(make_model(metadata={METADATA_KEY: text})))


@pytest.mark.parametrize(
    ("requires", "expected"),
    [
        ({"ir_version": 9}, "ir_version 10; its description says 9"),
        ({"opset": 19}, "opset 18; its description says 19"),
        ({"opset": "18"}, "opset 18; its description says 18"),
    ],
)
def test_a_description_of_another_graph_is_unusable(
    make_model: MakeModel, requires: dict, expected: str
) -> None:
    with pytest.raises(ModelUnusable, match=expected):
        describe_model(read_model_file(make_model(requires=requires)))


def test_a_description_of_this_graph_is_read(make_model: MakeModel) -> None:
    requires = {"ir_version": 10, "opset": 18, "onnxruntime": "1.23"}
    described = describe_model(read_model_file(make_model(requires=requires)))
    assert described.requires == requires


@pytest.mark.parametrize(
    ("oldest", "found"),
    [("1.23", "1.23.0"), ("1.9", "1.10"), ("1.23", "1.31.1"), ("1.23", "2.0.0rc1"), (None, "1")],
)
def test_an_engine_that_is_new_enough_is_taken(oldest: str | None, found: str) -> None:
    described = describe(requires={} if oldest is None else {"onnxruntime": oldest})
    require_version("onnxruntime", found, described, Path("m.onnx"))


@pytest.mark.parametrize(
    ("oldest", "found"), [("1.23", "1.22.1"), ("1.10", "1.9"), ("2", "1.31.1"), ("1.23.1", "1.23")]
)
def test_an_older_engine_is_refused_with_both_versions(oldest: str, found: str) -> None:
    described = describe(requires={"onnxruntime": oldest})
    with pytest.raises(ModelUnusable) as error:
        require_version("onnxruntime", found, described, Path("m.onnx"))
    assert f"needs onnxruntime {oldest} or newer; installed is {found}" in str(error.value)


@pytest.mark.parametrize("oldest", ["new", "", "1.x", 1.23, ["1"], "1." + "9" * 5000])
def test_a_requirement_that_is_no_version_is_unusable(oldest: object) -> None:
    described = describe(requires={"onnxruntime": oldest})
    with pytest.raises(ModelUnusable, match="expected a version"):
        require_version("onnxruntime", "1.31.1", described, Path("m.onnx"))


def test_an_engine_that_the_model_finds_too_old_does_not_load_it(
    load: Load, make_model: MakeModel
) -> None:
    path = make_model(requires={"onnxruntime": "99.1", "openvino": "9999.1"})
    with pytest.raises(ModelUnusable, match=r"it needs \w+ 9*\.1 or newer; installed is \d"):
        load(path)


INPUTS = {"image": ["N", 1, 16, 16]}
OUTPUTS = {"logits": ["N", 2], "cam": ["N", 2, 4, 4], "embedding": ["N", 8]}


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ({"pixels": ["N", 1, 16, 16]}, OUTPUTS, r"inputs \{'pixels'"),
        (INPUTS | {"more": ["N"]}, OUTPUTS, "inputs"),
        ({}, OUTPUTS, "inputs"),
        ({"image": []}, OUTPUTS, "inputs"),
        ({"image": ["N", 1, "H", "W"]}, OUTPUTS, "inputs"),
        (INPUTS, {"logits": ["N", 2]}, r"outputs \['logits'\]; expected logits, cam, embedding"),
        (INPUTS, OUTPUTS | {"more": ["N"]}, "outputs"),
        (INPUTS, OUTPUTS | {"cam": ["N", "K", 4, 4]}, "K cam for 2 columns of heads"),
    ],
)
def test_a_graph_is_what_its_description_says(inputs: dict, outputs: dict, expected: str) -> None:
    check_graph(describe(), INPUTS, OUTPUTS, "float32", Path("m.onnx"))
    with pytest.raises(ModelUnusable, match=expected):
        check_graph(describe(), inputs, outputs, "float32", Path("m.onnx"))
