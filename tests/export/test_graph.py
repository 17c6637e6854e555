import numpy as np
import onnx
import pytest
import torch

from medtl_export import graph
from medtl_models.architectures import ARCHITECTURES
from medtl_models.network import Network
from medtl_runtime.engines import Session
from medtl_runtime.modelfile import OUTPUTS
from medtl_runtime.recipe import HeaderVoi, Recipe


def recipe_of(channels: int, size: int = 64) -> Recipe:
    return Recipe(size=(size, size), channels=channels, window=HeaderVoi())


def random_network(arch: str, *, channels: int = 1, head: str = "linear") -> Network:
    torch.manual_seed(0)
    return Network(arch, logits=3, channels=channels, head=head, dropout=0.5).eval()


@pytest.fixture(scope="module")
def squeezenet() -> onnx.ModelProto:
    return graph.to_onnx(random_network("squeezenet1_1"), recipe_of(1))


FAMILIES = (
    "resnet18", "vgg16", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "densenet121",
    "squeezenet1_1", "convnext_tiny",
)  # fmt: skip
"""One architecture of each; every export checks its own (`medtl_export.compare.check_parity`)."""


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_of_backbones_gives_the_same_numbers_in_onnx_as_in_torch(arch: str) -> None:
    channels, head = (3, "mlp") if list(ARCHITECTURES).index(arch) % 2 else (1, "linear")
    network = random_network(arch, channels=channels, head=head)
    session = Session(graph.to_onnx(network, recipe_of(channels)).SerializeToString(), device="cpu")
    images = torch.rand(3, channels, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(images)
    found = session.run(images.numpy())
    for name, tensor in zip(OUTPUTS, expected, strict=True):
        scale = max(1.0, float(tensor.abs().max()))
        np.testing.assert_allclose(found[name], tensor.numpy(), atol=1e-4 * scale, rtol=0)


def test_the_batch_dimension_is_free(squeezenet: onnx.ModelProto) -> None:
    session = Session(squeezenet.SerializeToString(), device="cpu")
    images = np.random.default_rng(0).random((5, 1, 64, 64), dtype=np.float32)
    together = session.run(images)["logits"]
    singly = np.concatenate([session.run(image[None])["logits"] for image in images])
    np.testing.assert_allclose(together, singly, atol=1e-5)


def test_the_mean_of_the_map_is_the_logit(squeezenet: onnx.ModelProto) -> None:
    session = Session(squeezenet.SerializeToString(), device="cpu")
    found = session.run(np.random.default_rng(0).random((2, 1, 64, 64), dtype=np.float32))
    np.testing.assert_allclose(found["cam"].mean((2, 3)), found["logits"], atol=1e-5)


def test_normalisation_is_folded_into_the_first_convolution(squeezenet: onnx.ModelProto) -> None:
    first = squeezenet.graph.node[0]
    assert first.op_type == "Conv"
    assert first.input[0] == "image"
    weight = next(w for w in squeezenet.graph.initializer if w.name == first.input[1])
    assert weight.dims[1] == 1  # grey: the three channels are summed


def test_the_graph_carries_no_stack_traces_and_no_paths(squeezenet: onnx.ModelProto) -> None:
    content = squeezenet.SerializeToString()
    for trace in (b"stack_trace", b"site-packages", b".py", b"File ", b"/home", b"pkg.torch"):
        assert trace not in content
    assert not any(node.metadata_props for node in squeezenet.graph.node)


@pytest.mark.parametrize(
    ("head", "inside", "outside"),
    [("linear", {"Conv": 1}, {"Concat"}), ("mlp", {"Gemm": 1}, {"Concat", "Conv", "Relu"})],
)
def test_the_head_begins_where_the_feature_map_ends(
    head: str, inside: dict[str, int], outside: set[str]
) -> None:
    model = graph.to_onnx(random_network("squeezenet1_1", head=head), recipe_of(1))
    names = set(graph.head_nodes(model))
    kinds = [node.op_type for node in model.graph.node if node.name in names]
    assert names
    assert "ReduceMean" in kinds
    for kind, count in inside.items():
        assert kinds.count(kind) == count
    assert not outside & set(kinds)
