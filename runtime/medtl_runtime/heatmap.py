"""Class activation maps as pictures (Zhou et al., CVPR 2016)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from medtl_runtime.files import written_whole
from medtl_runtime.recipe import FULL_SCALE
from medtl_runtime.results import Result

_LEAST_SIDE = 384
_STRENGTH = 0.6


def evidence(cam: NDArray[np.floating], chosen: int) -> NDArray[np.float64]:
    """Return where the image speaks for class ``chosen`` rather than for the others.

    Parameters
    ----------
    cam
        K x h x w; the mean over a map is the class's logit.
    chosen
        Index of the class.

    Returns
    -------
    h x w, in logits: the class's map less the mean of the others, so that for two classes its
    mean over the image is the log odds.
    """
    maps = np.asarray(cam, np.float64)
    return maps[chosen] - np.delete(maps, chosen, axis=0).mean(axis=0)


def overlay(pixels: NDArray[np.uint16], heat: NDArray[np.floating]) -> Image.Image:
    """Return the canonical image (C x H x W, uint16) with positive ``heat`` (h x w) in colour.

    Zero stays grey, the map's maximum is yellow; negative evidence is not shown.
    """
    grey = np.moveaxis(pixels, 0, -1).astype(np.float32) / FULL_SCALE
    height, width = grey.shape[:2]
    up = max(1, -(-_LEAST_SIDE // max(height, width)))
    size = (width * up, height * up)
    rgb = np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey
    picture = Image.fromarray(np.rint(rgb * 255).astype(np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    share = np.clip(heat, 0, None) / max(float(np.max(heat)), 1e-9)
    smooth = Image.fromarray(share.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    alpha = np.clip(np.asarray(smooth), 0, 1)[..., None] * _STRENGTH
    colour = np.concatenate(
        [np.full_like(alpha, 255), 255 * alpha / _STRENGTH, np.zeros_like(alpha)], axis=2
    )
    blended = np.asarray(picture, np.float32) * (1 - alpha) + colour * alpha
    return Image.fromarray(np.rint(blended).astype(np.uint8))


def shown_class(result: Result) -> str:
    """Return the class whose evidence is drawn: the finding, else the most probable one."""
    return result.finding or max(result.probabilities, key=result.probabilities.__getitem__)


def write_heatmap(result: Result, path: Path) -> Path:
    """Write the overlay of a result as PNG to ``path`` and return it.

    The PNG carries the model's name and digest, the class and the map's maximum as text.
    """
    shown = shown_class(result)
    heat = evidence(result.cam, list(result.probabilities).index(shown))
    text = PngImagePlugin.PngInfo()
    text.add_text("medtl:class", shown)
    text.add_text("medtl:model", f"{result.model['name']} {result.model['digest']}")
    text.add_text("medtl:maximum", f"{float(heat.max()):.4g} logits")
    with written_whole(path) as part:
        overlay(result.canonical.pixels, heat).save(part, format="PNG", pnginfo=text)
    return path
