"""Mixup and CutMix: a batch's images mixed with each other, and what the mixtures show.

The loss of a mixture is the mean of its two parts' losses by their shares. For cross-entropies that
is the loss of the mixed label, and for squared errors it has the gradient of the mixed value, so
every kind of head and unknown targets go the same way.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl_train.config import RegularisationConfig
from medtl_train.fitting.feed import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What a part of each image shows."""

    targets_nh: Tensor
    """N x heads; see `Batch.targets`."""
    shares_n: Tensor
    """How much of the image it is, (N,), 0 to 1."""


def unmixed(targets_nh: Tensor) -> tuple[Part]:
    """Return the only part of images that are as they were."""
    return (Part(targets_nh=targets_nh, shares_n=targets_nh.new_ones(len(targets_nh))),)


def mix(
    batch: Batch, config: RegularisationConfig, rng: np.random.Generator
) -> tuple[Tensor, tuple[Part, ...]]:
    """Return mixed images, N x C x H x W, and their parts.

    Each image is mixed with another one of the batch by a share of its own. With both options set,
    a batch is mixed by one of them, by chance.
    """
    if not (config.mixup or config.cutmix):
        return batch.images, unmixed(batch.targets)
    cuts = bool(config.cutmix) and (not config.mixup or rng.random() < 0.5)
    concentration = config.cutmix if cuts else config.mixup
    shares = rng.beta(concentration, concentration, len(batch.images))
    order = torch.from_numpy(rng.permutation(len(batch.images))).to(batch.images.device)
    others = batch.images[order]
    if cuts:
        height, width = batch.images.shape[-2:]
        boxes = _boxes(1 - shares, height, width, rng)
        inside = torch.from_numpy(boxes).to(batch.images.device)[:, None]
        images = torch.where(inside, others, batch.images)
        shares = 1 - boxes.mean((1, 2))  # of what is left of a box within the image
        kept = torch.from_numpy(shares).to(batch.targets)
    else:
        kept = torch.from_numpy(shares).to(batch.targets)
        images = torch.lerp(others, batch.images, kept[:, None, None, None])
    return images, (
        Part(targets_nh=batch.targets, shares_n=kept),
        Part(targets_nh=batch.targets[order], shares_n=1 - kept),
    )


def _boxes(
    areas: NDArray[np.floating], height: int, width: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return for each image the pixels of a box, N x H x W, with its centre anywhere.

    Parameters
    ----------
    areas
        Of the boxes as shares of the image, (N,); a box has the image's proportions, and what is
        beyond its border is cut off.
    """
    sides = np.sqrt(areas)
    rows = _within(rng.uniform(0, height, len(areas)), sides * height, height)
    columns = _within(rng.uniform(0, width, len(areas)), sides * width, width)
    return rows[:, :, None] & columns[:, None, :]


def _within(
    centres: NDArray[np.floating], lengths: NDArray[np.floating], size: int
) -> NDArray[np.bool_]:
    """Return which of ``size`` pixels are in each interval, N x size."""
    middles = np.arange(size) + 0.5
    return np.abs(middles - centres[:, None]) < lengths[:, None] / 2
