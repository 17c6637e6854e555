"""What is written beside a model file for people and their tools; the file needs none of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_export.card import card_json, card_markdown
from medtl_export.compare import Judgement
from medtl_export.report import write_report
from medtl_export.sbom import sbom
from medtl_runtime.files import write_text
from medtl_runtime.modelfile import Description
from medtl_train.data.images import Image
from medtl_train.evaluation.subgroups import evaluate_by_head, subgroups

_SEED = 0


def paths(model: Path) -> tuple[Path, ...]:
    """Return the files beside a model file: report, card as text and as JSON, bill of materials."""
    endings = (".report.html", ".card.md", ".card.json", ".sbom.json")
    return tuple(model.with_name(model.stem + ending) for ending in endings)


def subgroup_rows(
    images: Sequence[Image],
    targets: NDArray[np.float64],
    judged: Judgement,
    *,
    patients_known: bool,
) -> list[dict[str, Any]]:
    """Return how good the model is on parts of the validation images, by their headers.

    Parameters
    ----------
    targets
        N x heads; NaN where one is not known.

    Returns
    -------
    Rows of `medtl_train.evaluation.subgroups.evaluate_subgroups`, each with the ``head`` that it
    is about.
    """
    groups = subgroups(
        [image.header for image in images],
        np.array([image.patient for image in images]),
        patients_known=patients_known,
    )
    by_head = evaluate_by_head(judged.answers, targets, groups, seed=_SEED)
    return [{"head": head, **row} for head, rows in by_head.items() for row in rows]


def write(
    model: Path,
    description: Description,
    *,
    digest: str,
    size_bytes: int,
    float_bytes: int,
    subgroups: Sequence[Mapping[str, Any]],
) -> tuple[Path, ...]:
    """Write the documents of a model file, and return their paths.

    Parameters
    ----------
    digest
        ``sha256:`` and the SHA-256 of the file.
    float_bytes
        Size of the float network's graph.
    """
    report, text, document, materials = paths(model)
    write_report(
        report,
        description=description,
        size_bytes=size_bytes,
        float_bytes=float_bytes,
        digest=digest,
    )
    card = card_json(description, subgroups=subgroups, digest=digest, size_bytes=size_bytes)
    write_text(text, card_markdown(card))
    write_text(document, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    write_text(materials, sbom(description.name, digest, model_version=description.version))
    return report, text, document, materials
