"""A finished run, read again: its network, its figures and its images as training saw them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medtl_export.compare import Validation
from medtl_runtime.decision import Decision, HeadDecision, OperatingPoint
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head
from medtl_train.checkpoint import About, Checkpoint, load_run
from medtl_train.data.images import Image, ImageSet, image_set
from medtl_train.finished import read_images, read_summary
from medtl_train.fitting.predict import predict_logits

LEAST_CALIBRATION_IMAGES = 8
"""Fewer do not tell the range of activations."""

_REFERENCE_IMAGES = 2000
_REFERENCE_BYTES = 2**30


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A finished run that is exported."""

    folder: Path
    saved: Checkpoint
    summary: dict[str, Any]
    """What its ``metrics.json`` holds."""
    images: tuple[Image, ...]
    """Of the validation split."""
    val: ImageSet
    """The same as arrays."""

    @property
    def about(self) -> About:
        """What the network is and was trained on."""
        return self.saved.about

    @property
    def validation(self) -> Validation:
        """The validation images, with the temperatures and operating points of the run."""
        return Validation(
            heads=self.about.heads,
            targets=self.val.targets,
            patients=self.val.patients,
            decision=fitted_in(self.summary, self.about.heads),
        )

    def torch_logits(self) -> NDArray[np.float32]:
        """Return what torch says of the validation images, (N, K)."""
        return predict_logits(self.saved.restore(), self.val.pixels, torch.device("cpu"))


def fitted_in(summary: Mapping[str, Any], heads: Sequence[Head]) -> Decision:
    """Return the temperatures and operating points that a run's ``metrics.json`` holds."""
    rows = [summary["heads"][head.name] for head in heads]
    return Decision(
        heads=tuple(
            HeadDecision(
                temperature=row["temperature"],
                operating_point=OperatingPoint(**row["operating_point"]),
            )
            for row in rows
        )
    )


def read_source(run: Path, note: Callable[[str], None]) -> Source:
    """Read a run and its validation images.

    Raises
    ------
    CheckpointUnusable, UsageError, ImagesMissing
        As `medtl_train.checkpoint.load_run`, `medtl_train.finished.read_summary` and
        `medtl_train.finished.read_images` do; there are no validation images.
    """
    saved, summary = load_run(run), read_summary(run)
    note(f"{run}: {saved.about.arch}, reading validation images")
    images = read_images(run, "val", saved.about)
    if not images:
        raise UsageError(f"{run} has no val images in its splits.csv; accuracy cannot be shown")
    val = image_set(images, saved.about.heads)
    return Source(folder=run, saved=saved, summary=summary, images=images, val=val)


def read_set(run: Path, split: str, about: About, at_most: int | None = None) -> ImageSet:
    """Return the images of a split as arrays; see `medtl_train.finished.read_images`."""
    return image_set(read_images(run, split, about, at_most=at_most), about.heads)


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
