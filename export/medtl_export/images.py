"""The images of a run, read again as training saw them."""

from pathlib import Path

from medtl_runtime.errors import UsageError
from medtl_train.checkpoint import About
from medtl_train.dataset import ImageSet, image_set
from medtl_train.finished import read_images

LEAST_CALIBRATION_IMAGES = 8
"""Fewer do not tell the range of activations."""

_REFERENCE_IMAGES = 2000
_REFERENCE_BYTES = 2**30


def read_set(run: Path, split: str, about: About, at_most: int | None = None) -> ImageSet:
    """Return the images of a split as arrays; see `medtl_train.finished.read_images`."""
    return image_set(read_images(run, split, about, at_most=at_most), about.classes)


def training_images(run: Path, about: About, *, calibration: int, novelty: bool) -> ImageSet | None:
    """Return as many training images as calibration and the novelty check use; None for none.

    Parameters
    ----------
    calibration
        Images to calibrate with; 0 for none.
    novelty
        Whether embeddings are needed, too.

    Raises
    ------
    UsageError, ImagesMissing
        As `medtl_train.finished.read_images` does; there are too few images to calibrate with.
    """
    if not (calibration or novelty):
        return None
    size = 2 * about.recipe.channels * about.recipe.size[0] * about.recipe.size[1]
    fitting = min(_REFERENCE_IMAGES, _REFERENCE_BYTES // size) if novelty else 0
    images = read_set(run, "train", about, max(calibration, fitting))
    if calibration and len(images) < LEAST_CALIBRATION_IMAGES:
        raise UsageError(
            f"{run} has {len(images)} training images; --quantize calibrates with at least "
            f"{LEAST_CALIBRATION_IMAGES}"
        )
    return images
