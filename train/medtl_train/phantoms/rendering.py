"""Images in HU: anatomy, with or without lesions, as a scanner shows it."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from medtl_train.phantoms.anatomy import draw_anatomy
from medtl_train.phantoms.drawing import Array, Vary
from medtl_train.phantoms.lesions import Lesion, draw_lesions, with_lesion
from medtl_train.phantoms.organs import ORGANS
from medtl_train.phantoms.studies import Study


def render(organ: str, lesion: bool, rng: np.random.Generator, size: int = 128) -> Array:
    """Render one slice of a new patient, without DICOM.

    The same generator state gives the same patient, scanner and noise with and without a lesion.

    Returns
    -------
    ndarray
        [size, size] float32, in HU. Look at it with ``ORGANS[organ].window``.
    """
    seed, patient, image = (int(draw) for draw in rng.integers((2**32, 2**32, 7)))
    study = Study(organ=organ, lesion=lesion, seed=seed, patient=patient, images=7, size=size)
    return render_image(study, draw_lesions(study), image)


def render_image(study: Study, lesions: Sequence[Lesion], image: int) -> Array:
    """Render one image of a study, counted from 0: [size, size] float32, in HU."""
    level = study.level(image)
    anatomy = draw_anatomy(study, level, study.size)
    hu, outlines = anatomy.hu, Vary(study.rng("outlines"), level)
    for lesion in lesions:
        hu = with_lesion(hu, anatomy, lesion, outlines)
    return _scan(hu, study, study.rng(f"image {image} of {study.images}"))


def _scan(hu: Array, study: Study, rng: np.random.Generator) -> Array:
    """Return what the scanner makes of a slice: blurred, drifting a little, noisy."""
    scanner = study.scanner
    drift = rng.normal(0, 2) + 2.5 * Vary(rng, 0.0).field(len(hu), (1, 2))
    grain = gaussian_filter(rng.standard_normal(hu.shape, np.float32), scanner.noise_grain_px)
    noise = grain - 0.6 * gaussian_filter(grain, 2.0)  # a reconstruction keeps few low frequencies
    level = study.rng("noise").uniform(*ORGANS[study.organ].noise_hu) * scanner.noise_gain
    blurred = gaussian_filter(hu, scanner.blur_px)
    return (blurred + (hu > -900) * drift + level / noise.std() * noise).astype(np.float32)
