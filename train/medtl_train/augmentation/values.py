"""Random changes of pixel values, for whole batches: light, shading, blur, noise, erasing."""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medtl_train.augmentation.draws import Draws, each, factor, symmetric

_BIAS_ORDER = 3
_ERASED = (0.02, 0.2)
_SLIMMEST = 0.3


def blurred(images_nchw: Tensor, draws: Draws) -> Tensor:
    """Blur each image with its own Gaussian, as two depthwise convolutions for the whole batch."""
    limit = draws.strengths.blur
    if not limit:
        return images_nchw
    count, channels, height, width = images_nchw.shape
    sigma = (draws.largest("blur") * draws.unit(1)[0]).clamp(min=1e-3)
    radius = math.ceil(3 * limit)
    offset = torch.arange(-radius, radius + 1, device=images_nchw.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    groups = count * channels
    flat = images_nchw.reshape(1, groups, height, width)
    padded = F.pad(flat, (radius, radius, radius, radius), mode="replicate")
    softened = F.conv2d(padded, kernel[:, :, None, :], groups=groups)
    softened = F.conv2d(softened, kernel[:, :, :, None], groups=groups)
    return softened.reshape(images_nchw.shape)


def shaded(images_nchw: Tensor, draws: Draws) -> Tensor:
    """Multiply each MR image with a smooth field, as coils of uneven sensitivity do.

    The field's logarithm is a polynomial of rows and columns of order 3 (Van Leemput et al., IEEE
    TMI 1999) whose largest absolute value in the image is drawn from 0 to log(1 + bias_field).
    """
    if not draws.strengths.bias_field:
        return images_nchw
    height, width = images_nchw.shape[2:]
    terms = _BIAS_ORDER + 1
    drawn = draws.unit(terms * terms + 1)
    coefficients = (2 * drawn[1:] - 1).T.reshape(-1, terms, terms)
    device = str(images_nchw.device)
    rows, columns = _polynomials(height, device), _polynomials(width, device)
    field = rows @ coefficients @ columns.T
    amplitude = draws.largest_log("bias_field") * drawn[0]
    field = field * (amplitude / field.abs().amax((1, 2)))[:, None, None]
    return images_nchw * torch.exp(field)[:, None]


@lru_cache(maxsize=8)
def _polynomials(side: int, device: str) -> Tensor:
    """Return Legendre polynomials along a side without the constant term's company, side x 4."""
    values = np.polynomial.legendre.legvander(np.linspace(-1, 1, side), _BIAS_ORDER)
    return torch.from_numpy(values).float().to(device)


def lit(images_nchw: Tensor, draws: Draws) -> Tensor:
    """Change contrast about each image's mean, brightness and gamma; return values in [0, 1]."""
    strengths = draws.strengths
    if not (strengths.contrast or strengths.brightness or strengths.gamma):
        return images_nchw.clamp(0, 1)
    drawn = draws.unit(3)
    images = images_nchw
    if strengths.contrast or strengths.brightness:
        contrast = each(factor(drawn[0], draws.largest_log("contrast")))
        brightness = each(symmetric(drawn[2], draws.largest("brightness")))
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * contrast + mean + brightness
    images = images.clamp(0, 1)
    if strengths.gamma:
        images = images.pow(each(factor(drawn[1], draws.largest_log("gamma"))))
    return images


def noisy(images_nchw: Tensor, draws: Draws) -> Tensor:
    """Add Gaussian noise and multiply with speckle (x + x n), from one field of normal numbers.

    The sum of both is normal for each pixel, with the variance that is the sum of theirs.
    """
    strengths = draws.strengths
    if not (strengths.noise or strengths.speckle):
        return images_nchw
    deviation: Tensor
    if strengths.noise:
        deviation = each(draws.largest("noise") * draws.unit(1)[0])
    else:
        deviation = torch.zeros((), device=images_nchw.device)
    if strengths.speckle:
        speckle = each(draws.largest("speckle") * draws.unit(1)[0]) * images_nchw
        deviation = torch.hypot(deviation, speckle)
    return (images_nchw + deviation * draws.normal(images_nchw.shape)).clamp(0, 1)


def erased(images_nchw: Tensor, draws: Draws) -> Tensor:
    """Fill a rectangle of some images with the image's mean (Zhong et al., AAAI 2020).

    It takes 2 to 20 % of the image, with sides in a ratio of 0.3 to 1 / 0.3, and lies within it.
    """
    if not draws.strengths.erasing:
        return images_nchw
    height, width = images_nchw.shape[2:]
    occurs, area, ratio, row, column = draws.unit(5)
    area = (_ERASED[0] + (_ERASED[1] - _ERASED[0]) * area) * height * width
    ratio = factor(ratio, -math.log(_SLIMMEST))
    tall, wide = (area * ratio).sqrt().clamp(max=height), (area / ratio).sqrt().clamp(max=width)
    inside_rows = _inside(height, row * (height - tall), tall)
    inside_columns = _inside(width, column * (width - wide), wide)
    chosen = (occurs < draws.strengths.erasing)[:, None] & inside_rows
    mask = (chosen[:, :, None] & inside_columns[:, None, :])[:, None]
    return torch.where(mask, images_nchw.mean((1, 2, 3), keepdim=True), images_nchw)


def _inside(side: int, start: Tensor, length: Tensor) -> Tensor:
    """Return which positions along a side lie in each image's stretch, N x side."""
    centres = torch.arange(side, device=start.device) + 0.5
    return (centres >= start[:, None]) & (centres < (start + length)[:, None])
