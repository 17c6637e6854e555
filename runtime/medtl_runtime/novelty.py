"""How unlike the training data an image is: the energy of its logits, the place of its embedding.

Two scores, because they miss different things: energy sees that no class speaks up (Liu et al.,
NeurIPS 2020), the Mahalanobis distance that the features lie where no training image lay (Lee et
al., NeurIPS 2018). An image beyond the cut-off of either is refused.
"""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.decision import NoveltyCutoffs
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head, columns_of

MOST_DIRECTIONS = 32
"""Of the embedding's covariance; the rest is one variance, so that a reference stays small."""

_MOST_DIMENSIONS = 1 << 16
_BLOCK = 4096
_LEAST_VARIANCE = 1e-12
_LEAST_SHARE = 1e-3
"""Of the mean variance: a direction in which few training images never differed is no proof."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingReference:
    """Where the embeddings of the training images lie: a mean for each group, one covariance.

    The covariance about the class means is that of probabilistic PCA (Tipping and Bishop, J. R.
    Stat. Soc. B 1999): ``variances`` along ``directions``, and ``residual`` along all others.
    """

    means: NDArray[np.float32]
    """G x D, of `reference_groups`; a class without training images is left out."""
    directions: NDArray[np.float32]
    """r x D, orthonormal rows."""
    variances: NDArray[np.float32]
    """(r,), falling, none below ``residual``."""
    residual: float
    """Variance along each of the other D - r directions; more than 0."""
    images: int
    """How many it was fitted on."""

    def __str__(self) -> str:
        classes, size = self.means.shape
        found = f"{classes} means of {size} dimensions, {len(self.directions)} directions"
        return f"{found}, from {self.images} images"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; arrays as base64 of little-endian float32, by rows."""
        return {
            "means": _encoded(self.means),
            "directions": _encoded(self.directions),
            "variances": _encoded(self.variances),
            "residual": self.residual,
            "images": self.images,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "EmbeddingReference":
        """Read what `to_json` wrote.

        Raises
        ------
        UsageError
            A field is missing or unknown, or its numbers make no sense.
        """
        try:
            if set(data) != {"means", "directions", "variances", "residual", "images"}:
                raise ValueError("missing or unknown fields")
            reference = EmbeddingReference(
                means=_decoded(data["means"], axes=2),
                directions=_decoded(data["directions"], axes=2),
                variances=_decoded(data["variances"], axes=1),
                residual=float(data["residual"]),
                images=int(data["images"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as cause:
            raise UsageError(f"malformed embedding reference ({cause})") from cause
        _check(reference)
        return reference


def _encoded(array: NDArray[np.float32]) -> dict[str, Any]:
    data = np.ascontiguousarray(array, "<f4").tobytes()
    return {"shape": list(array.shape), "float32": base64.b64encode(data).decode("ascii")}


def _decoded(data: Mapping[str, Any], *, axes: int) -> NDArray[np.float32]:
    shape = data["shape"]
    if len(shape) != axes or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"shape {shape}")
    values = np.frombuffer(base64.b64decode(data["float32"], validate=True), "<f4")
    array = values.reshape(shape).astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError("numbers that are not finite")
    return array


def _check(reference: EmbeddingReference) -> None:
    classes, size = reference.means.shape
    count = len(reference.directions)
    if not (
        classes
        and 0 < size <= _MOST_DIMENSIONS
        and reference.directions.shape == (count, size)
        and reference.variances.shape == (count,)
        and 0 < reference.residual < math.inf
        and (reference.variances > 0).all()
    ):
        raise UsageError("embedding reference whose arrays do not fit each other")


@dataclass(frozen=True, kw_only=True)
class Novelty:
    """The scores of one image; larger is more unlike the training data."""

    energy: float | None
    """See `energy_of`; None where no head has classes."""
    mahalanobis: float
    """Squared distance of the embedding from the nearest mean, in variances."""

    def to_json(self) -> dict[str, float | None]:
        """Return the scores as JSON values."""
        energy = None if self.energy is None else round(self.energy, 4)
        return {"energy": energy, "mahalanobis": round(self.mahalanobis, 3)}


def energy_of(heads: Sequence[Head], logits: NDArray[np.floating]) -> float | None:
    """Return the energy of an image, summed over the heads that have classes; None without any.

    It is -log of the sum of exp(logits) of a multiclass head (Liu et al., NeurIPS 2020). A column
    of a binary or an ordinal head is a question by itself, whose other answer has the logit 0: the
    energy is -log(1 + exp(logit)) for each (joint energy; Wang et al., NeurIPS 2021).

    Parameters
    ----------
    logits
        The columns of all heads, (K,), as the network gives them: the temperatures of the
        probabilities have no part in it.
    """
    values = np.asarray(logits, np.float64)
    found = [
        -_log_sum_exp(values[columns])
        if head.kind == "multiclass"
        else -float(np.logaddexp(0, values[columns]).sum())
        for head, columns in zip(heads, columns_of(heads), strict=True)
        if head.kind != "regression"
    ]
    return sum(found) if found else None


def _log_sum_exp(values: NDArray[np.float64]) -> float:
    highest = values.max()
    return float(highest + math.log(np.exp(values - highest).sum()))


def score(
    heads: Sequence[Head],
    logits: NDArray[np.floating],
    embedding: NDArray[np.floating],
    reference: EmbeddingReference,
) -> Novelty:
    """Return the scores of one image, from its logits, (K,), and its embedding, (D,)."""
    away_kd = np.asarray(embedding, np.float64) - reference.means
    along_kr = away_kd @ reference.directions.T
    inside_k = (along_kr**2 / reference.variances).sum(1)
    # What lies along none of the directions; rounding must not make it negative.
    outside_k = np.maximum((away_kd**2).sum(1) - (along_kr**2).sum(1), 0) / reference.residual
    distance = float((inside_k + outside_k).min())
    return Novelty(energy=energy_of(heads, logits), mahalanobis=distance)


def reference_groups(heads: Sequence[Head], targets: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return by which means the training images are told apart, (N,).

    That is by the class of the first head that is multiclass or ordinal; -1 where it is not known.
    Without such a head all are of one group: the pairs of many findings are too many to have a
    mean each.

    Parameters
    ----------
    targets
        N x heads, NaN where one is not known.
    """
    for index, head in enumerate(heads):
        if head.kind in ("multiclass", "ordinal"):
            return np.nan_to_num(targets[:, index], nan=-1).astype(np.int64)
    return np.zeros(len(targets), np.int64)


def fit_reference(
    embeddings: NDArray[np.floating], groups: NDArray[np.integer], rank: int = MOST_DIRECTIONS
) -> EmbeddingReference:
    """Return where the embeddings of training images lie.

    Parameters
    ----------
    embeddings
        N x D
    groups
        Index of the class of each, (N,); images of less than 0 are left out. See
        `reference_groups`.
    rank
        Most directions that get a variance of their own.

    Raises
    ------
    UsageError
        Fewer than two more images than classes: there is no covariance.
    """
    embeddings, groups = embeddings[groups >= 0], groups[groups >= 0]
    present, own = np.unique(groups, return_inverse=True)
    count, size = embeddings.shape
    free = count - len(present)
    if free < 2:
        raise UsageError(f"{count} images of {len(present)} classes are too few for a reference")
    means = np.stack([embeddings[own == k].mean(0, dtype=np.float64) for k in range(len(present))])
    squares, directions = _principal(embeddings, means, own)
    variances = squares / free
    kept = min(rank, free - 1, size - 1, len(variances) - 1)
    # What is left, spread over all the directions that were not kept (Tipping and Bishop, eq. 8).
    floor = max(_LEAST_SHARE * variances.sum() / size, _LEAST_VARIANCE)
    residual = max(float(variances[kept:].sum() / (size - kept)), floor)
    return EmbeddingReference(
        means=means.astype(np.float32),
        directions=directions[:kept].astype(np.float32),
        variances=np.maximum(variances[:kept], residual).astype(np.float32),
        residual=residual,
        images=count,
    )


def _principal(
    embeddings: NDArray[np.floating], means: NDArray[np.float64], own: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sums of squares about the class means, falling, and their directions, by rows.

    There are min(N, D) of them. With more images than dimensions they come from the D x D scatter
    matrix, added up over blocks of images, so that memory does not grow with the images.
    """
    count, size = embeddings.shape
    if count <= size:
        _, singular, directions = np.linalg.svd(embeddings - means[own], full_matrices=False)
        return singular**2, directions
    scatter = np.zeros((size, size))
    for start in range(0, count, _BLOCK):
        some = slice(start, start + _BLOCK)
        centred = embeddings[some] - means[own[some]]
        scatter += centred.T @ centred
    squares, columns = np.linalg.eigh(scatter)
    return np.maximum(squares[::-1], 0), columns.T[::-1]


def fit_cutoffs(scores: Sequence[Novelty], rate: float) -> NoveltyCutoffs:
    """Return cut-offs that refuse at most ``rate`` of the images like those given.

    Where there are two scores each has half of the rate (Bonferroni). Its cut-off is the conformal
    order statistic, the ceil((n + 1)(1 - rate / 2))-th smallest of n scores: a further image of the
    same kind exceeds it with a probability of at most rate / 2 (Vovk et al., 2005). Where n is too
    small for that, the cut-off is the largest score, and the rate that is stated is the one that
    this keeps, 2 / (n + 1). Without energies, all of the rate is the distance's.

    Parameters
    ----------
    scores
        Of images that were not trained on, all by the same heads.
    rate
        Between 0 and 1.
    """
    count = len(scores)
    if not (count and 0 < rate < 1):
        raise UsageError(f"cut-offs for a rate of {rate} from {count} images; expected 0 to 1")
    energies = [one.energy for one in scores if one.energy is not None]
    parts = 2 if energies else 1
    # Rounding must not push the product of exact decimals past a whole number.
    rank = min(math.ceil((count + 1) * (1 - rate / parts) - 1e-9), count)
    return NoveltyCutoffs(
        energy=sorted(energies)[rank - 1] if energies else None,
        mahalanobis=sorted(one.mahalanobis for one in scores)[rank - 1],
        false_refusal_rate=max(rate, parts / (count + 1)),
        images=count,
    )


def exceeds(novelty: Novelty, cutoffs: NoveltyCutoffs) -> tuple[str, float, str] | None:
    """Return the score that is beyond its cut-off, its value and what was expected; or None."""
    for name in ("mahalanobis", "energy"):
        found, most = getattr(novelty, name), getattr(cutoffs, name)
        if most is not None and not found <= most:
            return name, round(found, 4), f"at most {most:.4g}"
    return None
