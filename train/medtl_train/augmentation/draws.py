"""The random numbers of augmentation: one for each image and change, drawn for a whole batch."""

import math

import torch
from torch import Tensor

from medtl_train.config.strengths import Strengths

Largest = float | Tensor
"""One for all images, or one for each, shape (N,)."""


class Draws:
    """Draws for N images from one generator, and says how strong each image's changes may be."""

    def __init__(self, strengths: Strengths, count: int, generator: torch.Generator) -> None:
        self.strengths, self.count, self.generator = strengths, count, generator
        self._drawn = self._lots() if strengths.one_of else None

    def _lots(self) -> Tensor:
        """Return which change of the lottery each image gets; the last number is for none."""
        highest = len(self.strengths.lottery) + 1
        shape, device = (self.count,), self.generator.device
        return torch.randint(highest, shape, generator=self.generator, device=device)

    def unit(self, rows: int) -> Tensor:
        """Return numbers from 0 to 1, rows x N, in one call: each call is a launch on a GPU."""
        shape, device = (rows, self.count), self.generator.device
        return torch.rand(shape, generator=self.generator, device=device)

    def normal(self, shape: torch.Size) -> Tensor:
        """Return normal numbers of mean 0 and standard deviation 1."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def largest(self, name: str) -> Largest:
        """Return the largest change of a kind: 0 for the images that drew another one."""
        return self._of_drawn(name, getattr(self.strengths, name))

    def largest_log(self, name: str) -> Largest:
        """Return the largest logarithm of a factor whose strength is its excess over 1."""
        return self._of_drawn(name, math.log1p(getattr(self.strengths, name)))

    def _of_drawn(self, name: str, largest: float) -> Largest:
        if self._drawn is None or name not in self.strengths.lottery:
            return largest
        return largest * (self._drawn == self.strengths.lottery.index(name))


def symmetric(unit: Tensor, largest: Largest) -> Tensor:
    """Map 0 to 1 onto -largest to largest."""
    return -largest + 2 * largest * unit


def factor(unit: Tensor, largest_log: Largest) -> Tensor:
    """Map 0 to 1 onto factors around 1, as likely above 1 as below."""
    return torch.exp(symmetric(unit, largest_log))


def sign(unit: Tensor) -> Tensor:
    """Map 0 to 1 onto -1 and 1, half and half."""
    return torch.where(unit < 0.5, -1.0, 1.0)


def each(values: Tensor) -> Tensor:
    """Return one value an image, shape (N,), so that it meets images of N x C x H x W."""
    return values[:, None, None, None]
