"""What a run said of every image it was evaluated on: ``predictions.parquet``, read by `compare`.

========================= =========================================================================
column                    what it holds
========================= =========================================================================
split                     ``validation``, ``test`` or ``external``
source, frame, digest     which image; the digest is that of its pixels (`images.Image`)
patient                   whose
target(HEAD)              index of the class or grade, or the value; null where it is not known
p(HEAD=CLASS)             calibrated probability of each class
value(HEAD)               predicted value of a regression, in its unit
========================= =========================================================================
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from medtl_runtime.decision import OperatingPoint
from medtl_runtime.errors import UsageError
from medtl_runtime.files import written_whole
from medtl_runtime.heads import Head, columns_of
from medtl_train.data.images import Image
from medtl_train.scoring.scored import Answers, Scored, ScoredValues

NAME = "predictions.parquet"

_IMAGE_COLUMNS = ("split", "source", "frame", "digest", "patient")


def target_column(head: Head) -> str:
    """Return the name of the column of a head's targets."""
    return f"target({head.name})"


def answer_columns(head: Head) -> list[str]:
    """Return the names of the columns of a head's probabilities, or of its value."""
    if head.kind == "regression":
        return [f"value({head.name})"]
    return [f"p({head.name}={name})" for name in head.classes]


def table(
    split: str,
    images: Sequence[Image],
    heads: Sequence[Head],
    targets: NDArray[np.floating],
    logits: NDArray[np.floating],
    temperatures: Mapping[str, float],
) -> pl.DataFrame:
    """Return the rows of a split.

    Parameters
    ----------
    targets
        N x heads; NaN where it is not known.
    logits
        N x `width(heads)`.
    temperatures
        By the name of the head.
    """
    columns: dict[str, NDArray | list] = {
        "split": [split] * len(images),
        "source": [image.sample.source for image in images],
        "frame": [image.frame for image in images],
        "digest": [image.digest for image in images],
        "patient": [image.patient for image in images],
    }
    for index, (head, part) in enumerate(zip(heads, columns_of(heads), strict=True)):
        columns[target_column(head)] = targets[:, index]
        own = logits[:, part]
        found = (
            head.values(own)[:, None]
            if head.kind == "regression"
            else head.probabilities(own, temperatures[head.name])
        )
        columns |= dict(zip(answer_columns(head), found.T, strict=True))
    return pl.DataFrame(columns).with_columns(
        pl.col(target_column(head)).fill_nan(None) for head in heads
    )


def answers_of(rows: pl.DataFrame, head: Head, point: OperatingPoint) -> Answers:
    """Return what a head says of the images whose target is known, in the order of the rows."""
    known = rows.filter(pl.col(target_column(head)).is_not_null())
    truth = known[target_column(head)].to_numpy()
    said = known.select(answer_columns(head)).to_numpy()
    patients = known["patient"].to_numpy().astype(np.str_)
    if head.kind == "regression":
        return ScoredValues(values=truth, predicted=said[:, 0], patients=patients, unit=head.unit)
    return Scored(
        labels=truth.astype(np.int64),
        probabilities=said,
        patients=patients,
        classes=head.classes,
        point=point,
    )


def write(path: Path, tables: Sequence[pl.DataFrame]) -> None:
    """Write the rows of all splits.

    Raises
    ------
    OutputNotWritten
        The disk is full or the place not writable.
    """
    with written_whole(path) as part:
        pl.concat(tables).write_parquet(part)


def read(run: Path, split: str, heads: Sequence[Head]) -> pl.DataFrame:
    """Return the rows of a split of a run.

    Raises
    ------
    UsageError
        The run holds none, they cannot be read, or they are not of these heads.
    """
    path = run / NAME
    if not path.is_file():
        raise UsageError(f"{run} holds no {NAME}: its training is not finished, or is older")
    try:
        found = pl.read_parquet(path).filter(pl.col("split") == split)
    except (OSError, pl.exceptions.PolarsError) as cause:
        raise UsageError(f"{path} is damaged") from cause
    answers = [name for head in heads for name in (target_column(head), *answer_columns(head))]
    missing = [name for name in (*_IMAGE_COLUMNS, *answers) if name not in found.columns]
    if missing:
        raise UsageError(f"{path} lacks the column {missing[0]}; is it of this run?")
    if found.is_empty():
        raise UsageError(f"{run} has no images of the split {split}")
    return found
