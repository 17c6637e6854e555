"""Phantom CT studies from a seed: something to learn from where no patient's images are at hand.

    python -m medtl_train.phantoms demo --organ lung --patients 120 --images 6

Chest and abdomen share one family of lesions, so that what a network learns in one organ is worth
something in the other. Vessels in cross-section are in every image, so that brightness alone does
not give a lesion away. Scanner, header, anatomy and noise are drawn without looking at the label,
so that there is no shortcut. How hard the task is stands in `ORGANS`, who scans it in `SCANNERS`.
"""

from medtl_train.phantoms.anatomy import Anatomy, draw_anatomy
from medtl_train.phantoms.dicom import to_dataset, write_studies
from medtl_train.phantoms.lesions import Lesion, draw_lesions
from medtl_train.phantoms.organs import ORGANS, Organ
from medtl_train.phantoms.rendering import render, render_image
from medtl_train.phantoms.scanners import SCANNERS, Scanner
from medtl_train.phantoms.studies import LABELS, Study, plan_studies

__all__ = [
    "LABELS",
    "ORGANS",
    "SCANNERS",
    "Anatomy",
    "Lesion",
    "Organ",
    "Scanner",
    "Study",
    "draw_anatomy",
    "draw_lesions",
    "plan_studies",
    "render",
    "render_image",
    "to_dataset",
    "write_studies",
]
