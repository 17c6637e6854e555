"""Random changes of colour, for whole batches; grey images stay as they are."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl_train.augmentation.draws import Draws, each, factor, symmetric

# Luma and two differences of colour (NTSC): hue is an angle between the two, saturation a length.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

# Optical densities in red, green and blue of haematoxylin, eosin and DAB, one a column (Ruifrok and
# Johnston, Analytical and Quantitative Cytology and Histology 2001).
_STAINS = np.array([[0.650, 0.072, 0.268], [0.704, 0.990, 0.570], [0.286, 0.105, 0.776]])
_DARKEST = 1 / 255
_GREY = 2 / 255


def recoloured(images_nchw: Tensor, draws: Draws) -> Tensor:
    """Change hue and saturation of colour images, then their stains; return values in [0, 1]."""
    strengths = draws.strengths
    if images_nchw.shape[1] != 3 or not strengths.recolours:
        return images_nchw
    images = images_nchw
    if strengths.hue or strengths.saturation:
        images = _mixed(_hue_maps(draws), images).clamp(0, 1)
    if strengths.stain:
        images = _restained(images, draws)
    return images


def _mixed(maps_n33: Tensor, images_nchw: Tensor) -> Tensor:
    """Apply a matrix an image to the colour of each of its pixels."""
    return (maps_n33 @ images_nchw.flatten(2)).unflatten(2, images_nchw.shape[2:])


def _hue_maps(draws: Draws) -> Tensor:
    """Return N x 3 x 3: to luma and chroma, turn and stretch the chroma, and back."""
    hue, saturation = draws.unit(2)
    angle = torch.deg2rad(symmetric(hue, draws.largest("hue")))
    length = factor(saturation, draws.largest_log("saturation"))
    cos, sin = length * torch.cos(angle), length * torch.sin(angle)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]]
    turned = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    there, back = _pair(_YIQ.tobytes(), str(hue.device))
    return back @ turned @ there


def _restained(images: Tensor, draws: Draws) -> Tensor:
    """Scale and shift what each stain absorbs (Tellez et al., IEEE TMI 2018).

    In optical density, -log of the value, stains add up. Of each, the amount is multiplied with
    1 - stain to 1 + stain, and -stain to stain is added.
    """
    largest = draws.largest("stain")
    drawn = draws.unit(6)
    scale, shift = 1 + symmetric(drawn[:3], largest).T, symmetric(drawn[3:], largest).T
    back, there = _pair(_STAINS.tobytes(), str(images.device))
    density = -torch.log(images.clamp(min=_DARKEST))
    density = (
        _mixed(back @ (scale[:, :, None] * there), density) + (shift @ back.T)[..., None, None]
    )
    coloured = (images.amax(1) - images.amin(1)).amax((1, 2)) > _GREY
    return torch.where(each(coloured), torch.exp(-density).clamp(0, 1), images)


@lru_cache(maxsize=8)
def _pair(matrix: bytes, device: str) -> tuple[Tensor, Tensor]:
    """Return a 3 x 3 matrix and its inverse on a device: copying them would stop a GPU's queue."""
    values: NDArray[np.float64] = np.frombuffer(matrix).reshape(3, 3)
    given, inverse = (torch.tensor(v).float().to(device) for v in (values, np.linalg.inv(values)))
    return given, inverse
