"""Brings training images to the device, batch by batch, augmented."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl_runtime.errors import UsageError
from medtl_train.augmentation.augment import augment
from medtl_train.config import AugmentConfig, SpeedConfig
from medtl_train.config.strengths import Strengths
from medtl_train.data.images import ImageSet
from medtl_train.fitting.distributed import ALONE, World
from medtl_train.fitting.staging import Rows, Staged, stage


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What a step is taken on, or a part of it; all of it on the device."""

    images: Tensor
    """N x C x H x W, float32 in [0, 1], augmented."""
    targets: Tensor
    """N x heads, float32; NaN where it is not known. See `ImageSet.targets`."""
    fraction: float = 1.0
    """This part's share of the step's images, times the number of processes.

    Gradients are summed over parts and averaged over processes, so that what is a mean over the
    images of each part, times this, is the mean over all images of the step.
    """
    known: Tensor | None = None
    """The same for each head, shape (heads,), counting the images whose target is known; None where
    all of the step is here."""

    def parts(self, count: int) -> list["Batch"]:
        """Return it in parts of nearly equal sizes, for gradient accumulation."""
        if count == 1:
            return [self]
        known = (~torch.isnan(self.targets)).float()
        whole = known.sum(0).clamp(min=1)
        before = torch.ones_like(whole) if self.known is None else self.known
        sizes = [len(rows) for rows in np.array_split(np.arange(len(self.images)), count)]
        cut = (tensor.split(sizes) for tensor in (self.images, self.targets, known))
        return [
            replace(
                self,
                images=images,
                targets=targets,
                fraction=self.fraction * len(images) / len(self.images),
                known=before * counted.sum(0) / whole,
            )
            for images, targets, counted in zip(*cut, strict=True)
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Feed:
    """Training images in random order; it is made once for a fit, since it may fill a GPU."""

    images: ImageSet
    batch_size: int
    """Of all processes together."""
    augmentation: AugmentConfig
    device: torch.device
    sampling: NDArray[np.float64] | None = None
    """How often each image is drawn, relative to the others, shape (N,): an epoch is then N draws
    with replacement. None: every image once."""
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    world: World = ALONE

    @property
    def batches(self) -> int:
        """How many there are in an epoch."""
        return batches_an_epoch(len(self.images), self.batch_size)

    def epoch(self, *, order: int, changes: int) -> Iterator[Batch]:
        """Yield this process's part of every batch.

        Parameters
        ----------
        order, changes
            Seeds of the order and of the augmentation; the same seeds give the same batches. The
            order does not depend on the number of processes; the augmentation does.

        Raises
        ------
        UsageError
            A process would get fewer than 2 images a step, of which BatchNorm has no statistics.
        """
        generator = torch.Generator(self.device).manual_seed(changes + self.world.rank)
        steps = self._in_order(order)
        parts = [self.world.share(rows) for rows in steps]
        self._require_two(steps)
        arriving = zip(
            self._staged.batches(parts),
            self._targets(parts),
            self._known(steps, parts),
            steps,
            strict=True,
        )
        for images, targets, known, whole in arriving:
            yield Batch(
                images=augment(images, self._strengths, generator),
                targets=targets,
                fraction=self.world.size * len(targets) / len(whole),
                known=known,
            )

    @property
    def place(self) -> str:
        """Where the images are."""
        return self._staged.place

    @cached_property
    def _staged(self) -> Staged:
        largest = -(-len(self.images) // (self.batches * self.world.size))
        share = self.speed.device_share
        return stage(self.images.pixels, self.device, largest=largest, share=share)

    @cached_property
    def _strengths(self) -> Strengths:
        return self.augmentation.strengths_for(self.images.pixels.shape[1])

    def _in_order(self, seed: int) -> list[Rows]:
        """Return all indices in random order, in batches of nearly equal size near the one asked.

        Equal sizes, because BatchNorm has no statistics of a last batch of one image.
        """
        random, count = np.random.default_rng(seed), len(self.images)
        if self.sampling is None:
            order = random.permutation(count)
        else:
            order = random.choice(count, size=count, p=self.sampling / self.sampling.sum())
        return np.array_split(order, self.batches)

    def _require_two(self, steps: list[Rows]) -> None:
        least = min(map(len, steps)) // self.world.size
        if self.world.size > 1 and least < 2:
            size = self.world.size
            raise UsageError(
                f"--batch-size {self.batch_size} leaves a process of {size} with {least} images a "
                f"step; expected {2 * size} or more, or fewer processes"
            )

    def _targets(self, parts: list[Rows]) -> tuple[Tensor, ...]:
        """Return each part's targets on the device, where they go in one copy."""
        targets = torch.from_numpy(self.images.targets[np.concatenate(parts)]).float()
        return targets.to(self.device).split([len(part) for part in parts])

    def _known(self, steps: list[Rows], parts: list[Rows]) -> list[Tensor] | list[None]:
        """Return what `Batch.known` is to be, for each step."""
        if self.world.size == 1:
            return [None] * len(steps)
        known = ~np.isnan(self.images.targets)
        shares = [
            self.world.size * known[part].sum(0) / known[whole].sum(0).clip(min=1)
            for whole, part in zip(steps, parts, strict=True)
        ]
        return list(torch.from_numpy(np.array(shares)).float().to(self.device))


def batches_an_epoch(images: int, batch_size: int) -> int:
    """Return how many batches of about ``batch_size``, at least 2, hold so many images."""
    return max(1, min(round(images / batch_size), images // 2))
