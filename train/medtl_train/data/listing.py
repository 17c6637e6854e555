"""``splits.csv``: every image of a run with its labels and split, and what was left out and why.

It has a row for each image. With one head its label is in ``label``; with several each has a column
``label:NAME``. A covariate is in ``covariate:NAME``.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from medtl_runtime.files import write_text
from medtl_runtime.recipe import Recipe
from medtl_train.data.dataset import Dataset, read_all
from medtl_train.data.images import Excluded, Image, left_out, spread
from medtl_train.data.samples import SPLITS, Sample

_CHANGED = "its pixels have changed since training"
_LABEL, _COVARIATE = "label", "covariate:"


def write_splits(path: Path, dataset: Dataset) -> None:
    """Write ``splits.csv``."""
    labels = [_LABEL]
    if len(dataset.heads) > 1:
        labels = [f"{_LABEL}:{head.name}" for head in dataset.heads]
    covariates = [f"{_COVARIATE}{name}" for name in dataset.covariates]
    columns = ["source", "frame", *labels, *covariates, "patient", "split", "digest", "reason"]
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    for image in (image for name in SPLITS for image in dataset.images[name]):
        writer.writerow(
            {
                "source": _absolute(image.sample.source),
                "frame": image.frame,
                **dict(zip(labels, image.sample.labels, strict=True)),
                **{f"{_COVARIATE}{name}": value for name, value in image.covariates.items()},
                "patient": image.patient,
                "split": image.split,
                "digest": image.digest,
            }
        )
    for left in dataset.excluded:
        row = {"source": _absolute(left.source), "reason": left.reason}
        writer.writerow(row | ({_LABEL: left.label} if len(labels) == 1 else {}))
    write_text(path, text.getvalue())


def _absolute(source: str) -> str:
    return str(Path(source).absolute())


def _samples_of(rows: Iterable[dict[str, str]]) -> Iterator[Sample]:
    seen = set()
    for row in rows:
        if row["source"] not in seen:
            seen.add(row["source"])
            yield Sample(
                source=row["source"],
                labels=_labels_of(row),
                patient=row["patient"],
                split=row["split"],
                covariates={
                    name.removeprefix(_COVARIATE): value
                    for name, value in row.items()
                    if name.startswith(_COVARIATE)
                },
            )


def _labels_of(row: dict[str, str]) -> tuple[str, ...]:
    if _LABEL in row:
        return (row[_LABEL],)
    return tuple(text for name, text in row.items() if name.startswith(f"{_LABEL}:"))


def _split_rows(path: Path, split: str) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def read_again(
    path: Path, split: str, recipe: Recipe, *, at_most: int | None = None
) -> tuple[list[Image], list[Excluded]]:
    """Read the images of a split as training saw them; return those that cannot be, too.

    They are read from their files and not from a cache, because this is how a proof begins.

    Parameters
    ----------
    path
        A ``splits.csv``.
    at_most
        Read the frames of so many files only: as many of each class as there are, up to an equal
        share, and always the same.

    Returns
    -------
    The images, and what is missing or holds other pixels than it did.
    """
    rows = _split_rows(path, split)
    digests = {(row["source"], int(row["frame"])): row["digest"] for row in rows}
    samples = list(_samples_of(rows))
    if at_most is not None:
        samples = [samples[i] for i in spread([sample.label for sample in samples], at_most)]
    found, missing = read_all(samples, recipe)
    # Frames that are not listed were duplicates.
    images = [image for image in found if (image.sample.source, image.frame) in digests]
    same, changed = [], []
    for image in images:
        unchanged = image.digest == digests[image.sample.source, image.frame]
        (same if unchanged else changed).append(image)
    return same, [*missing, *(left_out(image, _CHANGED) for image in changed)]
