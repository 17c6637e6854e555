"""Mixed images are made of two, by the shares that their parts say."""

import numpy as np
import pytest
import torch

from medtl_train.config import RegularisationConfig
from medtl_train.fitting.feed import Batch
from medtl_train.fitting.mixing import Part, mix, unmixed

COUNT, SIDE = 200, 16


@pytest.fixture
def batch() -> Batch:
    """Return images whose every pixel is their number, which is their target, too."""
    numbers = torch.arange(COUNT).float()
    images = numbers[:, None, None, None].expand(COUNT, 1, SIDE, SIDE).contiguous()
    return Batch(images=images, targets=numbers[:, None])


def mixed(batch: Batch, seed: int = 0, **options: float) -> tuple[torch.Tensor, tuple[Part, ...]]:
    return mix(batch, RegularisationConfig(**options), np.random.default_rng(seed))


def test_without_the_options_images_are_what_they_were(batch: Batch) -> None:
    images, parts = mixed(batch)
    assert images is batch.images
    (part,) = parts
    assert part.targets_nh is batch.targets
    assert (part.shares_n == 1).all()


def test_mixup_is_the_mean_of_two_images_by_their_shares(batch: Batch) -> None:
    images, (one, other) = mixed(batch, mixup=0.4)
    torch.testing.assert_close(one.shares_n + other.shares_n, torch.ones(COUNT))
    expected = one.shares_n * one.targets_nh[:, 0] + other.shares_n * other.targets_nh[:, 0]
    torch.testing.assert_close(images, expected[:, None, None, None].expand_as(images))
    assert torch.equal(one.targets_nh, batch.targets)
    assert sorted(other.targets_nh[:, 0].tolist()) == list(range(COUNT))
    assert len(set(one.shares_n.tolist())) > COUNT / 2  # each image has its own


def test_cutmix_is_a_box_of_another_image_with_the_share_of_its_area(batch: Batch) -> None:
    images, (one, other) = mixed(batch, cutmix=1.0)
    for k in range(COUNT):
        own, foreign = one.targets_nh[k, 0], other.targets_nh[k, 0]
        assert set(images[k].flatten().tolist()) <= {float(own), float(foreign)}
        if own == foreign:
            continue
        inside = images[k, 0] == foreign
        assert inside.float().mean().item() == pytest.approx(float(other.shares_n[k]))
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        if len(rows):
            box = inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all()
    assert 0.2 < other.shares_n.mean() < 0.5


@pytest.mark.parametrize(("concentration", "middling"), [(0.1, 0.15), (5.0, 0.9)])
def test_shares_follow_the_beta_distribution(
    batch: Batch, concentration: float, middling: float
) -> None:
    _, (one, _) = mixed(batch, mixup=concentration)
    between = ((one.shares_n > 0.2) & (one.shares_n < 0.8)).float().mean()
    assert between.item() == pytest.approx(middling, abs=0.12)


def test_both_take_turns_by_chance(batch: Batch) -> None:
    cuts = [
        (mixed(batch, seed, mixup=1.0, cutmix=1.0)[0] % 1 == 0).all().item() for seed in range(20)
    ]
    assert 4 < sum(cuts) < 16


def test_the_same_seed_mixes_the_same(batch: Batch) -> None:
    one, other, third = (mixed(batch, seed, cutmix=1.0)[0] for seed in (3, 3, 4))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_unmixed_targets_count_whole() -> None:
    (part,) = unmixed(torch.zeros(3, 2))
    assert part.shares_n.tolist() == [1, 1, 1]
