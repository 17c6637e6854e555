"""How often each class occurs, and what makes up for it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.heads import Head


def class_counts(head: Head, targets: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how many images there are of each class, at least 1, (K,).

    A class without images weighs what one with a single image does.

    Parameters
    ----------
    targets
        Index of the class, (N,); NaN where it is not known.
    """
    known = targets[np.isfinite(targets)].astype(np.intp)
    return np.maximum(np.bincount(known, minlength=len(head.classes)), 1).astype(np.float64)


def class_weights(head: Head, targets: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return a weight for each class, (K,), averaging 1 over the images that have one."""
    counts = class_counts(head, targets)
    return counts.sum() / (len(counts) * counts)


def prior_logits(head: Head, targets: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logits of a model that knows only how frequent the classes are, (columns,)."""
    counts = class_counts(head, targets)
    if head.kind == "multiclass":
        return np.log(counts / counts.sum())
    # Above class k against class k itself: of grades, and of absent and present.
    above = np.cumsum(counts[::-1])[::-1][1:]
    return np.log(above / counts[:-1])


def sampling_weights(heads: Sequence[Head], targets: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the chance to draw each image, (N,), so that rare classes come as often as others.

    Of several heads with classes it is the mean over them; an image whose class is not known counts
    as an average one. The chances add up to 1.

    Parameters
    ----------
    targets
        N x heads; see `ImageSet.targets`.
    """
    shares = [
        _shares(head, targets[:, k]) for k, head in enumerate(heads) if head.kind != "regression"
    ]
    mean = np.mean(shares, axis=0)
    return mean / mean.sum()


def _shares(head: Head, targets: NDArray[np.floating]) -> NDArray[np.float64]:
    known = np.isfinite(targets)
    shares = np.ones(len(targets))
    shares[known] = class_weights(head, targets)[targets[known].astype(np.intp)]
    return shares
