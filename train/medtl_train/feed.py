"""Brings training images to the device, batch by batch, augmented."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl_runtime.recipe import as_batch
from medtl_train.augment import augment
from medtl_train.config import AugmentConfig
from medtl_train.dataset import ImageSet


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What a step is taken on; all of it on the device."""

    images: Tensor
    """N x C x H x W, float32 in [0, 1], augmented."""
    targets: Tensor
    """N x heads, float32; NaN where it is not known. See `ImageSet.targets`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Feed:
    """Training images in random order."""

    images: ImageSet
    batch_size: int
    augmentation: AugmentConfig
    device: torch.device

    @property
    def batches(self) -> int:
        """How many there are in an epoch."""
        return batches_an_epoch(len(self.images), self.batch_size)

    def epoch(self, *, order: int, changes: int) -> Iterator[Batch]:
        """Yield every image once.

        Parameters
        ----------
        order, changes
            Seeds of the order and of the augmentation; the same seeds give the same batches.
        """
        generator = torch.Generator(self.device).manual_seed(changes)
        for indices in self._in_order(order):
            pixels = torch.from_numpy(as_batch(self.images.pixels[indices])).to(self.device)
            targets = torch.from_numpy(self.images.targets[indices]).float().to(self.device)
            yield Batch(images=augment(pixels, self.augmentation, generator), targets=targets)

    def _in_order(self, seed: int) -> Iterator[NDArray[np.intp]]:
        """Yield all indices in random order, in batches of nearly equal size near the one asked.

        Equal sizes, because BatchNorm has no statistics of a last batch of one image.
        """
        order = np.random.default_rng(seed).permutation(len(self.images))
        yield from np.array_split(order, self.batches)


def batches_an_epoch(images: int, batch_size: int) -> int:
    """Return how many batches of about ``batch_size``, at least 2, hold so many images."""
    return max(1, min(round(images / batch_size), images // 2))
