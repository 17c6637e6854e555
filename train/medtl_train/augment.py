"""Augmentation of whole batches on the device, each image with its own parameters.

All geometric changes are composed into one affine map per image and resampled once.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from medtl_train.config import AugmentConfig


def augment(images_nchw: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return randomly changed images.

    Parameters
    ----------
    images_nchw
        Canonical images, float32 in [0, 1].
    config
        The largest changes.
    generator
        On the device of the images; the same state gives the same changes.

    Returns
    -------
    Images of the same shape in [0, 1]; what is moved in from outside is black.
    """
    if not config.augment:
        return images_nchw
    changed = _resample(images_nchw, config, generator)
    changed = _blur(changed, config.blur, generator)
    return _change_values(changed, config, generator)


class _Draws:
    """Draws one number for each of N images."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator

    def uniform(self, low: float, high: float) -> Tensor:
        drawn = torch.rand(self.count, generator=self.generator, device=self.generator.device)
        return low + (high - low) * drawn

    def symmetric(self, largest: float) -> Tensor:
        return self.uniform(-largest, largest)

    def factor(self, largest: float) -> Tensor:
        """Between 1 / (1 + largest) and 1 + largest, as likely above 1 as below."""
        return torch.exp(self.symmetric(math.log1p(largest)))

    def sign(self, enabled: bool) -> Tensor:
        drawn = self.uniform(-1, 1).sign()
        return torch.where(drawn == 0, 1.0, drawn) if enabled else drawn.abs().clamp(min=1)


def _resample(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    theta = _affine_maps(count, height / width, config, generator)
    identity = torch.eye(2, 3, device=theta.device).expand_as(theta)
    if torch.equal(theta, identity):
        return images
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _affine_maps(
    count: int, aspect: float, config: AugmentConfig, generator: torch.Generator
) -> Tensor:
    """Return N x 2 x 3 maps from output to input coordinates, both from -1 to 1."""
    draw = _Draws(count, generator)
    angle = torch.deg2rad(draw.symmetric(config.rotation))
    shear = torch.tan(torch.deg2rad(draw.symmetric(config.shear)))
    zoom = draw.factor(config.scale)
    kept = 1 - draw.uniform(0, config.crop)
    flip_x, flip_y = draw.sign(config.hflip), draw.sign(config.vflip)
    # A crop's corner lies anywhere that keeps it inside; 2 * shift because the side is 2 long.
    shift_x = draw.symmetric(2 * config.shift) + draw.symmetric(1.0) * (1 - kept)
    shift_y = draw.symmetric(2 * config.shift) + draw.symmetric(1.0) * (1 - kept)
    cos, sin, scale = torch.cos(angle), torch.sin(angle), kept / zoom
    # Rotation and shear in pixels, with x in units of half the width and y of half the height.
    xx, xy = cos * scale, (shear * cos - sin) * scale * aspect
    yx, yy = sin * scale / aspect, (shear * sin + cos) * scale
    rows = [
        torch.stack([xx * flip_x, xy * flip_y, shift_x], dim=1),
        torch.stack([yx * flip_x, yy * flip_y, shift_y], dim=1),
    ]
    return torch.stack(rows, dim=1)


def _blur(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Blur each image with its own Gaussian, as two depthwise convolutions for the whole batch."""
    if largest == 0:
        return images
    count, channels, height, width = images.shape
    sigma = _Draws(count, generator).uniform(0, largest).clamp(min=1e-3)
    radius = math.ceil(3 * largest)
    offset = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    flat = images.reshape(1, count * channels, height, width)
    groups = count * channels
    padded = F.pad(flat, (radius, radius, radius, radius), mode="replicate")
    blurred = F.conv2d(padded, kernel[:, :, None, :], groups=groups)
    return F.conv2d(blurred, kernel[:, :, :, None], groups=groups).reshape(images.shape)


def _change_values(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    draw = _Draws(len(images), generator)

    def each(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    contrast, gamma = each(draw.factor(config.contrast)), each(draw.factor(config.gamma))
    brightness = each(draw.symmetric(config.brightness))
    if config.contrast or config.brightness:
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * contrast + mean + brightness
    images = images.clamp(0, 1)
    if config.gamma:
        images = images.pow(gamma)
    if config.noise:
        deviation = each(draw.uniform(0, config.noise))
        drawn = torch.randn(images.shape, generator=generator, device=images.device)
        images = (images + deviation * drawn).clamp(0, 1)
    return images
