"""No patient is in two splits, the classes are balanced, and the fractions are met."""

from collections.abc import Mapping

import numpy as np
import pytest

from medtl_runtime.heads import Head
from medtl_train.data.splits import fold_numbers, folds_by_patient, split_by_patient, strata_of
from medtl_train.errors import DataUnfit

BOTH = {"val": 0.15, "test": 0.15}


def patients_of(*classes: int, images: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and patients: so many patients of each class, with several images each."""
    labels = np.repeat(np.repeat(np.arange(len(classes)), classes), images)
    patients = np.array([f"p{i // images}" for i in range(len(labels))])
    return labels, patients


def split(labels: np.ndarray, patients: np.ndarray, fractions: Mapping, seed: int) -> np.ndarray:
    found = split_by_patient(labels=labels, patients=patients, fractions=fractions, seed=seed)
    return np.array(found)


@pytest.mark.parametrize("seed", range(8))
def test_no_patient_is_in_two_splits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, 60, 400).astype(str)  # images of a patient are not neighbours
    labels = rng.integers(0, 3, 400)  # and a patient may have images of several classes
    found = split(labels, patients, BOTH, seed)
    for patient in np.unique(patients):
        assert len(set(found[patients == patient])) == 1
    assert set(found) == {"train", "val", "test"}


@pytest.mark.parametrize("seed", range(5))
def test_each_split_has_the_classes_in_the_share_of_the_whole(seed: int) -> None:
    labels, patients = patients_of(300, 100, 40, images=2)
    found = split(labels, patients, BOTH, seed)
    whole = np.bincount(labels) / len(labels)
    for name in ("train", "val", "test"):
        share = np.bincount(labels[found == name]) / (found == name).sum()
        np.testing.assert_allclose(share, whole, atol=0.03)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.49])
def test_the_fraction_that_was_asked_for_is_held_out(share: float) -> None:
    labels, patients = patients_of(500, 500)
    found = split(labels, patients, {"val": share}, 0)
    assert abs((found == "val").mean() - share) < 0.02


@pytest.mark.parametrize(("val", "test"), [(0.15, 0.15), (0.2, 0.3), (0.4, 0.4), (0.1, 0.45)])
def test_both_fractions_are_of_the_whole(val: float, test: float) -> None:
    labels, patients = patients_of(500, 500)
    found = split(labels, patients, {"val": val, "test": test}, 0)
    assert abs((found == "val").mean() - val) < 0.03
    assert abs((found == "test").mean() - test) < 0.03


def test_the_seed_decides_and_nothing_else() -> None:
    labels, patients = patients_of(50, 50)
    first = split(labels, patients, BOTH, 1)
    np.testing.assert_array_equal(first, split(labels, patients, BOTH, 1))
    assert (first != split(labels, patients, BOTH, 2)).any()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("classes", [(4, 4), (6, 6), (100, 5), (100, 3), (30, 30, 4)])
def test_few_patients_or_a_rare_class_still_reach_every_split(
    classes: tuple[int, ...], seed: int
) -> None:
    labels, patients = patients_of(*classes, images=2)
    found = split(labels, patients, BOTH, seed)
    for name in ("train", "val", "test"):
        assert set(labels[found == name]) == set(range(len(classes))), name
    assert (found == "train").mean() >= 0.4


@pytest.mark.parametrize("seed", range(10))
def test_a_class_of_two_patients_is_in_training_and_validation(seed: int) -> None:
    labels, patients = patients_of(50, 2, images=2)
    found = split(labels, patients, BOTH, seed)
    assert (labels[found == "train"] == 1).any()
    assert (labels[found == "val"] == 1).any()


def test_splitting_is_silent(recwarn: pytest.WarningsRecorder) -> None:
    split(*patients_of(100, 3), BOTH, 0)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("labels", "patients"),
    [
        ([0, 0, 1, 1], ["a", "a", "a", "a"]),
        ([0, 0, 1, 1], ["a", "a", "b", "b"]),
        ([0, 1, 2], ["a", "b", "c"]),
    ],
)
def test_too_few_patients_are_refused(labels: list[int], patients: list[str]) -> None:
    with pytest.raises(DataUnfit, match="patients"):
        split(np.array(labels), np.array(patients), BOTH, 0)


def test_strata_of_one_head_are_its_classes() -> None:
    head = Head(name="f", classes=("a", "b", "c"))
    targets = np.array([[2.0], [0.0], [1.0]])
    assert strata_of(targets, (head,)).tolist() == [2, 0, 1]


def test_strata_of_values_are_their_fifths() -> None:
    head = Head(name="v", kind="regression")
    values = np.random.default_rng(0).lognormal(0, 2, 1000)
    strata = strata_of(values[:, None], (head,))
    assert np.bincount(strata).tolist() == [200] * 5
    order = np.argsort(values)
    assert (np.diff(strata[order]) >= 0).all()


def test_an_image_of_several_heads_counts_by_its_rarest_known_answer() -> None:
    heads = tuple(Head(name=n, kind="binary", classes=("absent", "present")) for n in "ab")
    targets = np.array([[0, 0]] * 10 + [[1, 0]] * 5 + [[1, 1]] * 2 + [[np.nan, 0]] * 3, float)
    strata = strata_of(targets, heads)
    # Levels: a absent 0, a present 1, b absent 2, b present 3.
    assert strata.tolist() == [0] * 10 + [1] * 5 + [3] * 2 + [2] * 3


def test_rare_findings_reach_every_split_in_their_share() -> None:
    rng = np.random.default_rng(0)
    prevalence = np.array([0.02, 0.05, 0.1, 0.3])
    targets = (rng.random((2000, 4)) < prevalence).astype(float)
    heads = tuple(Head(name=n, kind="binary", classes=("absent", "present")) for n in "abcd")
    patients = np.array([f"p{k // 2}" for k in range(2000)])
    found = split(strata_of(targets, heads), patients, BOTH, 0)
    for name in ("val", "test"):
        share = targets[found == name].mean(axis=0)
        np.testing.assert_allclose(share, targets.mean(axis=0), atol=0.02)
        assert share[0] > 0.5 * targets[:, 0].mean()


@pytest.mark.parametrize("folds", [2, 5])
def test_every_image_is_tested_in_one_fold_and_no_patient_is_in_two_splits(folds: int) -> None:
    labels, patients = patients_of(60, 40, images=3)
    made = folds_by_patient(labels=labels, patients=patients, folds=folds, val_fraction=0.2, seed=0)
    table = np.array(made)
    assert table.shape == (folds, len(labels))
    assert ((table == "test").sum(axis=0) == 1).all()
    for splits in table:
        for patient in np.unique(patients):
            assert len(set(splits[patients == patient])) == 1
        assert abs((splits == "val").mean() - 0.2) < 0.05
        assert abs((splits == "test").mean() - 1 / folds) < 0.05
        for name in ("train", "val", "test"):
            share = (labels[splits == name] == 1).mean()
            assert abs(share - 0.4) < 0.1


def test_folds_are_those_of_their_seed() -> None:
    labels, patients = patients_of(30, 30)
    given = {"labels": labels, "patients": patients, "folds": 3}
    first = fold_numbers(**given, seed=1)
    assert (first == fold_numbers(**given, seed=1)).all()
    assert (first != fold_numbers(**given, seed=2)).any()
    assert set(first) == {0, 1, 2}


@pytest.mark.parametrize(("patients", "folds"), [(4, 5), (2, 3)])
def test_more_folds_than_patients_are_refused(patients: int, folds: int) -> None:
    labels = np.zeros(40, int)
    of = np.array([f"p{k % patients}" for k in range(40)])
    with pytest.raises(DataUnfit, match=f"{patients} patients cannot make {folds} folds"):
        fold_numbers(labels=labels, patients=of, folds=folds, seed=0)
