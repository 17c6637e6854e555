"""Class activation maps as pictures (Zhou et al., CVPR 2016)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from medtl_runtime.answers import Answer, label_of
from medtl_runtime.files import written_whole
from medtl_runtime.heads import Head, columns_of, find_head
from medtl_runtime.recipe import FULL_SCALE
from medtl_runtime.results import Result

_LEAST_SIDE = 384
_STRENGTH = 0.6


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What a heat map shows."""

    label: str
    """What it speaks for, in short: the class; of several heads HEAD=CLASS."""
    words: str
    """The same, and rather than what."""
    heat: NDArray[np.float64]
    """h x w, in logits."""


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


def evidence_of(head: Head, cam: NDArray[np.floating], chosen: int) -> NDArray[np.float64]:
    """Return where the image speaks for an answer of a head, h x w, in logits.

    Parameters
    ----------
    cam
        The head's maps, ``columns`` x h x w.
    chosen
        Index of the class; of a regression 1 for a value above its mean, 0 for one below.

    Returns
    -------
    For classes as `evidence`. For a grade, what speaks for reaching it from the one below; for the
    lowest, what speaks against leaving it. Of a regression, what moves the value away from the
    mean of the training values, upwards or downwards.
    """
    maps = np.asarray(cam, np.float64)
    if head.kind == "multiclass":
        return evidence(maps, chosen)
    column = chosen - 1 if head.kind == "ordinal" and chosen else 0
    return maps[column] if chosen else -maps[column]


def shown_head(result: Result, name: str | None = None) -> Head:
    """Return the head whose evidence is drawn.

    By default the first that has something to show: a value, a grade, one of several classes, or
    the second class of a binary head, which is the one that it looks for; else the first.

    Raises
    ------
    UsageError
        There is no head ``name``.
    """
    if name is not None:
        return find_head(result.heads, name)
    told = (h for h in result.heads if _is_telling(h, result.answers[h.name]))
    return next(told, result.heads[0])


def _is_telling(head: Head, answer: Answer) -> bool:
    if head.kind == "binary":
        return answer.finding == head.classes[1]
    return not answer.is_abstained


def shown(result: Result, name: str | None = None) -> Evidence:
    """Return the evidence for what a head finds; where it abstains, for the most probable class.

    ``name`` is that of the head; see `shown_head`.
    """
    head = shown_head(result, name)
    answer = result.answers[head.name]
    columns = columns_of(result.heads)[result.heads.index(head)]
    chosen, label, rather = _chosen(result.heads, head, answer)
    heat = evidence_of(head, result.cam[columns], chosen)
    return Evidence(label=label, words=f"{label} {rather}", heat=heat)


def _chosen(heads: Sequence[Head], head: Head, answer: Answer) -> tuple[int, str, str]:
    """Return the index for `evidence_of`, what it is called, and rather than what."""
    if answer.value is not None:
        above = int(answer.value >= head.mean)
        side = "above" if above else "below"
        mean = f"{head.mean:.4g} {head.unit}".strip()
        return above, f"{head.name} {side} {mean}", "(the mean of the training values)"
    assert answer.probabilities is not None
    found = answer.finding or max(answer.probabilities, key=answer.probabilities.__getitem__)
    index = head.classes.index(found)
    others = "the other classes"
    if head.kind == "ordinal":
        others = "a lower one" if index else "a higher one"
    return index, label_of(heads, head, found), f"rather than {others}"


def write_heatmap(result: Result, path: Path, head: str | None = None) -> Path:
    """Write the overlay of a result as PNG to ``path`` and return it.

    The PNG carries the model's name and digest, what is shown and the map's maximum as text.
    ``head`` is whose evidence; see `shown_head`.
    """
    drawn = shown(result, head)
    text = PngImagePlugin.PngInfo()
    text.add_text("medtl:class", drawn.label)
    text.add_text("medtl:model", f"{result.model['name']} {result.model['digest']}")
    text.add_text("medtl:maximum", f"{float(drawn.heat.max()):.4g} logits")
    with written_whole(path) as part:
        overlay(result.canonical.pixels, drawn.heat).save(part, format="PNG", pnginfo=text)
    return path
