"""Images that are unlike the others, by their grey values or by what a network makes of them.

How far a value is out is told by its modified z-score: from the median, in units of the median
absolute deviation, which outliers do not move (Iglewicz and Hoaglin, How to Detect and Handle
Outliers, 1993). They advise 3.5 for normal values; image statistics have longer tails.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtl_train.data.decoding import STATISTICS

LIMIT = 6.0
"""Scores from this on are outliers."""

_LEAST = (0.01, 0.01, 0.05, 0.05, 0.1)
"""Least usual deviation of each of `STATISTICS`: of grey values, of shares, of bits. Most images
have hardly a black pixel, and one with a black corner is none to look at."""

_NEIGHBOURS = 10
_REFERENCES = 20_000
"""Images that neighbours are looked for among; of more, as many are drawn."""


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """An image that is unlike the others."""

    index: int
    """Which of the images that were given."""
    statistic: str
    """What it is out by: one of `STATISTICS`, or ``embedding``."""
    value: float
    score: float
    """Modified z-score; its sign says to which side."""


def robust_scores(values: NDArray[np.floating], least: float = 0.0) -> NDArray[np.float64]:
    """Return the modified z-score of each value, of the shape of ``values``.

    Where more than half of the values are the same their median deviation is 0, and the mean
    deviation takes its place, as the authors advise; where all are the same all scores are 0.

    Parameters
    ----------
    least
        The least deviation that counts as the usual one: values that hardly differ at all have no
        outliers.
    """
    away = np.asarray(values, np.float64) - np.median(values)
    scale = 1.4826 * np.median(np.abs(away))
    if scale == 0:
        scale = 1.2533 * np.mean(np.abs(away))
    scale = max(scale, least)
    return away / scale if scale else np.zeros_like(away)


def intensity_outliers(statistics: NDArray[np.floating]) -> list[Outlier]:
    """Return images whose grey values are unlike the others', the most unlike first.

    Parameters
    ----------
    statistics
        N x `STATISTICS`, of each image.

    Returns
    -------
    Each image once, by the statistic that it is most out by.
    """
    if len(statistics) < 2 * _NEIGHBOURS:
        return []
    scores = np.stack(
        [robust_scores(c, least) for c, least in zip(statistics.T, _LEAST, strict=True)], axis=1
    )
    worst = np.abs(scores).argmax(axis=1)
    found = [
        Outlier(
            index=index,
            statistic=STATISTICS[column],
            value=float(statistics[index, column]),
            score=float(scores[index, column]),
        )
        for index, column in enumerate(worst.tolist())
        if abs(scores[index, column]) >= LIMIT
    ]
    return sorted(found, key=lambda one: -abs(one.score))


def embedding_outliers(embeddings: NDArray[np.floating], *, seed: int = 0) -> list[Outlier]:
    """Return images that lie far from all others for a network, the farthest first.

    The distance is the mean of the cosine distances to the ten nearest others (Ramaswamy, Rastogi
    and Shim, SIGMOD 2000, take the last of them). Its logarithm is scored: distances are skewed.

    Parameters
    ----------
    embeddings
        N x D.
    seed
        Draws the images that neighbours are looked for among, where there are very many.
    """
    from sklearn.neighbors import NearestNeighbors

    count = len(embeddings)
    if count < 2 * _NEIGHBOURS:
        return []
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    directions = np.asarray(embeddings, np.float32) / np.maximum(norms, 1e-12)
    drawn = np.random.default_rng(seed).permutation(count)[:_REFERENCES]
    search = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1, algorithm="brute").fit(directions[drawn])
    lengths, neighbours = search.kneighbors(directions)
    # Half the squared length between unit vectors is their cosine distance. An image is no
    # neighbour of itself; one that was not drawn has one too many instead, the farthest.
    itself = drawn[neighbours] == np.arange(count)[:, None]
    itself[~itself.any(axis=1), -1] = True
    distances = (lengths[~itself] ** 2 / 2).reshape(count, _NEIGHBOURS).mean(axis=1)
    scores = robust_scores(np.log(np.maximum(distances, 1e-9)))
    found = [
        Outlier(
            index=index,
            statistic="embedding",
            value=float(distances[index]),
            score=float(scores[index]),
        )
        for index in np.flatnonzero(scores >= LIMIT).tolist()
    ]
    return sorted(found, key=lambda one: -one.score)
