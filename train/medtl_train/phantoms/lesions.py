"""Lesions: one family of soft, lobulated blobs for every organ."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from medtl_train.phantoms.anatomy import Anatomy, draw_anatomy
from medtl_train.phantoms.drawing import Array, Canvas, Vary
from medtl_train.phantoms.organs import ORGANS
from medtl_train.phantoms.studies import Study


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A soft, lobulated blob, of the same family in every organ."""

    anchor: complex
    """Where it lies in the middle slice; in the others as near to it as the organ allows."""
    radius: float
    contrast_hu: float


def draw_lesions(study: Study) -> list[Lesion]:
    """Draw where a patient's lesions are, and how large; none for a healthy one."""
    if not study.lesion:
        return []
    organ, rng, coarse = ORGANS[study.organ], study.rng("lesion"), 64
    rows, columns = np.nonzero(draw_anatomy(study, 0.0, coarse).organ)
    places = (columns + 0.5 + 1j * (rows + 0.5)) / coarse - (0.5 + 0.5j)
    return [
        Lesion(
            anchor=complex(rng.choice(places)),
            radius=rng.uniform(*organ.lesion_radius),
            contrast_hu=rng.uniform(*organ.lesion_hu),
        )
        for _ in range(2 if rng.random() < organ.second_lesion else 1)
    ]


def with_lesion(hu: Array, anatomy: Anatomy, lesion: Lesion, vary: Vary) -> Array:
    """Return the slice with a lesion at the place nearest to its anchor that holds all of it."""
    canvas, edge, ripple = Canvas(len(hu)), 0.022, 0.24
    room = np.asarray(distance_transform_edt(anatomy.organ), np.float32) / canvas.size
    # A little smaller in the outer slices, and never larger than the organ has room for.
    radius = lesion.radius * (1 - 0.12 * vary.level**2)
    radius = min(radius, (0.95 * room.max() - edge) / (1 + ripple))
    away = np.hypot(canvas.x - lesion.anchor.real, canvas.y - lesion.anchor.imag)
    fits = room >= (1 + ripple) * radius + edge
    nearest = np.argmin(np.where(fits, away, np.inf))
    centre = complex(canvas.x.flat[nearest], canvas.y.flat[nearest])
    axes = radius, radius * vary(0.8, 1)
    outline = canvas.outline(centre, axes, vary.wobble(ripple, range(2, 13)), vary(0, np.pi))
    grain = np.clip(1 + 0.13 * vary.field(canvas.size, (8, 32)), 0.6, 1.4)
    core = 1 - vary(0, 0.25) * canvas.cover(outline + 0.6 * radius, 0.6 * radius)
    inside = anatomy.parenchyma_hu + lesion.contrast_hu * grain * core
    return hu + canvas.cover(outline, edge) * (inside - hu)
