"""OpenVINO computes what ONNX Runtime computes, and says what it cannot have."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from medtl_runtime.engines import OnnxRuntimeEngine, load_engine
from medtl_runtime.engines.openvino import OpenVinoEngine
from medtl_runtime.errors import DeviceUnavailable
from medtl_runtime.modelfile import METADATA_KEY
from medtl_runtime.onnxfile import ModelBytes, read_model_file
from medtl_runtime.recipe import FULL_SCALE, HeaderVoi, Recipe, as_batch
from medtl_runtime.testing import describe

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="no openvino")

MakeModel = Callable[..., Path]
SIZE = 32


def images(count: int) -> NDArray[np.float32]:
    random = np.random.default_rng(8)
    return as_batch(random.integers(0, FULL_SCALE + 1, (count, 1, SIZE, SIZE), dtype=np.uint16))


def network() -> onnx.ModelProto:
    """Return a small network of convolutions with seeded weights, of two classes."""
    random = np.random.default_rng(9)

    def weights(name: str, *shape: int) -> TensorProto:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array((scale * random.normal(size=shape)).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w3"], ["cam"], name="head"),
        helper.make_node("ReduceMean", ["cam", "axes"], ["logits"], keepdims=0, name="pool"),
        helper.make_node("ReduceMean", ["d", "axes"], ["embedding"], keepdims=0, name="pool2"),
    ]
    shapes = {"logits": ["N", 2], "cam": ["N", 2, 8, 8], "embedding": ["N", 16]}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [
            weights("w1", 8, 1, 3, 3),
            weights("w2", 16, 8, 3, 3),
            weights("w3", 2, 16, 1, 1),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def written(model: onnx.ModelProto, path: Path) -> ModelBytes:
    recipe = Recipe(size=(SIZE, SIZE), channels=1, window=HeaderVoi())
    helper.set_model_props(model, {METADATA_KEY: describe(recipe=recipe).to_json()})
    onnx.save(model, path)
    return read_model_file(path)


def quantised(folder: Path) -> onnx.ModelProto:
    """Return the network as the exporter quantises: QDQ, uint8 activations, int8 weights."""
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._images: Iterator[NDArray[np.float32]] = iter(images(8))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._images, None)
            return None if image is None else {"image": image[None]}

    onnx.save(network(), folder / "float.onnx")
    quantization.quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        nodes_to_exclude=["head", "pool", "pool2"],
    )
    model = onnx.load(folder / "int8.onnx")
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) >= 3
    return model


def differences(model: ModelBytes, batch: NDArray[np.float32]) -> dict[str, float]:
    """Return the largest difference between the engines, relative to the largest value."""
    expected = OnnxRuntimeEngine(model, threads=1).run(batch)
    found = OpenVinoEngine(model, threads=1).run(batch)
    return {
        name: float(np.abs(found[name] - value).max() / np.abs(value).max())
        for name, value in expected.items()
    }


def test_it_agrees_with_onnx_runtime_in_float(tmp_path: Path) -> None:
    model = written(network(), tmp_path / "m.onnx")
    for count in (1, 5):
        assert all(off < 1e-5 for off in differences(model, images(count)).values())


def test_it_agrees_with_onnx_runtime_in_int8(tmp_path: Path) -> None:
    model = written(quantised(tmp_path), tmp_path / "m.onnx")
    # A step of an activation's grid is 1/255 of its range, and roundings differ by a step.
    assert all(off < 2e-2 for off in differences(model, images(5)).values())


def test_int8_is_no_float_in_disguise(tmp_path: Path) -> None:
    whole, coarse = written(network(), tmp_path / "a.onnx"), tmp_path / "b.onnx"
    expected = OpenVinoEngine(whole, threads=1).run(images(5))["logits"]
    found = OpenVinoEngine(written(quantised(tmp_path), coarse), threads=1).run(images(5))["logits"]
    assert 1e-4 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_it_is_loaded_by_its_name_and_passes_the_self_test(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loaded = load_engine(read_model_file(tiny_model), device="openvino", threads=1)
    assert loaded.engine.name.startswith("OpenVINO 20")
    assert loaded.engine.name.endswith(", CPU")
    assert loaded.self_test is not None
    assert loaded.self_test.difference < 1e-4


def test_threads_may_run_it_at_the_same_time(tiny_model: Path) -> None:
    engine = OpenVinoEngine(read_model_file(tiny_model), threads=1)
    batch = images(32)
    expected = engine.run(batch)["logits"]
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = list(pool.map(lambda image: engine.run(image[None])["logits"][0], batch))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("device", ["openvino:GPU.7", "openvino:NOSUCH"])
def test_a_device_that_openvino_does_not_find_is_refused(tiny_model: Path, device: str) -> None:
    expected = rf"--device {device}: OpenVINO finds .*CPU.* and no {device.split(':')[1]}"
    with pytest.raises(DeviceUnavailable, match=expected):
        OpenVinoEngine(read_model_file(tiny_model), device=device)


def test_nothing_is_sent_over_a_network(tiny_model: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "def watch(event, arguments):\n"
        "    if event.startswith(('socket.', 'urllib.', 'http.')):\n"
        "        print(event, arguments)\n"
        "sys.addaudithook(watch)\n"
        "import numpy as np\n"
        "from medtl_runtime.engines.openvino import OpenVinoEngine\n"
        "from medtl_runtime.onnxfile import read_model_file\n"
        "engine = OpenVinoEngine(read_model_file(Path(sys.argv[1])), threads=1)\n"
        "print(engine.run(np.zeros((1, 1, 32, 32), np.float32))['logits'].shape)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, tiny_model], capture_output=True, text=True, check=True
    )
    assert finished.stdout == "(1, 2)\n"
