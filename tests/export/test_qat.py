import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from medtl_export import graph, qat
from medtl_export.errors import QuantisationIncomplete
from medtl_export.qat import QatSettings, Sites
from medtl_export.qat_student import Student, unfolded
from medtl_models.architectures import ARCHITECTURES
from medtl_models.network import Network
from medtl_runtime.errors import ExtraMissing, UsageError
from medtl_runtime.heads import Head
from medtl_runtime.recipe import HeaderVoi, Recipe, as_batch
from medtl_train.data.images import ImageSet

needs_torchao = pytest.mark.skipif(
    not qat.is_available(), reason="torchao is not installed (extra qat)"
)
CPU = torch.device("cpu")
SIZE = 32
HEADS = (Head(name="label", classes=("left", "middle", "right")),)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Spare small networks the threads' quarrels over a busy machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(arch: str, *, channels: int = 1, head: str = "linear") -> Network:
    """Return a network whose BatchNorms do something, as after training."""
    torch.manual_seed(0)
    made = Network(arch, logits=3, channels=channels, head=head, dropout=0.2)
    for norm in made.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            norm.bias.data.normal_(0, 0.1)
    return made.eval()


def hostile(arch: str, train: ImageSet) -> Network:
    """Return a network whose channels have one large weight each, which makes grids coarse."""
    made, images = network(arch), torch.from_numpy(as_batch(train.pixels))
    with torch.no_grad():
        for convolution in made.backbone.modules():
            if isinstance(convolution, torch.nn.Conv2d):
                convolution.weight[:, 0, 0, 0] *= 8
        made.head.linear.weight.mul_(3 / made(images).logits.std(0).mean())
        made.head.linear.bias.sub_(made(images).logits.mean(0))
    return made


@pytest.fixture(scope="module")
def train() -> ImageSet:
    """Return images whose class is where their bright square is."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 20000, (24, 1, SIZE, SIZE)).astype(np.uint16)
    labels = np.arange(24, dtype=np.int64) % 3
    for image, label in zip(pixels, labels, strict=True):
        image[0, 10 * label : 10 * label + 10, 10 * label : 10 * label + 10] += 40000
    names = tuple(f"{i}.png" for i in range(24))
    return ImageSet(
        pixels=pixels,
        targets=labels[:, None].astype(float),
        patients=np.array(names),
        sources=names,
    )


def tuned(given: Network, train: ImageSet, notes: list[str], **settings) -> Network:
    chosen = QatSettings(**{"epochs": 2, "batch_size": 8, "lr": 3e-5} | settings)
    return qat.finetune(given, train, HEADS, settings=chosen, device=CPU, note=notes.append)


def rounded_error(given: Network, reference: Network, images: np.ndarray) -> float:
    """Return the mean divergence of a network with 4-bit weights from the reference in float."""
    batch = torch.from_numpy(as_batch(images))
    student = Student(given, weight_bits=4, activation_bits=8)
    with torch.no_grad():
        student.set_rounding(False)
        student(batch)  # sets the ranges
        student.set_rounding(True)
        student.set_observing(False)
        found, wanted = student(batch), reference(batch).logits
    return float(
        torch.nn.functional.kl_div(
            found.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True
        )
    )


@needs_torchao
def test_finetuning_lowers_what_rounding_costs(train: ImageSet) -> None:
    given, notes = hostile("resnet18", train), []
    before = rounded_error(given, given, train.pixels)
    better = tuned(given, train, notes, weight_bits=4, distillation=1)
    assert rounded_error(better, given, train.pixels) < 0.5 * before
    assert "not lower" not in notes[0]


@needs_torchao
def test_weights_that_do_not_gain_stay(train: ImageSet) -> None:
    given, notes = network("squeezenet1_1"), []
    same = tuned(given, train, notes, lr=1e-30, epochs=1)
    assert "not lower" in notes[0]
    for name, tensor in same.state_dict().items():
        torch.testing.assert_close(tensor, given.state_dict()[name], rtol=0, atol=0)


@needs_torchao
def test_the_given_network_is_unchanged_and_a_seed_determines_the_result(train: ImageSet) -> None:
    given = hostile("squeezenet1_1", train).train()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    first, second, other = (
        tuned(given, train, [], seed=seed, weight_bits=4, epochs=1).state_dict()
        for seed in (1, 1, 2)
    )
    assert given.training
    assert all(p.requires_grad and p.grad is None for p in given.parameters())
    assert first.keys() == before.keys()
    for name, tensor in given.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(first[name], second[name])
    assert any(not torch.equal(first[name], other[name]) for name in first)


TAKEN_APART = [
    ("resnet18", 3, "mlp"),
    ("densenet121", 1, "linear"),
    ("efficientnet_b0", 1, "mlp"),
    ("regnet_y_400mf", 3, "linear"),
    ("squeezenet1_1", 1, "linear"),
    ("convnext_tiny", 1, "linear"),
]


@needs_torchao
@pytest.mark.parametrize(("arch", "channels", "head"), TAKEN_APART)
def test_every_product_of_the_backbone_is_rounded_and_unfolding_is_exact(
    arch: str, channels: int, head: str
) -> None:
    given = network(arch, channels=channels, head=head)
    student = Student(given, weight_bits=8, activation_bits=8)
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    products = [m for m in student.backbone.modules() if isinstance(m, kinds)]
    wanted = [m for m in given.backbone.modules() if isinstance(m, kinds)]
    assert len(products) == len(wanted)
    assert all(torch.nn.utils.parametrize.is_parametrized(m, "weight") for m in products)
    assert not any(torch.nn.utils.parametrize.is_parametrized(m) for m in student.head.modules())
    found = qat.quantised_sites(given)
    assert found.convolutions + found.linears == len(wanted)
    assert (found.linears > 0) == (arch == "convnext_tiny")

    images = torch.rand(2, channels, 64, 64)
    with torch.no_grad():
        for a, b in zip(given(images), unfolded(given, student)(images), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))


def test_all_other_architectures_have_a_site_for_each_convolution() -> None:
    for arch in ARCHITECTURES.keys() - {arch for arch, *_ in TAKEN_APART}:
        with torch.device("meta"):  # shapes are enough
            given = network(arch)
        convolutions = [m for m in given.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
        found = qat.quantised_sites(given)
        assert found.convolutions == len(convolutions)
        assert found.activations > found.convolutions / 2


@needs_torchao
def test_weights_are_rounded_to_127_steps_of_the_largest_one() -> None:
    student = Student(network("squeezenet1_1"), weight_bits=8, activation_bits=8)
    convolution = next(m for m in student.backbone.modules() if isinstance(m, torch.nn.Conv2d))
    original = convolution.parametrizations.weight.original.detach()
    scale = original.abs().amax((1, 2, 3), keepdim=True) / 127
    expected = (original / scale).round() * scale
    torch.testing.assert_close(convolution.weight.detach(), expected, rtol=1e-5, atol=1e-7)


def test_without_torchao_the_extra_is_named(
    train: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchao"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ExtraMissing, match=r'torchao.*pip install "medtl\[qat\]"'):
        tuned(network("squeezenet1_1"), train, [])
    assert not qat.is_available()


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": 0.0}, {"distillation": 1.5}])
def test_settings_out_of_their_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        QatSettings(**wrong)


def qdq(*, rounded: int, in_float: int) -> onnx.ModelProto:
    """Return a chain of convolutions, the first ones in integers."""
    nodes, constants = [], []

    def constant(name: str, values: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(values, name))
        return name

    constant("scale", np.array(0.1, np.float32))
    constant("zero", np.array(0, np.uint8))
    current = "image"
    for index in range(rounded + in_float):
        weight = f"weight_{index}"
        if index < rounded:
            nodes += [
                helper.make_node("QuantizeLinear", [current, "scale", "zero"], [f"q_{index}"]),
                helper.make_node(
                    "DequantizeLinear", [f"q_{index}", "scale", "zero"], [f"d_{index}"]
                ),
                helper.make_node("DequantizeLinear", [weight, "scale"], [f"dw_{index}"]),
            ]
            constant(weight, np.ones((1, 1, 1, 1), np.int8))
            inputs = [f"d_{index}", f"dw_{index}"]
        else:
            inputs = [current, constant(weight, np.ones((1, 1, 1, 1), np.float32))]
        nodes.append(helper.make_node("Conv", inputs, [f"y_{index}"], name=f"conv_{index}"))
        current = f"y_{index}"
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 4, 4])
    out = helper.make_tensor_value_info(current, TensorProto.FLOAT, [1, 1, 4, 4])
    return helper.make_model(helper.make_graph(nodes, "g", [image], [out], constants))


def test_a_graph_with_too_few_or_too_many_integer_products_is_refused() -> None:
    sites = Sites(convolutions=2, linears=0, activations=3)
    qat.expect_nodes(qdq(rounded=2, in_float=1), sites)
    with pytest.raises(QuantisationIncomplete, match=r"1 Conv in integers, expected 2.*conv_1"):
        qat.expect_nodes(qdq(rounded=1, in_float=1), sites)
    with pytest.raises(QuantisationIncomplete, match="3 Conv in integers, expected 2"):
        qat.expect_nodes(qdq(rounded=3, in_float=0), sites)
    with pytest.raises(QuantisationIncomplete, match="0 MatMul/Gemm in integers, expected 1"):
        qat.expect_nodes(qdq(rounded=2, in_float=0), replace(sites, linears=1))


def test_an_integer_weight_under_a_float_input_is_not_a_product_in_integers() -> None:
    model = qdq(rounded=1, in_float=0)
    model.graph.node[-1].input[0] = "image"
    with pytest.raises(QuantisationIncomplete, match="in float are conv_0"):
        qat.expect_nodes(model, Sites(convolutions=1, linears=0, activations=2))


def test_the_float_graph_has_a_convolution_for_each_site() -> None:
    given = network("squeezenet1_1")
    model = graph.to_onnx(given, Recipe(size=(64, 64), channels=1, window=HeaderVoi()))
    head = set(graph.head_nodes(model))
    found = [n for n in model.graph.node if n.op_type == "Conv" and n.name not in head]
    assert len(found) == qat.quantised_sites(given).convolutions


def test_the_labels_of_every_kind_of_head_count_where_they_are_known() -> None:
    heads = (
        Head(name="organ", classes=("a", "b", "c")),
        Head(name="oedema", kind="binary", classes=("absent", "present")),
        Head(name="grade", kind="ordinal", classes=("1", "2", "3")),
        Head(name="age", kind="regression", mean=50.0, std=20.0),
    )
    logits = torch.randn(2, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([[2.0, 1.0, 0.0, 70.0], [torch.nan, 0.0, torch.nan, torch.nan]])
    found = qat.labels_loss(heads, logits, targets)
    cross_entropy = torch.nn.functional.cross_entropy(logits[:1, :3], torch.tensor([2]))
    binary = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 3], targets[:, 1])
    grade = torch.nn.functional.softplus(logits[0, 4])  # not above the lowest
    value = (logits[0, 6] - 1) ** 2
    expected = (cross_entropy + binary + grade + value) / 4
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    found.backward()
    assert logits.grad is not None
    assert (logits.grad[1, [0, 1, 2, 4, 5, 6]] == 0).all()  # unknown: nothing to learn from
    assert logits.grad[1, 3] != 0
