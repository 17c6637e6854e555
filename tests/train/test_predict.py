"""What is evaluated fits into the memory that there is."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medtl_models.network import Network
from medtl_train.errors import MemoryTooSmall
from medtl_train.fitting.predict import predict_embeddings, predict_logits

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 65536, (150, 1, 32, 32)).astype(np.uint16)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network("squeezenet1_1", logits=2, channels=1, head="linear", dropout=0.0)


def limit(network: Network, images: int) -> list[int]:
    """Let no more images than that fit; return the list that sizes of batches go to."""
    sizes = []

    def before(_module: Any, given: tuple[Tensor, ...]) -> None:
        sizes.append(len(given[0]))
        if len(given[0]) > images:
            raise torch.OutOfMemoryError

    network.register_forward_pre_hook(before)
    return sizes


def test_batches_are_halved_until_they_fit_and_every_image_is_seen_once(network: Network) -> None:
    expected = predict_logits(network, PIXELS, CPU)
    sizes = limit(network, 20)
    found = predict_logits(network, PIXELS, CPU)
    assert sizes == [64, 32, *[16] * 9, 6]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_stretch_of_the_images_is_that_of_all(network: Network) -> None:
    whole = predict_embeddings(network, PIXELS, CPU)
    part = predict_embeddings(network, PIXELS, CPU, slice(10, 90))
    np.testing.assert_allclose(part, whole[10:90], atol=1e-5)


def test_memory_for_no_image_at_all_is_an_error_in_words(network: Network) -> None:
    limit(network, 0)
    with pytest.raises(MemoryTooSmall, match="not even one image fits"):
        predict_logits(network, PIXELS, CPU)
