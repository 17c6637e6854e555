"""Batches: the same seeds give the same ones, every image comes once or as often as is asked."""

import numpy as np
import pytest
import torch

from medtl_runtime.errors import UsageError
from medtl_runtime.recipe import as_batch
from medtl_train.config import AugmentConfig
from medtl_train.data.images import ImageSet
from medtl_train.fitting.distributed import World
from medtl_train.fitting.feed import Batch, Feed

CPU = torch.device("cpu")
OFF = AugmentConfig(augment=False)


def image_set(count: int = 23, heads: int = 1, unknown: float = 0.0) -> ImageSet:
    rng = np.random.default_rng(0)
    targets = np.column_stack([np.arange(count, dtype=float)] * heads)
    targets[rng.random(targets.shape) < unknown] = np.nan
    return ImageSet(
        pixels=rng.integers(0, 2**16, (count, 1, 8, 8)).astype(np.uint16),
        targets=targets,
        patients=np.array([f"p{i}" for i in range(count)]),
        sources=tuple(f"{i}.png" for i in range(count)),
    )


def feed(images: ImageSet, batch_size: int = 5, **options: object) -> Feed:
    given = {"augmentation": OFF, "device": CPU, **options}
    return Feed(images=images, batch_size=batch_size, **given)


def drawn(one: Feed, order: int = 1, changes: int = 2) -> list[Batch]:
    return list(one.epoch(order=order, changes=changes))


def numbers(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.targets[:, 0] for batch in batches]).int().tolist()


def test_an_epoch_holds_every_image_once_with_its_own_target() -> None:
    images = image_set()
    batches = drawn(feed(images))
    assert sorted(numbers(batches)) == list(range(23))
    pixels = torch.cat([batch.images for batch in batches]).numpy()
    assert np.array_equal(pixels, as_batch(images.pixels)[numbers(batches)])
    assert {len(batch.images) for batch in batches} == {4, 5}


def test_a_batch_that_is_whole_counts_whole() -> None:
    for batch in drawn(feed(image_set(unknown=0.5))):
        assert batch.fraction == 1.0
        assert batch.known is None


def test_seeds_decide_the_order_and_the_changes_one_by_one() -> None:
    one = feed(image_set(), augmentation=AugmentConfig())
    first, same = drawn(one), drawn(one)
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, same, strict=True))
    assert numbers(drawn(one, order=9)) != numbers(first)
    other = drawn(one, changes=9)
    assert numbers(other) == numbers(first)
    assert not torch.equal(other[0].images, first[0].images)


def test_sampling_draws_with_replacement_as_often_as_asked() -> None:
    weights = np.ones(400)
    weights[0], weights[1:11] = 40.0, 0.0
    one = feed(image_set(400), sampling=weights)
    counts = np.bincount(
        [n for seed in range(10) for n in numbers(drawn(one, order=seed))], minlength=400
    )
    assert counts.sum() == 4000
    assert (counts[1:11] == 0).all()
    assert counts[0] == pytest.approx(4000 * 40 / weights.sum(), rel=0.2)
    assert numbers(drawn(one)) == numbers(drawn(one))


def test_several_processes_share_each_batch_of_the_same_order() -> None:
    images = image_set(47)
    alone = drawn(feed(images, 9))
    shared = [drawn(feed(images, 9, world=World(rank=rank, size=3))) for rank in range(3)]
    for whole, *parts in zip(alone, *shared, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


def test_processes_change_images_each_in_its_own_way() -> None:
    images = image_set(12)
    images.pixels[:] = images.pixels[0]
    shared = [
        drawn(feed(images, 12, augmentation=AugmentConfig(), world=World(rank=rank, size=2)))
        for rank in range(2)
    ]
    assert not torch.equal(shared[0][0].images, shared[1][0].images)


def weighted_mean(parts: list[Batch], size: int) -> torch.Tensor:
    """Return the mean target of each head that the parts' means add up to."""
    sums = [part.known * part.targets.nanmean(0).nan_to_num(0) for part in parts]
    return torch.stack(sums).sum(0) / size


@pytest.mark.parametrize("count", [2, 3])
def test_parts_add_up_to_the_batch_for_images_and_for_known_targets(count: int) -> None:
    for batch in drawn(feed(image_set(heads=3, unknown=0.4), 11)):
        parts = batch.parts(count)
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert sum(part.fraction for part in parts) == pytest.approx(1)
        torch.testing.assert_close(weighted_mean(parts, 1), batch.targets.nanmean(0))
        assert batch.parts(1) == [batch]


def test_parts_of_processes_add_up_to_the_batch_too() -> None:
    images = image_set(47, heads=3, unknown=0.4)
    alone = drawn(feed(images, 12))
    shared = [drawn(feed(images, 12, world=World(rank=rank, size=2))) for rank in range(2)]
    for whole, *mine in zip(alone, *shared, strict=True):
        parts = [part for one in mine for part in one.parts(2)]
        assert sum(part.fraction for part in parts) == pytest.approx(2)
        torch.testing.assert_close(weighted_mean(parts, 2), whole.targets.nanmean(0))


def test_a_process_with_a_single_image_a_step_is_refused() -> None:
    one = feed(image_set(), 5, world=World(rank=0, size=3))
    with pytest.raises(
        UsageError, match="--batch-size 5 leaves a process of 3 with 1 images a step"
    ):
        drawn(one)


def test_a_change_of_colours_is_refused_for_grey_images() -> None:
    with pytest.raises(UsageError, match="--hue has no effect"):
        drawn(feed(image_set(), augmentation=AugmentConfig(hue=5.0)))
