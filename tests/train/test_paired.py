"""Two models on the same images are tested as the papers say."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from medtl_runtime.decision import OperatingPoint
from medtl_train.scoring.delong import paired_p_value
from medtl_train.scoring.paired import areas, decisions, holm
from medtl_train.scoring.scored import Scored


def model(chance: NDArray, labels: NDArray, images: int = 1) -> Scored:
    return Scored(
        labels=labels,
        probabilities=np.stack([1 - chance, chance], 1),
        patients=np.array([f"p{i // images}" for i in range(len(labels))]),
        classes=("healthy", "lesion"),
        point=OperatingPoint(rule="threshold", positive="lesion", threshold=0.5),
    )


def pair(n: int = 60, images: int = 1) -> tuple[Scored, Scored]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    first, second = (np.clip(0.5 * labels + 0.6 * rng.random(n) - 0.05, 0, 1) for _ in range(2))
    return model(first, labels, images), model(second, labels, images)


def test_decisions_are_compared_where_only_one_model_is_right() -> None:
    before, after = pair()
    right = [one.predicted == one.labels for one in (before, after)]
    only_first, only_this = (right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()
    found = decisions(before, after)
    assert (found["only_first"], found["only_this"]) == (only_first, only_this) != (0, 0)
    assert found["method"] == "McNemar, exact"
    expected = binomtest(int(only_first), int(only_first + only_this)).pvalue
    assert found["p"] == pytest.approx(expected)


def test_copies_of_the_same_images_prove_no_more() -> None:
    before, after = pair()
    again = np.repeat(np.arange(60), 4)
    copies = [
        replace(one, labels=one.labels[again], probabilities=one.probabilities[again],
                patients=one.patients[again])
        for one in (before, after)
    ]  # fmt: skip
    strangers = [replace(one, patients=np.arange(240).astype(str)) for one in copies]
    clustered, naive = decisions(*copies), decisions(*strangers)
    assert clustered["method"] == "McNemar for patients with several images"
    only_first, only_this = (decisions(before, after)[key] for key in ("only_first", "only_this"))
    normal = (only_this - only_first) / np.sqrt(only_first + only_this)
    assert clustered["p"] == pytest.approx(2 * norm.sf(abs(normal)))  # as without copies
    assert naive["p"] < clustered["p"]


def test_models_that_decide_alike_do_not_differ() -> None:
    before, _ = pair()
    assert decisions(before, before)["p"] == 1
    assert areas(before, before) == {"method": "DeLong", "p": 1.0}


def test_areas_are_tested_by_delong_where_it_holds() -> None:
    before, after = pair()
    chances = [one.probabilities[:, 1] for one in (before, after)]
    expected = paired_p_value(before.labels == 1, *chances)
    assert areas(before, after) == {"method": "DeLong", "p": pytest.approx(expected)}
    assert areas(*pair(images=2)) is None
    many = [replace(one, point=OperatingPoint()) for one in (before, after)]
    assert areas(*many) is None


def test_holm_multiplies_the_smallest_the_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([0.02]) == [0.02]
