import numpy as np
import onnx
import pytest
import torch

from medtl_export import graph, quantise
from medtl_models.network import Network
from medtl_runtime.engines import Session
from medtl_runtime.recipe import HeaderVoi, Recipe, as_batch


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (6, 1, 64, 64)).astype(np.uint16)


@pytest.fixture(scope="module", params=["linear", "mlp"])
def pair(request: pytest.FixtureRequest, pixels: np.ndarray):
    torch.manual_seed(0)
    network = Network("resnet18", classes=2, channels=1, head=request.param, dropout=0).eval()
    recipe = Recipe(size=(64, 64), channels=1, window=HeaderVoi())
    model = graph.to_onnx(network, recipe)
    return model, quantise.quantise(model, pixels)


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def test_every_convolution_of_the_backbone_has_int8_weights_per_channel(pair) -> None:
    _, quantised = pair
    head, known = set(graph.head_nodes(quantised)), constants(quantised)
    sources = {out: node for node in quantised.graph.node for out in node.output}
    convolutions = [n for n in quantised.graph.node if n.op_type == "Conv" and n.name not in head]
    assert len(convolutions) == 20
    for node in convolutions:
        weight = sources[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        assert known[weight.input[0]].data_type == onnx.TensorProto.INT8
        assert len(known[weight.input[1]].float_data or known[weight.input[1]].raw_data) > 4
        assert known[sources[node.input[0]].input[2]].data_type == onnx.TensorProto.UINT8


def test_the_head_stays_in_float_and_the_maps_stay_exact(pair, pixels: np.ndarray) -> None:
    _, quantised = pair
    kept = quantise.kept_in_float(quantised)
    assert {entry["reason"] for entry in kept} == {"head"}
    found = Session(quantised.SerializeToString(), device="cpu").run(as_batch(pixels))
    np.testing.assert_allclose(found["cam"].mean((2, 3)), found["logits"], atol=1e-4)


def test_int8_stays_close_to_float(pair, pixels: np.ndarray) -> None:
    before, after = (Session(m.SerializeToString(), device="cpu") for m in pair)
    batch = as_batch(pixels)
    a, b = before.run(batch)["embedding"], after.run(batch)["embedding"]
    assert np.abs(a - b).max() > 0  # it is another computation
    assert np.linalg.norm(a - b) / np.linalg.norm(a) < 0.05


def test_the_file_shrinks_to_about_a_quarter(pair) -> None:
    before, after = (len(model.SerializeToString()) for model in pair)
    assert 0.24 < after / before < 0.33


def test_quantising_twice_gives_the_same_graph(pair, pixels: np.ndarray) -> None:
    model, quantised = pair
    again = quantise.quantise(model, pixels)
    assert again.SerializeToString(deterministic=True) == quantised.SerializeToString(
        deterministic=True
    )
