"""What makes up for rare classes is counted right."""

import numpy as np
import pytest

from medtl_runtime.heads import Head
from medtl_train.fitting.imbalance import (
    class_counts,
    class_weights,
    prior_logits,
    sampling_weights,
)

NAN = np.nan
ORGAN = Head(name="organ", classes=("a", "b", "c"))
CYST = Head(name="cyst", kind="binary", classes=("absent", "present"))
GRADE = Head(name="grade", kind="ordinal", classes=("0", "1", "2"))
SIZE = Head(name="size", kind="regression")


def test_classes_are_counted_where_they_are_known_and_as_one_where_they_are_not() -> None:
    assert class_counts(ORGAN, np.array([0, 0, NAN, 1, NAN])).tolist() == [2, 1, 1]


def test_balanced_weights_average_one_over_the_images() -> None:
    labels = np.array([0.0] * 6 + [1] * 3 + [2])
    weights = class_weights(ORGAN, labels)
    np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 10 / 3])
    assert weights[labels.astype(int)].mean() == pytest.approx(1)


@pytest.mark.parametrize("head", [ORGAN, CYST, GRADE], ids=lambda head: head.kind)
def test_prior_logits_give_the_frequencies(head: Head) -> None:
    targets = np.array([0.0] * 5 + [1] * 3)
    if len(head.classes) == 3:
        targets = np.append(targets, [2, 2, NAN])
    counts = class_counts(head, targets)
    found = head.probabilities(prior_logits(head, targets))
    np.testing.assert_allclose(found, counts / counts.sum())


def test_classes_are_drawn_equally_often() -> None:
    targets = np.array([0.0] * 6 + [1] * 3 + [2])[:, None]
    chances = sampling_weights([ORGAN], targets)
    assert chances.sum() == pytest.approx(1)
    by_class = [chances[targets[:, 0] == k].sum() for k in range(3)]
    np.testing.assert_allclose(by_class, 1 / 3)


def test_of_several_heads_the_mean_counts_and_the_unknown_are_average() -> None:
    targets = np.array([[0, 1, 5.0], [0, 0, 1.0], [1, NAN, 2.0], [0, NAN, NAN]])
    chances = sampling_weights([Head(name="x", classes=("a", "b")), CYST, SIZE], targets)
    first = np.array([4 / 6, 4 / 6, 4 / 2, 4 / 6])
    np.testing.assert_allclose(chances, (first + 1) / (first + 1).sum())
