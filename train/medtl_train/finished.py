"""A finished run, read again: what it says of itself, and the images it was trained on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtl_runtime.errors import UsageError
from medtl_runtime.files import write_text
from medtl_train.checkpoint import About
from medtl_train.config import TrainConfig
from medtl_train.data.dataset import Dataset, fingerprint_of
from medtl_train.data.images import Excluded, Image, targets_array
from medtl_train.data.listing import read_again
from medtl_train.data.samples import SPLITS
from medtl_train.errors import DataUnfit, ImagesMissing
from medtl_train.options import config_from

_SUMMARY = "metrics.json"
_FIELDS = {"name", "data", "config", "heads", "validation", "test", "external"}
_DATA_FIELDS = {"path", "excluded", "patients_known", "headers"}


def is_finished(run: Path) -> bool:
    """Whether a run has been trained and evaluated to the end."""
    return (run / _SUMMARY).is_file()


def write_summary(run: Path, summary: Mapping[str, Any]) -> None:
    """Write ``metrics.json``.

    Raises
    ------
    OutputNotWritten
        The disk is full or the place not writable.
    """
    write_text(run / _SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def read_summary(run: Path) -> dict[str, Any]:
    """Return what ``metrics.json`` holds.

    Raises
    ------
    UsageError
        There is none, because the training is not finished; or it is damaged, or of another
        version.
    """
    path = run / _SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        whole = _FIELDS.issubset(summary) and _DATA_FIELDS.issubset(summary["data"])
    except FileNotFoundError as cause:
        raise UsageError(f"{run} holds no metrics.json: its training is not finished") from cause
    except (OSError, ValueError, TypeError, LookupError) as cause:
        raise UsageError(f"{path} is damaged") from cause
    if not whole:
        raise UsageError(f"{run} is a run of another version of medtl; train it again")
    return summary


def read_config(run: Path, summary: dict[str, Any]) -> TrainConfig:
    """Return the configuration that a run was trained with, from its `read_summary`."""
    try:
        return config_from(summary["config"])
    except (TypeError, AttributeError) as cause:
        raise UsageError(f"{run / 'metrics.json'} is damaged: its config is none") from cause


def read_images(
    run: Path, split: str, about: About, *, at_most: int | None = None
) -> tuple[Image, ...]:
    """Return the images of a split as training saw them; see `read_again`.

    Raises
    ------
    ImagesMissing
        Some are gone, cannot be read any more, or hold other pixels than they did.
    UsageError
        ``splits.csv`` cannot be read, or an image has a label that is no class.
    """
    try:
        images, missing = read_again(run / "splits.csv", split, about.recipe, at_most=at_most)
    except (OSError, LookupError, TypeError, ValueError) as cause:
        raise UsageError(f"{run / 'splits.csv'} cannot be read") from cause
    if missing:
        raise ImagesMissing(
            f"{len(missing)} {split} images of {run} are not what they were; "
            f"the first: {missing[0].source}: {missing[0].reason}"
        )
    try:
        targets_array(images, about.heads)
    except DataUnfit as cause:
        raise UsageError(f"{run / 'splits.csv'}: {cause}") from cause
    return tuple(images)


def read_dataset(run: Path, about: About, summary: dict[str, Any]) -> Dataset:
    """Return all that a run was trained, validated and tested on, in the same order.

    Raises
    ------
    ImagesMissing
        An image, label or split is not what it was: `Dataset.fingerprint` must be the checkpoint's.
    UsageError
        As `read_images` does.
    """
    images = {split: read_images(run, split, about) for split in SPLITS}
    # A frame less in a file, or a row less in the table, shows in nothing else.
    if fingerprint_of(image for some in images.values() for image in some) != about.fingerprint:
        raise ImagesMissing(
            f"the images, labels or splits of {run / 'splits.csv'} are not those it was trained on"
        )
    try:
        excluded = tuple(Excluded(**left) for left in summary["data"]["excluded"])
    except TypeError as cause:
        raise UsageError(f"{run / 'metrics.json'} is damaged") from cause
    return Dataset(
        heads=about.heads,
        recipe=about.recipe,
        images=images,
        excluded=excluded,
        fingerprint=about.fingerprint,
        patients_known=summary["data"]["patients_known"],
    )
