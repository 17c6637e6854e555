"""Random movements of whole batches: one affine map an image, and one resampling for all."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medtl_train.augmentation.draws import Draws, factor, sign, symmetric


def moved(images_nchw: Tensor, draws: Draws) -> Tensor:
    """Return images turned, sheared, zoomed, cropped, mirrored and shifted, each in its own way.

    All of it is composed into one affine map and resampled once, bilinearly. What comes in from
    outside is black, or the mirrored image with ``mirror_outside``.
    """
    if not draws.strengths.moves:
        return images_nchw
    _, _, height, width = images_nchw.shape
    theta = affine_maps(height / width, draws)
    grid = F.affine_grid(theta, list(images_nchw.shape), align_corners=False)
    outside = "reflection" if draws.strengths.mirror_outside else "zeros"
    return F.grid_sample(
        images_nchw, grid, mode="bilinear", padding_mode=outside, align_corners=False
    )


def affine_maps(aspect: float, draws: Draws) -> Tensor:
    """Return N x 2 x 3 maps from output to input coordinates, both from -1 to 1.

    Parameters
    ----------
    aspect
        Height / width.
    """
    strengths = draws.strengths
    rotation, shear, scale, crop, mirror_x, mirror_y, *shifts = draws.unit(10)
    angle = torch.deg2rad(symmetric(rotation, draws.largest("rotation")))
    if strengths.quarter_turns:
        angle = angle + torch.pi / 2 * torch.floor(4 * draws.unit(1)[0])
    slant = torch.tan(torch.deg2rad(symmetric(shear, draws.largest("shear"))))
    kept = 1 - draws.largest("crop") * crop
    zoom = kept / factor(scale, draws.largest_log("scale"))
    # A crop's corner lies anywhere that keeps it inside; 2 * shift because the side is 2 long.
    largest, spare = 2 * draws.largest("shift"), 1 - kept
    shift_x = symmetric(shifts[0], largest) + symmetric(shifts[1], 1.0) * spare
    shift_y = symmetric(shifts[2], largest) + symmetric(shifts[3], 1.0) * spare
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Rotation and shear in pixels, with x in units of half the width and y of half the height.
    xx, xy = cos * zoom, (slant * cos - sin) * zoom * aspect
    yx, yy = sin * zoom / aspect, (slant * sin + cos) * zoom
    if strengths.hflip:
        xx, yx = xx * sign(mirror_x), yx * sign(mirror_x)
    if strengths.vflip:
        xy, yy = xy * sign(mirror_y), yy * sign(mirror_y)
    rows = [torch.stack([xx, xy, shift_x], dim=1), torch.stack([yx, yy, shift_y], dim=1)]
    return torch.stack(rows, dim=1)
