"""Each backbone with each head computes what a textbook says, and folding changes nothing."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtl_models.architectures import ARCHITECTURES
from medtl_models.network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    LinearHead,
    MlpHead,
    Network,
    fold_input,
)

CLASSES = 3


@pytest.fixture(scope="module", params=ARCHITECTURES)
def network(request: pytest.FixtureRequest, lively: Callable) -> Network:
    torch.manual_seed(0)
    made = Network(request.param, logits=CLASSES, channels=1, head="linear", dropout=0.3)
    return lively(made)


@pytest.fixture(scope="module", params=["linear", "mlp"])
def with_head(request: pytest.FixtureRequest, network: Network, lively: Callable) -> Network:
    """Return a network with either head."""
    if request.param == "linear":
        return network
    torch.manual_seed(1)
    return lively(Network(network.arch, logits=CLASSES, channels=1, head="mlp", dropout=0.3))


def for_channels(network: Network, channels: int) -> Network:
    """Return the network for grey or colour images; its parameters are the same."""
    made = copy.deepcopy(network)
    made.channels = channels
    return made


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def features_of(network: Network, image: Tensor) -> Tensor:
    return network.backbone(network.canonical_input(image))


def by_hand(head: nn.Module, pooled: np.ndarray) -> np.ndarray:
    """Compute logits from pooled features in double precision: Dense layers, as in a textbook."""

    def dense(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        return x @ weight.numpy().T + bias.numpy()

    if isinstance(head, MlpHead):
        pooled = np.maximum(dense(head.hidden, pooled), 0)
    return dense(head.linear, pooled)


@torch.no_grad()
def test_outputs_are_logits_maps_and_the_pooled_features(with_head: Network) -> None:
    image = images(2, 1, 64, 96)  # not square
    features = features_of(with_head, image)
    logits, cam, embedding = with_head(image)
    assert features.shape[:2] == (2, ARCHITECTURES[with_head.arch].width)
    assert features.shape[3] > features.shape[2] >= 2
    assert logits.shape == (2, CLASSES)
    assert cam.shape == (2, CLASSES, *features.shape[2:])
    torch.testing.assert_close(embedding, features.mean((2, 3)))


@torch.no_grad()
def test_logits_are_pooling_and_dense_layers_and_the_mean_of_their_map(with_head: Network) -> None:
    logits, cam, embedding = with_head(images(3, 1, 64, 64))
    expected = by_hand(with_head.head, embedding.double().numpy())
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits.numpy(), expected, atol=2e-5 * scale)
    np.testing.assert_allclose(cam.double().mean((2, 3)).numpy(), expected, atol=2e-5 * scale)
    assert np.ptp(expected, axis=0).min() > 0  # three images, three answers


@torch.no_grad()
def test_the_linear_map_is_the_last_layer_at_every_position(network: Network) -> None:
    image = images(1, 1, 64, 64)
    head, cam = network.head, network(image).cam
    at_each = F.linear(
        features_of(network, image).movedim(1, -1), head.linear.weight, head.linear.bias
    )
    torch.testing.assert_close(cam.movedim(1, -1), at_each, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_mlp_map_is_the_head_behind_the_gates_of_the_image_at_every_position() -> None:
    torch.manual_seed(0)
    head = MlpHead(6, CLASSES, dropout=0.0)
    features = images(2, 6, 4, 5)
    cam = head(features).cam
    for image, found in zip(features, cam, strict=True):
        gates = (head.hidden(image.mean((1, 2))) > 0).float()
        assert 0 < gates.sum() < len(gates)
        at_each = head.linear(gates * head.hidden(image.movedim(0, -1)))
        torch.testing.assert_close(found.movedim(0, -1), at_each, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_a_folded_network_gives_the_same_maps_up_to_the_border(
    network: Network, channels: int
) -> None:
    given = for_channels(network, channels)
    image = images(2, channels, 48, 64)
    expected, found = given(image), fold_input(given)(image)
    for one, other in zip(expected, found, strict=True):
        scale = float(one.abs().max())
        torch.testing.assert_close(other, one, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_the_folded_stem_is_normalisation_and_convolution_at_every_pixel(
    network: Network, channels: int
) -> None:
    image = images(2, channels, 33, 40)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    rows, columns = fold_input(network).stem.padding
    black = F.pad(image.expand(-1, 3, -1, -1), (columns, columns, rows, rows), value=0.0)
    stem = network.stem
    assert stem.padding == (0, 0)
    literal = F.conv2d((black - mean) / std, stem.weight, stem.bias, stem.stride)

    folded = fold_input(for_channels(network, channels))
    found = folded.stem(image)
    assert folded.stem.in_channels == channels
    assert found.shape == literal.shape
    scale = float(literal.abs().max())
    torch.testing.assert_close(found, literal, rtol=0, atol=1e-5 * scale)
    unfolded = stem(network.canonical_input(image))
    torch.testing.assert_close(unfolded, literal, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
def test_folding_leaves_the_network_it_was_given_alone(network: Network) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = fold_input(network)
    folded.stem.weight.zero_()
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not folded.training


def test_grey_repeated_to_rgb_and_grey_are_the_same_to_a_network(network: Network) -> None:
    image = images(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(image.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("kind", [LinearHead, MlpHead])
def test_dropout_is_off_in_evaluation_and_keeps_the_mean_in_training(kind: type) -> None:
    torch.manual_seed(0)
    head = kind(8, 2, dropout=0.4)
    features = images(1, 8, 3, 3)
    still = head.eval()(features)
    torch.testing.assert_close(head(features).logits, still.logits)
    with torch.no_grad():
        many = head.train()(features.expand(20000, -1, -1, -1))
    assert float(many.logits.std(0).min()) > 0.01
    torch.testing.assert_close(many.logits.mean(0), still.logits[0], rtol=0, atol=0.02)
    torch.testing.assert_close(many.embedding[:1], still.embedding)  # nothing is dropped from it


def test_the_gradient_of_the_mlp_head_is_that_of_dense_relu_dense() -> None:
    torch.manual_seed(0)
    head = MlpHead(6, 3, dropout=0.0)
    features = images(4, 6, 5, 5)
    labels = torch.tensor([0, 1, 2, 1])
    F.cross_entropy(head(features).logits, labels).backward()
    found = [p.grad.clone() for p in head.parameters()]
    head.zero_grad()
    hidden = F.relu(head.hidden(features.mean((2, 3))))
    F.cross_entropy(head.linear(hidden), labels).backward()
    for one, other in zip(found, head.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)
        assert float(one.abs().sum()) > 0
