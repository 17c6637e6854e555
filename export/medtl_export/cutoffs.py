"""Fits what refuses, what abstains and how far values may be off.

Novelty check, triage and intervals are order statistics of validation images (split conformal
prediction, Vovk et al., 2005), and so is how low their rates can be: n images hold 1 / (n + 1), or
2 / (n + 1) for two scores.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from medtl_export.compare import Outputs
from medtl_runtime.conformal import (
    conformal_margin,
    conformal_thresholds,
    require_for_interval,
    require_for_refusals,
    require_for_triage,
)
from medtl_runtime.decision import Margin, NoveltyCutoffs, Triage
from medtl_runtime.heads import Head
from medtl_runtime.novelty import (
    EmbeddingReference,
    fit_cutoffs,
    fit_reference,
    reference_groups,
    score,
)

DEFAULT_RATE = 0.02
"""Of the images like those of the validation set, the share that is refused as novel."""

LEAST_IMAGES = 39
"""With fewer validation images, more than one in twenty of the images like them would be refused:
too many for a check that nobody asked for."""


DEFAULT_MISSES = 0.1
"""Of a regression's interval, where no error rate is asked for: its coverage is 0.9."""

LEAST_VALUES = 9
"""With fewer validation images no interval of that coverage can be had."""


def require_enough(
    heads: Sequence[Head],
    targets: NDArray[np.float64],
    *,
    false_refusal_rate: float | None,
    error_rate: float | None,
) -> None:
    """Refuse rates that the validation images cannot hold.

    Parameters
    ----------
    targets
        Of the validation images, N x heads; NaN where one is not known.
    false_refusal_rate
        As asked for; None or 0 asks for nothing.
    error_rate
        As asked for; None asks for nothing.

    Raises
    ------
    UsageError
        There are too few images; the message says how many it takes.
    """
    if false_refusal_rate:
        scores = 1 if all(head.kind == "regression" for head in heads) else 2
        require_for_refusals(
            false_refusal_rate, len(targets), unit="validation images", scores=scores
        )
    if error_rate is None:
        return
    for head, column in zip(heads, targets.T, strict=True):
        known = column[~np.isnan(column)]
        if head.kind == "regression":
            require_for_interval(
                error_rate, len(known), unit=f"validation images with a known {head.name}"
            )
        else:
            counts = Counter(known.astype(int).tolist())
            require_for_triage(error_rate, counts, head.classes, unit="validation images")


def wants_novelty(images: int, rate: float | None, note: Callable[[str], None]) -> bool:
    """Whether to fit the novelty check on so many validation images; ``note`` is told why not."""
    if rate is not None:
        return rate > 0
    if images < LEAST_IMAGES:
        note(f"no novelty check: {images} validation images; it takes {LEAST_IMAGES}")
    return images >= LEAST_IMAGES


def fit_novelty(
    heads: Sequence[Head],
    train: Outputs,
    train_targets: NDArray[np.float64],
    val: Outputs,
    rate: float,
) -> tuple[EmbeddingReference, NoveltyCutoffs]:
    """Return what training embeddings look like, and cut-offs that hold on validation images.

    Parameters
    ----------
    train, val
        Of the network that goes into the file.
    train_targets
        N x heads.
    rate
        Share of images like the validation images that may be refused; where there are too few to
        hold it, the lowest rate that they can hold. The cut-offs say which it is.
    """
    reference = fit_reference(train.embeddings, reference_groups(heads, train_targets))
    pairs = zip(val.logits, val.embeddings, strict=True)
    scores = [score(heads, logits, embedding, reference) for logits, embedding in pairs]
    return reference, fit_cutoffs(scores, rate)


def fit_triage(
    head: Head,
    logits: NDArray[np.float32],
    targets: NDArray[np.float64],
    temperature: float,
    error_rate: float,
) -> Triage:
    """Return thresholds that hold the error rate in each class of the validation images.

    Parameters
    ----------
    logits, targets
        The head's columns, N x ``columns``, and what it should answer, (N,).
    """
    known = ~np.isnan(targets)
    chances = head.probabilities(logits[known], temperature)
    thresholds = conformal_thresholds(targets[known].astype(np.int64), chances, error_rate)
    return Triage(error_rate=error_rate, thresholds=thresholds, images=int(known.sum()))


def fit_interval(
    head: Head,
    logits: NDArray[np.float32],
    targets: NDArray[np.float64],
    error_rate: float | None,
) -> Margin | None:
    """Return how far values may be off, by the validation images; None where they are too few.

    Parameters are those of `fit_triage`; without an error rate it is `DEFAULT_MISSES`.
    """
    known = ~np.isnan(targets)
    if known.sum() < LEAST_VALUES:
        return None
    residuals = targets[known] - head.values(logits[known])
    return conformal_margin(residuals, 1 - (error_rate or DEFAULT_MISSES))
