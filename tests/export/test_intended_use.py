"""The contract says what the training images held, and the configuration has the last word."""

import tomllib
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from medtl_export.intended_use import edits, intended_use, learned_rules
from medtl_runtime.errors import ScanOutOfScope, UsageError
from medtl_runtime.intended_use import IntendedUse, Mismatch, Rule
from medtl_runtime.scan import Header
from medtl_train.data.headers import summarise

CT: dict[str, Any] = {
    "modality": "CT",
    "transfer_syntax_uid": "1.2.840.10008.1.2.1",
    "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
    "photometric_interpretation": "MONOCHROME2",
    "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
    "body_part_examined": "LIVER",
    "view_position": "AP",
    "presentation_intent_type": "FOR PRESENTATION",
    "rows": 512,
    "columns": 256,
    "pixel_spacing": (0.5, 0.8),
    "patient_age": 40.0,
}
CASES = [
    Header(**CT, patient_id="1"),
    Header(**(CT | {"patient_age": 61.5, "rows": 300}), patient_id="2"),
]


def learned(*headers: Header) -> IntendedUse:
    return intended_use(summarise(headers), {})


def verdict(use: IntendedUse, **changes: Any) -> tuple[str, ...]:
    """Return the attributes that are warned of, or the one that is rejected with a mark."""
    try:
        found: tuple[Mismatch, ...] = use.check(Header(**(CT | changes)), "a.dcm")
    except ScanOutOfScope as refused:
        return (f"{refused.attribute}!",)
    return tuple(one.attribute for one in found)


def test_what_training_saw_passes_without_a_word() -> None:
    use = learned(*CASES)
    assert [use.check(header, "a.dcm") for header in CASES] == [(), ()]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"modality": "MR"}, "Modality!"),
        ({"modality": ""}, "Modality!"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7"}, "SOPClassUID"),
        ({"sop_class_uid": ""}, "SOPClassUID"),
        ({"body_part_examined": "CHEST"}, "BodyPartExamined"),
        ({"body_part_examined": ""}, "BodyPartExamined"),
        ({"view_position": "PA"}, "ViewPosition"),
        ({"photometric_interpretation": "MONOCHROME1"}, "PhotometricInterpretation"),
        ({"presentation_intent_type": "FOR PROCESSING"}, "PresentationIntentType!"),
        ({"burned_in_annotation": "YES"}, "BurnedInAnnotation"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "ImageType!"),
        ({"rows": 149}, "Rows"),
        ({"rows": 1025}, "Rows"),
        ({"columns": 127}, "Columns"),
        ({"pixel_spacing": (0.2, 0.8)}, "PixelSpacing"),
        ({"pixel_spacing": (0.5, 1.7)}, "PixelSpacing"),
        ({"pixel_spacing": None}, "PixelSpacing"),
        ({"patient_age": 29.0}, "PatientAge"),
        ({"patient_age": 81.0}, "PatientAge"),
    ],
)
def test_what_training_did_not_see_is_warned_of_or_rejected(
    changes: dict[str, Any], expected: str
) -> None:
    assert verdict(learned(*CASES), **changes) == (expected,)


@pytest.mark.parametrize(
    "changes",
    [
        {"presentation_intent_type": ""},
        {"burned_in_annotation": "NO"},
        {"burned_in_annotation": ""},
        {"image_type": ()},
        {"image_type": ("DERIVED", "SECONDARY")},
        {"rows": 150},
        {"rows": 1024},
        {"pixel_spacing": (0.25, 1.6)},
        {"patient_age": None},
        {"patient_age": 30.0},
        {"patient_age": 80.0},
    ],
)
def test_what_is_near_or_often_missing_passes(changes: dict[str, Any]) -> None:
    assert verdict(learned(*CASES), **changes) == ()


def test_what_one_training_image_lacked_may_be_missing() -> None:
    lacking = CT | {"modality": "", "body_part_examined": "", "pixel_spacing": None}
    use = learned(*CASES, Header(**lacking))
    assert verdict(use, modality="", body_part_examined="", pixel_spacing=None) == ()
    assert verdict(use, modality="MR") == ("Modality!",)


def test_what_training_saw_of_the_forbidden_is_not_forbidden() -> None:
    seen = CT | {
        "image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER"),
        "presentation_intent_type": "FOR PROCESSING",
        "burned_in_annotation": "YES",
    }
    use = learned(*CASES, Header(**seen))
    assert use.check(Header(**seen), "a.dcm") == ()


def test_of_images_without_headers_only_the_size_is_learned() -> None:
    assert learned_rules(summarise([Header(), Header()])) == ()
    use = learned(Header(rows=64, columns=80), Header(rows=64, columns=64))
    assert [rule.attribute for rule in use.rules] == ["Rows", "Columns"]
    assert use.check(Header(**CT), "a.dcm")[0].attribute == "Rows"


def test_great_ages_have_no_upper_bound() -> None:
    use = learned(Header(**(CT | {"patient_age": 70.0})), Header(**(CT | {"patient_age": 97.0})))
    [rule] = [rule for rule in use.rules if rule.attribute == "PatientAge"]
    assert (rule.low, rule.high) == (60, None)
    assert verdict(use, patient_age=104.0) == ()


@pytest.mark.parametrize(
    ("youngest", "low"),
    [(25.0, 18), (18.0, 18), (29.9, 18), (30.0, 20), (17.0, 0), (4.0, 0), (40.5, 30), (49.0, 30)],
)
def test_where_no_child_was_seen_children_are_warned_of(youngest: float, low: int) -> None:
    use = learned(Header(**(CT | {"patient_age": youngest})))
    [rule] = [rule for rule in use.rules if rule.attribute == "PatientAge"]
    assert rule.low == low


@pytest.mark.parametrize(
    ("ages", "bounds"),
    [((47, 63), (30, 80)), ((41.2, 69.9), (30, 80)), ((40, 70), (30, 80)), ((2, 5), (0, 20))],
)
def test_bounds_of_ages_are_whole_decades_and_tell_no_age(
    ages: tuple[float, float], bounds: tuple[int, int]
) -> None:
    use = learned(*(Header(**(CT | {"patient_age": float(age)})) for age in ages))
    [rule] = [rule for rule in use.rules if rule.attribute == "PatientAge"]
    assert (rule.low, rule.high) == bounds


def test_a_body_part_of_one_patient_is_in_no_rule() -> None:
    use = learned(*CASES, Header(**(CT | {"body_part_examined": "SMITH JOHN"}), patient_id="3"))
    [rule] = [rule for rule in use.rules if rule.attribute == "BodyPartExamined"]
    assert rule.values == ("LIVER",)
    assert (rule.mismatch, rule.missing) == ("warn", "warn")


def test_the_configuration_replaces_adds_and_removes_rules() -> None:
    table = {
        "Modality": {"values": ["CT", "MR"], "missing": "allow"},
        "BurnedInAnnotation": {"forbidden": ["YES"], "missing": "allow"},
        "PatientAge": {"low": 18},
        "Rows": False,
    }
    use = intended_use(summarise(CASES), table)
    rules = {rule.attribute: rule for rule in use.rules}
    assert rules["Modality"] == Rule(
        attribute="Modality", values=("CT", "MR"), mismatch="reject", missing="allow"
    )
    assert "Rows" not in rules
    assert "Columns" in rules
    assert verdict(use, modality="MR", rows=1) == ()
    assert verdict(use, burned_in_annotation="YES") == ("BurnedInAnnotation!",)
    assert verdict(use, patient_age=17.0) == ("PatientAge!",)
    assert verdict(use, patient_age=99.0) == ()


def test_the_example_in_the_documentation_is_right() -> None:
    page = (Path(__file__).parents[2] / "docs" / "model-file.md").read_text(encoding="utf-8")
    lines = page.partition("    [intended_use]\n")[2].splitlines()
    example = [line[4:] for line in takewhile(lambda line: not line or line[0] == " ", lines)]
    rules = edits(tomllib.loads("\n".join(["[intended_use]", *example]))["intended_use"])
    assert rules["Rows"] is None
    assert rules["Modality"] == Rule(attribute="Modality", values=("CT",), missing="reject")
    assert set(rules) == {"Rows", "Columns", "Modality", "ImageType", "PatientAge"}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("CT", "expected a table such as"),
        ({"PatientName": {"values": ["X"]}}, "intended_use.PatientName: unknown attribute"),
        ({"modality": {"values": ["CT"]}}, "intended_use.modality: unknown attribute"),
        ({"Modality": "CT"}, "intended_use.Modality: expected false or a table"),
        ({"Modality": True}, "expected false or a table"),
        ({"Modality": {"attribute": "Rows"}}, "expected false or a table"),
        ({"Modality": {"value": ["CT"]}}, "Modality: unknown field value"),
        ({"Modality": {"low": 3}}, "Modality: low for codes"),
        ({"PatientAge": {"low": "old"}}, "PatientAge: low is 'old'"),
        ({"Rows": {"missing": "fail"}}, "Rows: missing is fail"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(table: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        edits(table)
