"""Augmentation of whole batches on the device, each image with its own parameters.

All geometric changes are composed into one affine map per image and resampled once; what is off
costs nothing. Nothing here waits for the device, so a GPU's queue never runs dry.
"""

import torch
from torch import Tensor

from medtl_train.augmentation.colour import recoloured
from medtl_train.augmentation.draws import Draws
from medtl_train.augmentation.movement import moved
from medtl_train.augmentation.values import blurred, erased, lit, noisy, shaded
from medtl_train.config.strengths import Strengths

_OFF = Strengths()


def augment(images_nchw: Tensor, strengths: Strengths, generator: torch.Generator) -> Tensor:
    """Return randomly changed images.

    Parameters
    ----------
    images_nchw
        Canonical images, float32 in [0, 1].
    strengths
        The largest changes.
    generator
        On the device of the images; the same state gives the same changes.

    Returns
    -------
    Images of the same shape in [0, 1].
    """
    if strengths == _OFF:
        return images_nchw
    draws = Draws(strengths, len(images_nchw), generator)
    images = blurred(moved(images_nchw, draws), draws)
    images = lit(shaded(recoloured(images, draws), draws), draws)
    return erased(noisy(images, draws), draws)
