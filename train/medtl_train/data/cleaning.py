"""The cleaning report: what is wrong with the data, what was done about it, and what remains.

It names files and patients, so it stays with the run.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.files import write_text
from medtl_runtime.heads import Head
from medtl_train.data.dataset import Dataset, Findings
from medtl_train.data.duplicates import NearDuplicates
from medtl_train.data.images import Excluded, Image, count_targets, targets_array
from medtl_train.data.outliers import LIMIT, Outlier, embedding_outliers, intensity_outliers
from medtl_train.data.samples import SPLITS

_SHOWN = 200
"""Entries of a list; its ``count`` is of all."""


def describe_cleaning(
    dataset: Dataset, *, site: str, embeddings: Mapping[str, NDArray[np.floating]] | None = None
) -> dict[str, Any]:
    """Return the cleaning report as JSON values.

    Parameters
    ----------
    dataset
        As it was built, not read again.
    site
        The covariate that is the site; there may be none of that name.
    embeddings
        By split, what a network makes of each of its images, N x D; without them there is nothing
        on outliers by embedding.

    Returns
    -------
    ``images`` and ``patients`` by split; ``unlabelled``, ``unreadable``, ``duplicates``,
    ``label_conflicts`` and ``near_duplicates``, each with ``count`` and at most 200 entries;
    ``missing``; ``outliers`` by ``intensity`` and ``embedding``; ``patients_in_external``;
    ``answers`` by head and split; ``sites`` by site; and ``warnings``, lines for people.
    """
    assert dataset.findings is not None
    findings = dataset.findings
    splits = {name: images for name in SPLITS if (images := dataset.images[name])}
    images = [image for some in splits.values() for image in some]
    report: dict[str, Any] = {
        "images": {name: len(some) for name, some in splits.items()},
        "patients": {name: len({i.patient for i in some}) for name, some in splits.items()},
        "unlabelled": _left_out(findings.unlabelled),
        "unreadable": _left_out(findings.unreadable),
        "duplicates": _left_out(findings.repeated),
        "label_conflicts": _left_out(findings.contradicted),
        "near_duplicates": _near(findings, images),
        "missing": _missing(images, dataset),
        "outliers": {
            "limit": LIMIT,
            "intensity": _outliers(images, intensity_outliers(_statistics(images))),
            "embedding": _by_embedding(splits, embeddings),
        },
        "patients_in_external": _shared_patients(splits),
        "answers": {head.name: _answers(head, k, dataset) for k, head in enumerate(dataset.heads)},
        "sites": _sites(splits, dataset.heads, site),
    }
    return {**report, "warnings": _warnings(report, findings.near_duplicates)}


def write_cleaning(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ``cleaning.json`` and ``cleaning.html`` into the folder of a run.

    Raises
    ------
    OutputNotWritten
        The disk is full, or the folder cannot be written to.
    """
    from medtl_train.pages import render

    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / "cleaning.json", text)
    page = render("medtl_train", template="cleaning.html.j2", name=folder.name, c=report)
    write_text(folder / "cleaning.html", page)


def _left_out(excluded: Sequence[Excluded]) -> dict[str, Any]:
    shown = [{"source": e.source, "label": e.label, "reason": e.reason} for e in excluded[:_SHOWN]]
    return {"count": len(excluded), "shown": shown}


def _near(findings: Findings, images: Sequence[Image]) -> dict[str, Any]:
    near = findings.near_duplicates
    splits = {(image.sample.source, image.frame): image.split for image in images}
    pairs = []
    for one, other, similarity in near.pairs:
        places = [_place(image, splits) for image in (one, other)]
        pairs.append(
            {
                "similarity": round(similarity, 4),
                "images": places,
                "same_labels": one.sample.labels == other.sample.labels,
                "same_patient": one.patient == other.patient,
                "across_splits": len({place["split"] for place in places} - {""}) == 2,
            }
        )
    across = sum(pair["across_splits"] for pair in pairs)
    contradicted = sum(not pair["same_labels"] for pair in pairs)
    return {
        "count": near.count,
        "within_patients": near.within_patients,
        "policy": near.policy,
        "grouped": bool(near.grouped),
        "across_splits": across,
        "with_other_labels": contradicted,
        "left_out": len(findings.nearly_repeated),
        "shown": sorted(pairs, key=lambda pair: not pair["across_splits"])[:_SHOWN],
    }


def _place(image: Image, splits: Mapping[tuple[str, int], str]) -> dict[str, Any]:
    key = (image.sample.source, image.frame)
    return {
        "source": image.sample.source,
        "frame": image.frame,
        "label": image.sample.label,
        "split": splits.get(key, ""),  # empty for one that was left out
    }


def _missing(images: Sequence[Image], dataset: Dataset) -> dict[str, Any]:
    unknown = np.isnan(targets_array(images, dataset.heads)).sum(axis=0)
    return {
        "labels": {h.name: int(n) for h, n in zip(dataset.heads, unknown, strict=True)},
        "covariates": {name: dict(one) for name, one in dataset.covariates.items()},
        "patients": sum(not image.patient_known for image in images),
    }


def _statistics(images: Sequence[Image]) -> NDArray[np.float32]:
    return np.stack([image.decoded.statistics[image.frame] for image in images])


def _outliers(images: Sequence[Image], found: Sequence[Outlier]) -> dict[str, Any]:
    shown = [
        {
            "source": images[one.index].sample.source,
            "frame": images[one.index].frame,
            "label": images[one.index].sample.label,
            "split": images[one.index].split,
            "statistic": one.statistic,
            "value": round(one.value, 5),
            "score": round(one.score, 1),
        }
        for one in found[:_SHOWN]
    ]
    return {"count": len(found), "shown": shown}


def _by_embedding(
    splits: Mapping[str, Sequence[Image]], embeddings: Mapping[str, NDArray[np.floating]] | None
) -> dict[str, Any] | None:
    if embeddings is None:
        return None
    images = [image for name in embeddings for image in splits[name]]
    found = embedding_outliers(np.concatenate([embeddings[name] for name in embeddings]))
    return _outliers(images, found)


def _shared_patients(splits: Mapping[str, Sequence[Image]]) -> int:
    """Return how many patients of the external data have the identifier of one of the run's own."""
    own = {i.patient for name, some in splits.items() if name != "external" for i in some}
    return len(own & {i.patient for i in splits.get("external", ()) if i.patient_known})


def _answers(head: Head, column: int, dataset: Dataset) -> dict[str, Any]:
    """Return by split how many images have each class, or how the values lie."""
    found = {}
    for split in SPLITS:
        if not dataset.images[split]:
            continue
        targets = targets_array(dataset.images[split], dataset.heads)[:, column]
        found[split] = count_targets(head, targets)
    return {"kind": head.kind, "unit": head.unit, "classes": list(head.classes), "splits": found}


def _sites(
    splits: Mapping[str, Sequence[Image]], heads: Sequence[Head], site: str
) -> list[dict[str, Any]]:
    """Return a row for each site: its images by split, and what they answer."""
    images = [image for some in splits.values() for image in some]
    names = Counter(image.covariates[site] for image in images if site in image.covariates)
    rows = []
    for name, count in sorted(names.items()):
        here = [image for image in images if image.covariates.get(site) == name]
        targets = targets_array(here, heads)
        rows.append(
            {
                "site": name,
                "images": count,
                "patients": len({image.patient for image in here}),
                "splits": dict(Counter(image.split for image in here)),
                "answers": {
                    head.name: count_targets(head, column)
                    for head, column in zip(heads, targets.T, strict=True)
                },
            }
        )
    return rows


def _warnings(report: Mapping[str, Any], near: NearDuplicates) -> list[str]:
    lines = []
    if report["missing"]["patients"]:
        lines.append(
            f"{report['missing']['patients']} images without a known patient count as patients of "
            "their own; if patients have several, the splits leak and the figures are too good"
        )
    if report["label_conflicts"]["count"]:
        lines.append(f"{report['label_conflicts']['count']} copies of images contradict each other")
    across = report["near_duplicates"]["across_splits"]
    if across:
        lines.append(f"{across} pairs of nearly the same images are in two splits: a leak")
    if near.policy != "keep" and not near.usable:
        lines.append(
            "so many images are nearly the same that this tells nothing of copies; they were "
            "neither kept together nor left out"
        )
    if report["patients_in_external"]:
        lines.append(
            f"{report['patients_in_external']} patients of the external data have the identifier "
            "of one of the run's own; if they are the same, the external data are not external"
        )
    for head, answers in report["answers"].items():
        for split, found in answers["splits"].items():
            empty = [name for name, count in found.get("counts", {}).items() if not count]
            if empty:
                lines.append(f"{head}: no {split} image is {' or '.join(empty)}")
    return lines
