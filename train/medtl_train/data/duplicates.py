"""Images that are there twice: which copy is kept, and what nearly equals what."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medtl_train.config.data import NearDuplicates as Policy
from medtl_train.data.images import Excluded, Image, left_out
from medtl_train.data.near import Pairs, near_pairs

# A duplicate is kept where it does the evaluation no harm.
_KEEP_FIRST = {"test": 0, "val": 1, "train": 2, "": 3, "external": 4}

_FEW = 10
"""So many images may be linked, or a third of all; more cannot be in one split."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NearDuplicates:
    """Pairs of images that are nearly the same."""

    pairs: tuple[tuple[Image, Image, float], ...]
    """Those of two patients, the most similar first, with their similarity, 1 for the same."""
    count: int
    """How many of two patients there are; `pairs` may be the first of them."""
    within_patients: int
    """How many are of one patient, such as neighbouring slices."""
    policy: Policy
    grouped: bool
    """Whether they were kept together; not where so many are alike that it says nothing."""
    usable: bool
    """Whether likeness says anything of copies here."""


def without_copies(
    images: Sequence[Image],
) -> tuple[list[Image], list[Excluded], list[Excluded]]:
    """Leave out repeated images, and every copy of one that has two labels.

    An external image is left out where the run's own data hold it, whatever its label is: nothing
    of the external data has a say in what is trained on.

    Returns
    -------
    The images that stay, the copies, and those with two labels.
    """
    by_digest: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        by_digest[image.digest].append(image)
    dropped: set[int] = set()
    repeated, contradicted = [], []
    for copies in by_digest.values():
        if len(copies) == 1:
            continue
        own = [image for image in copies if image.split != "external"] or copies
        conflict = _conflict(own)
        if conflict:
            dropped.update(map(id, copies))
            contradicted += [left_out(image, conflict) for image in copies]
            continue
        first, *others = sorted(copies, key=_precedence)
        dropped.update(map(id, others))
        repeated += [left_out(i, f"same pixels as {first.sample.source}") for i in others]
    return [image for image in images if id(image) not in dropped], repeated, contradicted


def _precedence(image: Image) -> tuple[int, int]:
    return _KEEP_FIRST[image.split], sum(not text for text in image.sample.labels)


def _conflict(copies: Sequence[Image]) -> str:
    """Return in what copies of an image contradict each other; an unknown label does not."""
    for answers in zip(*(image.sample.labels for image in copies), strict=True):
        different = sorted(set(answers) - {""})
        if len(different) > 1:
            return f"the same pixels are labelled {' and '.join(different)}"
    return ""


def handle_near_duplicates(
    images: Sequence[Image], policy: Policy
) -> tuple[list[Image], list[Excluded], NearDuplicates]:
    """Find near-duplicates and do as ``--near-duplicates`` says.

    ``group`` gives images that are linked by near-duplicates, of whatever patients, one group; the
    splits are drawn by group. ``drop`` keeps one of those that are linked. Either leaves out an
    external image that nearly equals one of the run's own. ``keep`` only tells.

    Returns
    -------
    The images that stay, those left out, and what was found.
    """
    found = near_pairs([image.decoded.thumbnails[image.frame] for image in images])
    linked = linked_by(found, len(images))
    largest = np.bincount(linked).max(initial=0)
    usable = not found.too_many and largest <= max(_FEW, len(images) / 3)
    patients = np.unique([image.patient for image in images], return_inverse=True)[1]
    between = found.where(patients[found.first] != patients[found.second])
    account = NearDuplicates(
        pairs=tuple((images[i], images[j], s) for i, j, s in between.closest()),
        count=between.count,
        within_patients=found.count - between.count,
        policy=policy,
        grouped=usable and policy == "group",
        usable=usable,
    )
    if policy == "keep" or not usable:
        return list(images), [], account
    kept, excluded = _without_external(images, found)
    if policy == "drop":
        kept, more = _first_of_each(images, linked, {id(image) for image in kept})
        return kept, [*excluded, *more], account
    names = _groups(images, found)
    grouped = {id(i): replace(i, group=name) for i, name in zip(images, names, strict=True)}
    return [grouped[id(image)] for image in kept], excluded, account


def linked_by(found: Pairs, count: int) -> NDArray[np.integer]:
    """Return a number for each of ``count`` images, the same for those that pairs link."""
    ones = np.ones(len(found.first), np.int8)
    graph = coo_array((ones, (found.first, found.second)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _without_external(images: Sequence[Image], found: Pairs) -> tuple[list[Image], list[Excluded]]:
    like: dict[int, int] = {}
    for i, j in _both_ways(found):
        if images[i].split == "external" != images[j].split:
            like.setdefault(i, j)
    excluded = [
        left_out(images[i], f"nearly the same as {images[j].sample.source}")
        for i, j in sorted(like.items())
    ]
    return [image for i, image in enumerate(images) if i not in like], excluded


def _both_ways(found: Pairs) -> Iterator[tuple[int, int]]:
    for i, j in zip(found.first.tolist(), found.second.tolist(), strict=True):
        yield i, j
        yield j, i


def _first_of_each(
    images: Sequence[Image], linked: NDArray[np.integer], kept: Iterable[int]
) -> tuple[list[Image], list[Excluded]]:
    """Keep one of the images of each number, of those that are still there."""
    there = set(kept)
    members: dict[int, list[Image]] = defaultdict(list)
    for number, image in zip(linked.tolist(), images, strict=True):
        if id(image) in there:
            members[number].append(image)
    dropped: set[int] = set()
    excluded = []
    for copies in members.values():
        first, *others = sorted(copies, key=_precedence)
        dropped.update(map(id, others))
        excluded += [left_out(i, f"nearly the same as {first.sample.source}") for i in others]
    return [i for i in images if id(i) in there and id(i) not in dropped], excluded


def _groups(images: Sequence[Image], found: Pairs) -> list[str]:
    """Return the group of each image: the first, by name, of the patients that are linked."""
    names, of = np.unique([image.patient for image in images], return_inverse=True)
    shape = (len(names), len(names))
    ones = np.ones(len(found.first), np.int8)
    graph = coo_array((ones, (of[found.first], of[found.second])), shape=shape)
    component = connected_components(graph, directed=False)[1]
    lead = {number: names[k] for k, number in reversed(list(enumerate(component.tolist())))}
    return [str(lead[component[k]]) for k in of]
