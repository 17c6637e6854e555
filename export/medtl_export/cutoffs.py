"""Fits what refuses and what abstains: the novelty check and the triage.

Both are order statistics of validation images (split conformal prediction, Vovk et al., 2005), and
so is how low their rates can be: n images hold 1 / (n + 1), or 2 / (n + 1) for two scores.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from medtl_export.compare import Outputs
from medtl_runtime.calibration import (
    conformal_thresholds,
    require_for_refusals,
    require_for_triage,
)
from medtl_runtime.decision import NoveltyCutoffs, Triage, probabilities
from medtl_runtime.novelty import EmbeddingReference, fit_cutoffs, fit_reference, score

DEFAULT_RATE = 0.02
"""Of the images like those of the validation set, the share that is refused as novel."""

LEAST_IMAGES = 39
"""With fewer validation images, more than one in twenty of the images like them would be refused:
too many for a check that nobody asked for."""


def require_enough(
    labels: NDArray[np.int64],
    classes: Sequence[str],
    *,
    false_refusal_rate: float | None,
    error_rate: float | None,
) -> None:
    """Refuse rates that the validation images cannot hold.

    Parameters
    ----------
    labels
        Of the validation images, (N,).
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
        require_for_refusals(false_refusal_rate, len(labels), unit="validation images")
    if error_rate is not None:
        counts = Counter(labels.tolist())
        require_for_triage(error_rate, counts, classes, unit="validation images")


def wants_novelty(images: int, rate: float | None, note: Callable[[str], None]) -> bool:
    """Whether to fit the novelty check on so many validation images; ``note`` is told why not."""
    if rate is not None:
        return rate > 0
    if images < LEAST_IMAGES:
        note(f"no novelty check: {images} validation images; it takes {LEAST_IMAGES}")
    return images >= LEAST_IMAGES


def fit_novelty(
    train: Outputs,
    train_labels: NDArray[np.int64],
    val: Outputs,
    rate: float,
) -> tuple[EmbeddingReference, NoveltyCutoffs]:
    """Return what training embeddings look like, and cut-offs that hold on validation images.

    Parameters
    ----------
    train, val
        Of the network that goes into the file.
    rate
        Share of images like the validation images that may be refused; where there are too few to
        hold it, the lowest rate that they can hold. The cut-offs say which it is.
    """
    reference = fit_reference(train.embeddings, train_labels)
    pairs = zip(val.logits, val.embeddings, strict=True)
    scores = [score(logits, embedding, reference) for logits, embedding in pairs]
    cutoffs = fit_cutoffs(
        np.array([one.energy for one in scores]),
        np.array([one.mahalanobis for one in scores]),
        rate,
    )
    return reference, cutoffs


def fit_triage(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    temperature: float,
    error_rate: float,
) -> Triage:
    """Return thresholds that hold the error rate in each class of the validation images."""
    chances = probabilities(logits, temperature)
    thresholds = conformal_thresholds(labels, chances, error_rate)
    return Triage(error_rate=error_rate, thresholds=thresholds, images=len(labels))
