"""Subgroups come from headers, tell nothing of few patients, and have intervals."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medtl_runtime.decision import OperatingPoint
from medtl_runtime.scan import Header
from medtl_train.evaluation.subgroups import (
    METRICS,
    MOST_VALUES,
    OF_GRADES,
    OF_VALUES,
    Subgroup,
    all_groups,
    evaluate_subgroups,
    subgroups,
)
from medtl_train.scoring.metrics import measure, measure_with_intervals
from medtl_train.scoring.scored import Scored, ScoredValues


def images(count: int, **fields: Any) -> list[Header]:
    """Return headers of so many patients, one image each."""
    return [Header(patient_id=f"{fields}-{i}", **fields) for i in range(count)]


def patients_of(headers: list[Header]) -> NDArray[np.str_]:
    return np.array([header.patient_id for header in headers])


def grouped(*parts: list[Header], least: int = 5) -> dict[tuple[str, str], int]:
    """Return the number of images of each group."""
    headers = [header for part in parts for header in part]
    found = subgroups(headers, patients_of(headers), patients_known=True, least_patients=least)
    return {(one.attribute, one.value): int(one.mask.sum()) for one in found}


def test_groups_are_by_modality_body_part_view_and_age() -> None:
    first = {"modality": "DX", "body_part_examined": "CHEST", "view_position": "PA"}
    second = {"modality": "CR", "body_part_examined": "ABDOMEN", "view_position": "AP"}
    found = grouped(images(6, **first, patient_age=30.0), images(7, **second, patient_age=70.0))
    assert found == {
        ("Modality", "CR"): 7,
        ("Modality", "DX"): 6,
        ("BodyPartExamined", "ABDOMEN"): 7,
        ("BodyPartExamined", "CHEST"): 6,
        ("ViewPosition", "AP"): 7,
        ("ViewPosition", "PA"): 6,
        ("PatientAge", "18 to 39 years"): 6,
        ("PatientAge", "60 to 79 years"): 7,
    }


def test_a_mask_marks_the_images_that_have_the_value() -> None:
    headers = [*images(5, modality="CT"), *images(5, modality="MR"), *images(5)]
    found = subgroups(headers, patients_of(headers), patients_known=True)
    masks = {one.value: one.mask.tolist() for one in found}
    assert masks == {"CT": [True] * 5 + [False] * 10, "MR": [False] * 5 + [True] * 5 + [False] * 5}


@pytest.mark.parametrize(
    ("age", "band"),
    [
        (0.0, "0 to 17 years"),
        (17.9, "0 to 17 years"),
        (18.0, "18 to 39 years"),
        (79.9, "60 to 79 years"),
        (104.0, "80 years or more"),
    ],
)
def test_ages_fall_into_bands(age: float, band: str) -> None:
    other = 50.0
    assert ("PatientAge", band) in grouped(images(5, patient_age=age), images(5, patient_age=other))


@pytest.mark.parametrize("age", [None, float("nan"), -1.0])
def test_an_image_without_a_usable_age_is_in_no_band(age: float | None) -> None:
    known = [images(5, patient_age=30.0), images(5, patient_age=50.0)]
    found = grouped(*known, images(5, patient_age=age))
    assert found == {("PatientAge", "18 to 39 years"): 5, ("PatientAge", "40 to 59 years"): 5}


def test_an_attribute_with_one_value_gives_no_group() -> None:
    assert grouped(images(20, modality="CT")) == {}
    assert grouped(images(20, modality="CT"), images(20)) == {}


def test_images_without_headers_give_no_group() -> None:
    assert grouped([Header(patient_id=str(i)) for i in range(20)]) == {}


def test_a_group_is_of_patients_and_not_of_images() -> None:
    others = [images(5, modality="CT"), images(5, modality="MR")]
    many_of_one = [Header(patient_id="one", modality="US")] * 50
    assert ("Modality", "US") not in grouped(*others, many_of_one)


def test_a_small_group_is_left_out() -> None:
    big = [images(9, modality="CT"), images(8, modality="MR")]
    small = [images(4, modality="US"), images(3, modality="XA")]
    assert grouped(*big, *small) == {("Modality", "CT"): 9, ("Modality", "MR"): 8}


def test_a_small_group_cannot_be_had_by_subtraction() -> None:
    parts = [images(9, modality="CT"), images(8, modality="MR"), images(2, modality="US")]
    # With both of the others, all images less theirs are those of two patients.
    assert grouped(*parts) == {("Modality", "CT"): 9}
    assert grouped(images(9, modality="CT"), images(2, modality="MR")) == {}


def test_images_without_a_value_cannot_be_had_by_subtraction_either() -> None:
    parts = [images(9, modality="CT"), images(8, modality="MR")]
    assert len(grouped(*parts)) == 2
    assert len(grouped(*parts, images(1))) == 1
    assert len(grouped(*parts, images(5))) == 2


def test_free_text_is_no_group_whoever_has_it() -> None:
    typed = images(30, body_part_examined="Doe^Jane 1950")
    found = grouped(typed, images(9, body_part_examined="LIVER"))
    assert found == {("BodyPartExamined", "LIVER"): 9}


def test_without_known_patients_there_are_no_groups() -> None:
    headers = [*images(50, modality="CT"), *images(50, modality="MR")]
    assert subgroups(headers, patients_of(headers), patients_known=False) == []


def scored(n: int = 60, k: int = 2) -> Scored:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, k, n)
    chances = rng.dirichlet(np.ones(k), n) * 0.5 + np.eye(k)[labels] * 0.3 + 0.2 / k
    point = OperatingPoint(rule="threshold", positive="b", threshold=0.4)
    return Scored(
        labels=labels,
        probabilities=chances,
        patients=np.array([f"p{i // 3}" for i in range(n)]),
        classes=tuple("abcdef"[:k]),
        point=point if k == 2 else OperatingPoint(),
    )


def part(mask: NDArray[np.bool_]) -> Subgroup:
    return Subgroup(attribute="Modality", value="CT", mask=mask)


@pytest.mark.parametrize("k", [2, 3])
def test_the_rows_are_the_metrics_of_the_part_with_their_intervals(k: int) -> None:
    whole, mask = scored(k=k), np.arange(60) < 30
    (row,) = evaluate_subgroups(whole, [part(mask)], seed=3, resamples=50)
    inside = replace(
        whole,
        labels=whole.labels[:30],
        probabilities=whole.probabilities[:30],
        patients=whole.patients[:30],
    )
    expected = measure_with_intervals(inside, seed=3, resamples=50)
    assert row["metrics"] == {name: expected[name] for name in METRICS}
    assert {name: one["value"] for name, one in row["metrics"].items()} == {
        name: value for name, value in measure(inside).items() if name in METRICS
    }
    others = measure_with_intervals(whole, seed=3, resamples=50)
    assert row["metrics"] != {name: others[name] for name in METRICS}
    assert (row["images"], row["patients"], row["resamples"]) == (30, 10, 50)
    assert (row["attribute"], row["value"]) == ("Modality", "CT")


def test_what_is_not_defined_is_null() -> None:
    whole = scored()
    (row,) = evaluate_subgroups(whole, [part(whole.labels == 1)], seed=0, resamples=20)
    nothing = {"value": None, "low": None, "high": None}
    assert row["metrics"]["auroc"] == row["metrics"]["specificity"] == nothing
    assert row["metrics"]["balanced_accuracy"] == nothing
    assert row["metrics"]["recall"]["value"] is not None
    json.dumps(row, allow_nan=False)


def test_a_group_of_few_patients_is_marked_as_small() -> None:
    whole = replace(scored(), patients=np.arange(60).astype(str))
    rows = evaluate_subgroups(
        whole, [part(np.arange(60) < n) for n in (19, 20)], seed=0, resamples=5
    )
    assert [row["small"] for row in rows] == [True, False]


def test_a_group_without_images_has_no_row() -> None:
    assert evaluate_subgroups(scored(), [part(np.zeros(60, bool))], seed=0, resamples=5) == []


def test_grades_and_values_have_rows_of_their_own_figures() -> None:
    grades = replace(scored(k=3), point=OperatingPoint(rule="median"))
    values = ScoredValues(
        values=np.arange(60.0), predicted=np.arange(60.0) ** 1.1, patients=grades.patients
    )
    for answers, names in ((grades, OF_GRADES), (values, OF_VALUES)):
        (row,) = evaluate_subgroups(answers, [part(np.arange(60) < 30)], seed=0, resamples=5)
        assert tuple(row["metrics"]) == names
        expected = measure(replace_part(answers))
        assert row["metrics"][names[0]]["value"] == pytest.approx(expected[names[0]])


def replace_part(answers: Scored | ScoredValues) -> Scored | ScoredValues:
    fields = {k: v[:30] for k, v in vars(answers).items() if isinstance(v, np.ndarray)}
    return replace(answers, **fields)


# --- covariates ----------------------------------------------------------------------------------


def by_covariate(name: str, texts: list[str]) -> dict[str, list[int]]:
    """Return the images of each group."""
    headers = [Header() for _ in texts]
    found = all_groups(headers, [{name: text} for text in texts])
    assert {one.attribute for one in found} <= {name}
    return {one.value: np.flatnonzero(one.mask).tolist() for one in found}


def test_values_of_a_covariate_are_groups_and_an_empty_one_is_in_none() -> None:
    assert by_covariate("sex", ["F", "M", "F", "", "M"]) == {"F": [0, 2], "M": [1, 4]}


def test_a_covariate_with_one_value_gives_no_group() -> None:
    assert by_covariate("site", ["a", "a", ""]) == {}


def test_only_the_most_frequent_of_many_values_are_groups() -> None:
    texts = [f"site {i:02d}" for i in range(20) for _ in range(i + 1)]
    found = by_covariate("site", texts)
    assert list(found) == [f"site {i:02d}" for i in range(20 - MOST_VALUES, 20)]


def test_ages_are_divided_in_bands_and_other_numbers_in_thirds() -> None:
    ages = [str(age) for age in range(10, 90, 4)]
    bands = by_covariate("Age", ages)
    assert list(bands) == [
        "0 to 17 years", "18 to 39 years", "40 to 59 years", "60 to 79 years", "80 years or more"
    ]  # fmt: skip
    assert sum(map(len, bands.values())) == len(ages)
    doses = by_covariate("dose", [str(0.5 * i) for i in range(30)])
    assert [len(images) for images in doses.values()] == [10, 10, 10]
    assert next(iter(doses)) == "up to 4.83333"


def test_few_different_numbers_are_groups_of_their_own() -> None:
    assert by_covariate("tesla", ["1.5", "3", "1.5"]) == {"1.5": [0, 2], "3": [1]}


def test_small_groups_of_headers_are_there_where_the_data_stay() -> None:
    headers = [*images(9, modality="CT"), *images(2, modality="MR")]
    found = all_groups(headers, [{} for _ in headers])
    assert {one.value: int(one.mask.sum()) for one in found} == {"CT": 9, "MR": 2}


def test_free_text_of_a_header_is_no_group_where_the_data_stay_either() -> None:
    headers = [*images(9, body_part_examined="LIVER"), *images(3, body_part_examined="Doe^Jane")]
    assert all_groups(headers, [{} for _ in headers]) == []
