"""A real, tiny training run to export from."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from medtl_export import graph
from medtl_models.network import Network
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_train.config import (
    DataConfig,
    FitConfig,
    ImageConfig,
    NetworkConfig,
    TrainConfig,
)
from medtl_train.phantoms import write_studies
from medtl_train.run import train


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished resnet18 run on 64 phantom images of 64 x 64 pixels."""
    root = tmp_path_factory.mktemp("export")
    write_studies(root / "liver", organ="liver", patients=32, images=2, size=64, seed=3)
    config = TrainConfig(
        data=DataConfig(val_fraction=0.3, test_fraction=0.2, cache="none"),
        image=ImageConfig(size=64, window="90,250"),
        network=NetworkConfig(arch="resnet18", weights="none"),
        fit=FitConfig(epochs=2, lr=1e-3, batch_size=16),
    )
    train(root / "liver", root / "runs" / "liver", config, device=torch.device("cpu"))
    return root / "runs" / "liver"


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """Trace equal networks once: it takes seconds, and most tests export the same run."""
    known: dict[tuple[str, str], onnx.ModelProto] = {}
    trace = graph.to_onnx

    def remembered(network: Network, recipe: Recipe) -> onnx.ModelProto:
        digest = hashlib.sha256(str(network).encode())
        for tensor in network.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        key = digest.hexdigest(), str(recipe)
        if key not in known:
            known[key] = trace(network, recipe)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "to_onnx", remembered)
        yield


class GraphOf(Protocol):
    """Writes a small graph by hand; see `graph_of`."""

    def __call__(
        self,
        body: str,
        constants: Mapping[str, NDArray],
        *,
        image: tuple[int, ...] = (1, 16, 16),
        outputs: Mapping[str, int] = ...,
    ) -> onnx.ModelProto: ...


@pytest.fixture(scope="session")
def graph_of() -> GraphOf:
    """Return what makes a model of nodes in ONNX's text form, each named by what it makes.

    The input is ``image``, N x ``image``; ``outputs`` are ranks by name.
    """

    def made(body, constants, *, image=(1, 16, 16), outputs={"out": 4}):  # noqa: B006
        graph = onnx.parser.parse_graph(f"g (float[N] image) => (float[N] out) {{ {body} }}")
        for node in graph.node:
            node.name = node.output[0]
        values = helper.make_tensor_value_info
        inside = helper.make_graph(
            list(graph.node),
            "small",
            [values("image", TensorProto.FLOAT, ["N", *image])],
            [
                values(name, TensorProto.FLOAT, ["N", *[None] * (rank - 1)])
                for name, rank in outputs.items()
            ],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        imports = [helper.make_opsetid("", 18)]
        model = helper.make_model(inside, opset_imports=imports, ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    return made


@pytest.fixture(scope="session")
def resnet18() -> onnx.ModelProto:
    """Return the graph of a resnet18 with random weights, for grey images of 64 x 64 pixels."""
    return _untrained("resnet18")


@pytest.fixture(scope="session")
def mobilenet() -> onnx.ModelProto:
    """Return the graph of a MobileNetV3 with random weights, as `resnet18`."""
    return _untrained("mobilenet_v3_small")


@pytest.fixture(scope="session")
def squeezenet() -> onnx.ModelProto:
    """Return the graph of a SqueezeNet with random weights and the other head, as `resnet18`."""
    return _untrained("squeezenet1_1", head="mlp")


def _untrained(arch: str, head: str = "linear") -> onnx.ModelProto:
    torch.manual_seed(0)
    network = Network(arch, logits=2, channels=1, head=head, dropout=0).eval()  # pyright: ignore[reportArgumentType]
    for name, tensor in network.state_dict().items():
        if name.endswith(("bias", "running_mean")):  # of 0 they would vanish from the graph
            tensor.normal_(0, 0.05)
    return graph.to_onnx(network, Recipe(size=(64, 64), channels=1, window=HeaderVoi()))
