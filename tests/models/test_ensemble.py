"""Several networks that answer as one."""

import pytest
import torch

from medtl_models.ensemble import Ensemble, folded
from medtl_models.network import Network


@pytest.fixture(scope="module")
def members() -> list[Network]:
    torch.manual_seed(0)
    return [
        Network("squeezenet1_1", logits=3, channels=1, head="linear", dropout=0.2).eval()
        for _ in range(2)
    ]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_an_ensemble_answers_with_the_mean_of_its_members(
    members: list[Network], images: torch.Tensor
) -> None:
    found = Ensemble(members)(images)
    first, second = (member(images) for member in members)
    assert not torch.allclose(first.logits, second.logits)
    torch.testing.assert_close(found.logits, (first.logits + second.logits) / 2)
    torch.testing.assert_close(found.cam, (first.cam + second.cam) / 2)


@torch.inference_mode()
def test_the_mean_over_a_class_s_map_is_its_logit(
    members: list[Network], images: torch.Tensor
) -> None:
    found = Ensemble(members)(images)
    torch.testing.assert_close(found.cam.mean((2, 3)), found.logits, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_the_embedding_is_that_of_all_members(members: list[Network], images: torch.Tensor) -> None:
    found = Ensemble(members)(images)
    second = members[1](images).embedding
    torch.testing.assert_close(found.embedding[:, -second.shape[1] :], second)
    assert found.embedding.shape == (4, 2 * second.shape[1])


def test_an_ensemble_is_of_its_members_architecture(members: list[Network]) -> None:
    assert Ensemble(members).arch == "squeezenet1_1"


@torch.inference_mode()
def test_folding_the_input_of_an_ensemble_changes_nothing_it_says(
    members: list[Network], images: torch.Tensor
) -> None:
    ensemble = Ensemble(members).eval()
    one = folded(ensemble)
    assert isinstance(one, Ensemble)
    for found, expected in zip(one(images), ensemble(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    first = one.members[0]
    assert isinstance(first, Network)
    assert isinstance(first.canonical_input, torch.nn.Identity)
