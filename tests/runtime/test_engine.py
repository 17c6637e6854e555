"""ONNX Runtime on tiny real graphs, and every way in which a file is no medtl model."""

import ctypes
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from medtl_runtime.engine import OnnxRuntimeEngine, Session, may_saturate
from medtl_runtime.errors import DeviceUnavailable, ModelUnusable, UsageError
from medtl_runtime.modelfile import METADATA_KEY
from medtl_runtime.recipe import FULL_SCALE, HeaderVoi, Recipe, as_batch
from medtl_runtime.testing import describe

MakeModel = Callable[..., Path]


def load(path: Path, **options: Any) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(path, **({"device": "cpu", "threads": 1} | options))


def images(count: int, channels: int = 1) -> np.ndarray:
    random = np.random.default_rng(6)
    shape = (count, channels, 32, 32)
    return as_batch(random.integers(0, FULL_SCALE + 1, shape, dtype=np.uint16))


def test_an_engine_gives_the_three_outputs(tiny_model: Path) -> None:
    engine = load(tiny_model)
    outputs = engine.run(images(3))
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


def test_an_engine_says_what_it_runs_and_where(tiny_model: Path) -> None:
    engine = load(tiny_model)
    assert engine.name.startswith("ONNX Runtime ")
    assert engine.name.endswith(", CPU")
    assert engine.description.name == "tiny"
    assert engine.description.classes == ("dark", "bright")


def test_an_image_s_outputs_do_not_depend_on_its_batch_or_on_threads(tiny_model: Path) -> None:
    batch = images(4)
    together = load(tiny_model).run(batch)["logits"]
    for threads in (1, 2):
        engine = load(tiny_model, threads=threads)
        alone = np.concatenate([engine.run(image[None])["logits"] for image in batch])
        np.testing.assert_allclose(alone, together, atol=1e-6)


def test_a_colour_model_of_three_classes_loads_as_well(make_model: MakeModel) -> None:
    recipe = Recipe(size=(32, 32), channels=3, window=HeaderVoi())
    engine = load(make_model(recipe=recipe, classes=("a", "b", "c")))
    assert engine.run(images(2, channels=3))["logits"].shape == (2, 3)


def test_a_session_runs_a_graph_in_memory_without_a_description(tiny_model: Path) -> None:
    session = Session(tiny_model.read_bytes(), device="cpu")
    np.testing.assert_array_equal(
        session.run(images(1))["logits"], load(tiny_model).run(images(1))["logits"]
    )
    inputs, outputs = session.shapes()
    assert inputs == {"image": ["N", 1, 32, 32]}
    assert outputs["logits"] == ["N", 2]
    assert session.input_type() == "tensor(float)"


# --- files that are no medtl model


@pytest.mark.parametrize("data", [b"", b"text", bytes(1000), b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_onnx_is_unusable(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelUnusable, match=r"m\.onnx is not a usable medtl model"):
        load(path)


def test_a_model_cut_short_anywhere_is_unusable(tiny_model: Path, tmp_path: Path) -> None:
    data = tiny_model.read_bytes()
    path = tmp_path / "cut.onnx"
    found = set()
    for length in [*range(0, len(data), 13), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ModelUnusable) as error:
            load(path)
        found.add(str(error.value).split(": ")[1])
    assert "ONNX Runtime cannot load it; it may be cut short" in found


@pytest.mark.parametrize("metadata", [{}, {"other": "{}"}])
def test_an_onnx_file_of_others_is_unusable(make_model: MakeModel, metadata: dict) -> None:
    with pytest.raises(ModelUnusable, match="an ONNX file without a medtl description"):
        load(make_model(metadata=metadata))


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"schema_version": 1}'])
def test_a_description_that_cannot_be_read_is_unusable(make_model: MakeModel, text: str) -> None:
    with pytest.raises(ModelUnusable, match="description"):
        load(make_model(metadata={METADATA_KEY: text}))


def test_another_input_size_than_the_recipe_s_is_unusable(make_model: MakeModel) -> None:
    other = describe(recipe=Recipe(size=(16, 16), channels=1, window=HeaderVoi()))
    with pytest.raises(ModelUnusable, match=r"inputs .* expected image"):
        load(make_model(metadata={METADATA_KEY: other.to_json()}))


def test_another_number_of_channels_is_unusable(make_model: MakeModel) -> None:
    other = describe(recipe=Recipe(size=(32, 32), channels=3, window=HeaderVoi()))
    with pytest.raises(ModelUnusable, match=r"inputs .* expected image"):
        load(make_model(metadata={METADATA_KEY: other.to_json()}))


def test_an_input_of_another_name_is_unusable(tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model)
    model.graph.input[0].name = "pixels"
    model.graph.node[0].input[0] = "pixels"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelUnusable, match=r"inputs .*pixels"):
        load(tmp_path / "m.onnx")


def test_an_input_of_another_type_is_unusable(tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model)
    nodes = list(model.graph.node)
    nodes[0].input[0] = "cast"
    cast = helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT)
    del model.graph.node[:]
    model.graph.node.extend([cast, *nodes])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelUnusable, match=r"input of tensor\(double\); expected float32"):
        load(tmp_path / "m.onnx")


def test_a_fixed_batch_is_unusable_unless_it_is_one(make_model: MakeModel) -> None:
    with pytest.raises(ModelUnusable, match="a fixed batch of 4"):
        load(make_model(batch=4))
    assert load(make_model(batch=1)).run(images(1))["logits"].shape == (1, 2)


def test_missing_outputs_are_unusable(make_model: MakeModel) -> None:
    with pytest.raises(ModelUnusable, match=r"outputs \['embedding', 'logits'\]; expected logits"):
        load(make_model(outputs=("logits", "embedding")))


def test_another_number_of_logits_than_classes_is_unusable(make_model: MakeModel) -> None:
    with pytest.raises(ModelUnusable, match="3 logits for 2 classes"):
        load(make_model(graph_classes=3))


@pytest.mark.parametrize("name", ["logits", "cam", "embedding"])
def test_an_output_of_another_rank_is_unusable(tiny_model: Path, tmp_path: Path, name: str) -> None:
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


def test_a_graph_that_loads_and_cannot_run_is_unusable(tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model)
    (pool,) = (node for node in model.graph.node if node.op_type == "AveragePool")
    pool.output[0] = "pool_before"
    model.graph.initializer.append(
        helper.make_tensor("wrong", TensorProto.INT64, [4], [-1, 1, 4, 7])
    )
    model.graph.initializer.append(
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
    )
    nodes = list(model.graph.node)
    nodes.insert(1, helper.make_node("Reshape", ["pool_before", "shape"], ["pool"]))
    # The shape depends on the pixels, so that it is found wrong only when it runs.
    nodes.insert(
        1,
        helper.make_node("ReduceSum", ["pool_before"], ["sum"], keepdims=0, noop_with_empty_axes=0),
    )
    nodes.insert(2, helper.make_node("Mul", ["sum", "zero"], ["none"]))
    nodes.insert(3, helper.make_node("Cast", ["none"], ["cast"], to=TensorProto.INT64))
    nodes.insert(4, helper.make_node("Add", ["wrong", "cast"], ["shape"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "m.onnx")
    engine = load(tmp_path / "m.onnx")
    with pytest.raises(ModelUnusable, match=r"m\.onnx is not .* ONNX Runtime cannot run it"):
        engine.run(images(1))


# --- devices


def test_an_unknown_device_is_a_usage_error(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="device is tpu; expected auto, cpu, cuda"):
        load(tiny_model, device="tpu")


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_cuda_without_a_driver_is_refused_and_auto_takes_the_cpu(tiny_model: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="--device cuda: there is no NVIDIA driver"):
        load(tiny_model, device="cuda")
    assert load(tiny_model, device="auto").name.endswith(", CPU")


def test_without_onnx_runtime_the_command_to_install_it_is_told(tiny_model: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "sys.argv = ['medtl-infer', '--selftest', '--model', sys.argv[1]]\n"
        "from medtl_runtime.cli import main\n"
        "main()\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, tiny_model], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith('error: no engine is installed: pip install "medtl[cpu]"')


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86 processor")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx2 avx512f avx512_vnni", False),
        ("flags : fpu avx2 avx_vnni", False),
        ("flags : fpu avx2 avx512f avx512_vnni_like", True),
        ("flags : fpu avx2", True),
    ],
)
def test_int8_products_may_saturate_on_x86_without_vnni(flags: str, expected: bool) -> None:
    assert may_saturate(flags) is expected
