"""Labels and covariates that are missing: which samples are left out, and what fills a gap."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from medtl_train.config import DataConfig
from medtl_train.config.data import MissingCovariates
from medtl_train.data.images import Excluded, Image
from medtl_train.data.labels import Question, policy_in_force
from medtl_train.data.samples import Sample
from medtl_train.errors import DataUnfit

UNKNOWN = "unknown"
"""The level of a covariate that is missing, with ``--missing-covariates mask``."""


def without_gaps(
    samples: Sequence[Sample], questions: Sequence[Question], config: DataConfig
) -> tuple[list[Sample], list[Excluded]]:
    """Leave out what has no label at all, and what ``drop`` says to leave out."""
    dropping = policy_in_force(config.missing_labels, questions) == "drop"
    kept, excluded = [], []
    for sample in samples:
        missing = [q.name for q, text in zip(questions, sample.labels, strict=True) if not text]
        reason = ""
        if len(missing) == len(questions):
            reason = "no label is known"
        elif missing and dropping:
            reason = f"{missing[0]} is missing"
        elif config.missing_covariates == "drop":
            lacking = [name for name, text in sample.covariates.items() if not text]
            reason = f"{lacking[0]} is missing" if lacking else ""
        if reason:
            excluded.append(
                Excluded(
                    source=sample.source, label=sample.label, split=sample.split, reason=reason
                )
            )
        else:
            kept.append(sample)
    return kept, excluded


def fill_covariates(
    images: Sequence[Image], policy: MissingCovariates
) -> tuple[list[Image], dict[str, dict[str, Any]]]:
    """Fill the gaps in the covariates of images that have a split.

    Returns
    -------
    The images, and by covariate: ``missing``, the number of images without it, ``policy`` and
    ``value``, what stands there now.

    Raises
    ------
    DataUnfit
        No training image has a covariate that is to be imputed.
    """
    names = images[0].sample.covariates if images else ()
    account = {}
    for name in names:
        missing = sum(not image.sample.covariates[name] for image in images)
        value = UNKNOWN
        if missing and policy == "impute":
            value = _usual(name, images)
        account[name] = {"missing": missing, "policy": policy, "value": value if missing else None}
    return [replace(image, covariates=_filled(image, account)) for image in images], account


def _filled(image: Image, account: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {n: text or account[n]["value"] for n, text in image.sample.covariates.items()}


def _usual(name: str, images: Sequence[Image]) -> str:
    """Return the median of the training images where all are numbers, else the most frequent."""
    known = [i.sample.covariates[name] for i in images if i.split == "train"]
    known = [text for text in known if text]
    if not known:
        raise DataUnfit(f"no training image has {name}; it cannot be imputed")
    try:
        return f"{median(map(float, known)):g}"
    except ValueError:
        [(text, _)] = Counter(sorted(known)).most_common(1)
        return text
