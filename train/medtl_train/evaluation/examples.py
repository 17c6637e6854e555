"""Chooses images to show with the maps of what the network sees in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medtl_models.ensemble import Classifier
from medtl_runtime.heads import Head, columns_of
from medtl_runtime.heatmap import evidence_of
from medtl_runtime.recipe import as_batch
from medtl_train.data.images import ImageSet
from medtl_train.evaluation.report import Example
from medtl_train.scoring.scored import Answers, Scored, ScoredValues

_MOST = 8


def choose_examples(
    network: Classifier,
    heads: Sequence[Head],
    images: ImageSet,
    answers: Mapping[str, Answers],
    device: torch.device,
) -> list[Example]:
    """Return up to eight images with the answer of the first head.

    Of classes the surest errors, up to half, then the surest right ones by class; of values the
    largest errors, up to half, then the smallest.

    Parameters
    ----------
    answers
        Of each head, by its name; of the images whose target is known.
    """
    head, columns = heads[0], columns_of(heads)[0]
    own = answers[head.name]
    known = np.flatnonzero(~np.isnan(images.targets[:, 0]))
    chosen = _of_values(own) if isinstance(own, ScoredValues) else _of_classes(own)
    if not chosen:
        return []
    cams = _maps(network, images.pixels[known[chosen]], device)[:, columns]
    return [
        _example(head, own, i, cam, images, int(known[i]))
        for i, cam in zip(chosen, cams, strict=True)
    ]


def _of_classes(scored: Scored) -> list[int]:
    predicted = scored.predicted
    sureness = scored.probabilities[np.arange(len(predicted)), predicted]
    order = np.argsort(-sureness, kind="stable")
    wrong = [int(i) for i in order if predicted[i] != scored.labels[i]][: _MOST // 2]
    right = [int(i) for i in order if predicted[i] == scored.labels[i]]
    by_class = [[i for i in right if scored.labels[i] == k] for k in range(len(scored.classes))]
    share = -(-(_MOST - len(wrong)) // len(by_class))
    return (wrong + [i for some in by_class for i in some[:share]])[:_MOST]


def _of_values(scored: ScoredValues) -> list[int]:
    order = [int(i) for i in np.argsort(-np.abs(scored.predicted - scored.values), kind="stable")]
    worst = order[: _MOST // 2]
    return worst + order[len(worst) :][-(_MOST - len(worst)) :]


@torch.inference_mode()
def _maps(
    network: Classifier, pixels: NDArray[np.uint16], device: torch.device
) -> NDArray[np.float32]:
    """Return the activation maps of canonical images, N x columns x h x w."""
    return network(torch.from_numpy(as_batch(pixels)).to(device)).cam.float().cpu().numpy()


def _example(
    head: Head,
    answers: Answers,
    index: int,
    cam: NDArray[np.float32],
    images: ImageSet,
    image: int,
) -> Example:
    if isinstance(answers, ScoredValues):
        predicted, true = answers.predicted[index], answers.values[index]
        towards = int(predicted >= head.mean)
        words = f"a value {'above' if towards else 'below'} {head.mean:.4g} {head.unit}".strip()
        said, truth = (f"{value:.4g} {head.unit}".strip() for value in (predicted, true))
        is_wrong = None
    else:
        towards, label = int(answers.predicted[index]), int(answers.labels[index])
        words, truth = head.classes[towards], head.classes[label]
        said = f"{words}, probability {answers.probabilities[index, towards]:.2f}"
        is_wrong = towards != label
    return Example(
        pixels=images.pixels[image],
        heat=evidence_of(head, cam, towards),
        evidence=words,
        truth=truth,
        predicted=said,
        is_wrong=is_wrong,
        source=Path(images.sources[image]).name,
    )
