"""What the model was not made for is refused or warned of, and a missing value is no pass."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest

from medtl_runtime.dicom import read_dicom
from medtl_runtime.errors import ScanOutOfScope, UsageError
from medtl_runtime.intended_use import ATTRIBUTES, IntendedUse, Mismatch, Rule, values_of
from medtl_runtime.scan import Header

CT = Header(
    modality="CT",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    body_part_examined="LIVER",
    view_position="AP",
    photometric_interpretation="MONOCHROME2",
    presentation_intent_type="FOR PRESENTATION",
    burned_in_annotation="NO",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    rows=512,
    columns=256,
    pixel_spacing=(0.7, 0.8),
    patient_age=54.0,
)


def use(**fields: Any) -> IntendedUse:
    return IntendedUse(rules=(Rule(**fields),))


@pytest.mark.parametrize(
    ("accepting", "refusing"),
    [
        ({"attribute": "Modality", "values": ("CT", "PT")}, {"values": ("MR",)}),
        ({"attribute": "Modality", "values": ("ct",)}, {"values": ("ctx",)}),
        ({"attribute": "Modality", "forbidden": ("MR",)}, {"forbidden": ("MR", "CT")}),
        ({"attribute": "SOPClassUID", "values": (CT.sop_class_uid,)}, {"values": ("1.2",)}),
        ({"attribute": "BodyPartExamined", "values": ("LIVER",)}, {"values": ("LIV",)}),
        ({"attribute": "ViewPosition", "values": ("AP",)}, {"values": ("PA",)}),
        (
            {"attribute": "PhotometricInterpretation", "values": ("MONOCHROME2",)},
            {"values": ("MONOCHROME1",)},
        ),
        (
            {"attribute": "PresentationIntentType", "forbidden": ("FOR PROCESSING",)},
            {"forbidden": ("FOR PRESENTATION",)},
        ),
        ({"attribute": "BurnedInAnnotation", "forbidden": ("YES",)}, {"forbidden": ("NO",)}),
        ({"attribute": "ImageType", "values": ("AXIAL", "CORONAL")}, {"values": ("CORONAL",)}),
        (
            {"attribute": "ImageType", "forbidden": ("LOCALIZER",)},
            {"values": ("PRIMARY",), "forbidden": ("AXIAL",)},
        ),
        ({"attribute": "Rows", "low": 512}, {"low": 513}),
        ({"attribute": "Columns", "high": 256}, {"high": 255}),
        ({"attribute": "PixelSpacing", "low": 0.7, "high": 0.8}, {"low": 0.75}),
        ({"attribute": "PixelSpacing", "high": 0.8}, {"high": 0.75}),
        ({"attribute": "PatientAge", "low": 18, "high": 54}, {"low": 55, "high": 99}),
    ],
)
def test_a_rule_accepts_its_values_and_refuses_others(
    accepting: dict[str, Any], refusing: dict[str, Any]
) -> None:
    assert use(**accepting).check(CT, "a.dcm") == ()
    attribute = accepting["attribute"]
    with pytest.raises(ScanOutOfScope, match=r"^a\.dcm: ") as refused:
        use(attribute=attribute, **refusing).check(CT, "a.dcm")
    assert refused.value.attribute == attribute
    assert refused.value.status == "refused"
    assert refused.value.found is not None
    assert refused.value.expected


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize("header", [Header(), Header(transfer_syntax_uid="1.2.840.10008.1.2")])
def test_a_missing_value_is_no_pass(attribute: str, header: Header) -> None:
    with pytest.raises(ScanOutOfScope, match=f"{attribute} is missing") as refused:
        use(attribute=attribute, missing="reject").check(header, "a.png")
    assert refused.value.found is None
    [warning] = use(attribute=attribute, missing="warn").check(header, "a.png")
    assert (warning.attribute, warning.found, warning.action) == (attribute, None, "warn")
    assert use(attribute=attribute, missing="allow").check(header, "a.png") == ()


def test_the_size_of_an_image_without_a_header_is_checked_where_it_is_known() -> None:
    rule = {"attribute": "Rows", "low": 64, "missing": "reject"}
    assert use(**rule).check(Header(rows=64), "a.png") == ()
    with pytest.raises(ScanOutOfScope, match="Rows is 32; expected 64 or more pixels"):
        use(**rule).check(Header(rows=32), "a.png")


@pytest.mark.parametrize(("action", "count"), [("allow", 0), ("warn", 1)])
def test_a_mismatch_has_the_consequence_that_the_rule_states(action: Any, count: int) -> None:
    found = use(attribute="Modality", values=("MR",), mismatch=action).check(CT, "a.dcm")
    assert len(found) == count


def test_the_first_rejection_is_named_and_warnings_keep_the_order_of_the_rules() -> None:
    rules = (
        Rule(attribute="Rows", high=64, mismatch="warn"),
        Rule(attribute="ViewPosition", values=("PA",), mismatch="warn"),
        Rule(attribute="Modality", values=("MR",)),
        Rule(attribute="PatientAge", high=17),
    )
    with pytest.raises(ScanOutOfScope, match="Modality is CT; expected MR"):
        IntendedUse(rules=rules).check(CT, "a.dcm")
    found = IntendedUse(rules=rules[:2]).check(CT, "a.dcm")
    assert [one.attribute for one in found] == ["Rows", "ViewPosition"]


def test_both_values_of_the_spacing_count() -> None:
    wide = replace(CT, pixel_spacing=(0.5, 3.0))
    with pytest.raises(ScanOutOfScope, match=r"PixelSpacing is 0\.5 x 3; expected 0\.2 to 1 mm"):
        use(attribute="PixelSpacing", low=0.2, high=1).check(wide, "a.dcm")


def test_not_a_number_is_in_no_range() -> None:
    with pytest.raises(ScanOutOfScope):
        use(attribute="PatientAge", low=18).check(replace(CT, patient_age=float("nan")), "a.dcm")


@pytest.mark.parametrize(
    ("rule", "planted"),
    [
        ({"attribute": "PatientAge", "low": 60}, {"patient_age": 54.0}),
        ({"attribute": "BodyPartExamined", "values": ("LIVER",)}, {"body_part_examined": "DOE"}),
        ({"attribute": "ViewPosition", "values": ("AP",)}, {"view_position": "DOE^JANE"}),
        ({"attribute": "ImageType", "values": ("AXIAL",)}, {"image_type": ("DOE^JANE",)}),
        ({"attribute": "Modality", "values": ("CT",)}, {"modality": "DOE^JANE"}),
    ],
)
def test_reasons_tell_nothing_of_the_patient_and_results_tell_what_was_found(
    rule: dict[str, Any], planted: dict[str, Any]
) -> None:
    with pytest.raises(ScanOutOfScope) as refused:
        use(**rule).check(replace(CT, **planted), "a.dcm")
    [value] = planted.values()
    value = value[0] if isinstance(value, tuple) else value
    assert refused.value.found == value
    for secret in ("DOE", "JANE", "54"):
        assert secret not in refused.value.reason


RULES = (
    Rule(attribute="Modality", values=("CT",), missing="reject"),
    Rule(attribute="ImageType", forbidden=("LOCALIZER",), missing="allow"),
    Rule(attribute="PixelSpacing", low=0.25, high=2.0, mismatch="warn"),
    Rule(attribute="PatientAge", low=18),
)


def test_the_intended_use_survives_json() -> None:
    text = json.dumps(IntendedUse(rules=RULES).to_json())
    assert IntendedUse.from_json(json.loads(text)) == IntendedUse(rules=RULES)
    assert IntendedUse.from_json(IntendedUse().to_json()) == IntendedUse()


def test_a_mismatch_is_json() -> None:
    found = use(attribute="PixelSpacing", high=0.5, mismatch="warn").check(CT, "a.dcm")
    assert json.loads(json.dumps([one.to_json() for one in found])) == [
        {
            "attribute": "PixelSpacing",
            "found": [0.7, 0.8],
            "expected": "at most 0.5 mm",
            "action": "warn",
        }
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "malformed"),
        ({}, "malformed"),
        ({"rules": {}}, "rules is no list"),
        ({"rules": [], "more": 1}, "malformed"),
        ({"rules": ["Modality"]}, "without an attribute"),
        ({"rules": [{"values": ["CT"]}]}, "without an attribute"),
        ({"rules": [{"attribute": 3}]}, "without an attribute"),
        ({"rules": [{"attribute": "PatientName"}]}, "PatientName: unknown attribute"),
        ({"rules": [{"attribute": "Modality", "value": ["CT"]}]}, "unknown field value"),
        ({"rules": [{"attribute": "Modality", "values": "CT"}]}, "values is no list of texts"),
        ({"rules": [{"attribute": "Modality", "values": [1]}]}, "values is no list of texts"),
        ({"rules": [{"attribute": "Modality", "mismatch": "refuse"}]}, "mismatch is refuse"),
        ({"rules": [{"attribute": "Modality", "missing": None}]}, "missing is None"),
        ({"rules": [{"attribute": "Modality", "missing": []}]}, "missing is "),
        ({"rules": [{"attribute": "Modality", "low": 1}]}, "low for codes"),
        ({"rules": [{"attribute": "Rows", "values": ["512"]}]}, "codes for a number"),
        ({"rules": [{"attribute": "Rows", "low": "1"}]}, "low is '1'; expected a number"),
        ({"rules": [{"attribute": "Rows", "high": True}]}, "high is True; expected a number"),
        ({"rules": [{"attribute": "Rows", "high": float("inf")}]}, "expected a number"),
        ({"rules": [{"attribute": "Rows", "low": 2, "high": 1}]}, "low is above high"),
        ({"rules": [{"attribute": "Rows"}, {"attribute": "Rows"}]}, "two rules for Rows"),
    ],
)
def test_a_malformed_contract_is_refused_by_name(data: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        IntendedUse.from_json(data)


def test_values_are_read_from_real_headers(real: Callable[[str], Path]) -> None:
    """pydicom's own view of the files is the reference."""
    for name in ("CT_small.dcm", "MR_small.dcm"):
        dataset, header = pydicom.dcmread(real(name)), read_dicom(real(name), name).header
        assert values_of(header, "Modality") == (dataset.Modality,)
        assert values_of(header, "SOPClassUID") == (dataset.SOPClassUID,)
        assert list(values_of(header, "ImageType")) == list(dataset.ImageType)
        assert list(values_of(header, "PixelSpacing")) == list(map(float, dataset.PixelSpacing))
        assert values_of(header, "Rows") == (dataset.Rows,)
        assert values_of(header, "ViewPosition") == ()


def test_a_real_localizer_is_refused(changed: Callable[..., pydicom.Dataset]) -> None:
    from medtl_runtime.dicom import scan_of

    contract = use(attribute="ImageType", forbidden=("LOCALIZER",))
    kept = scan_of(changed("CT_small.dcm"))
    assert contract.check(kept.header, "a.dcm") == ()
    localizer = scan_of(changed("CT_small.dcm", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    with pytest.raises(ScanOutOfScope, match="expected not LOCALIZER"):
        contract.check(localizer.header, "a.dcm")


def test_every_attribute_is_a_dicom_keyword_and_a_field_of_the_header() -> None:
    for keyword, attribute in ATTRIBUTES.items():
        assert pydicom.datadict.tag_for_keyword(keyword) is not None
        assert hasattr(Header(), attribute.field)


def test_a_mismatch_in_words_names_bounds_and_units() -> None:
    missing = Mismatch(attribute="Rows", found=None, expected="64 to 512 pixels", action="warn")
    assert missing.reason == "Rows is missing; expected 64 to 512 pixels"
    assert Rule(attribute="PatientAge", low=18, high=60).expected == "18 to 60 years"
    assert Rule(attribute="ImageType", values=("A", "B"), forbidden=("C",)).expected == (
        "A or B, not C"
    )
    assert Rule(attribute="Modality").expected == "any value"
    assert str(RULES[0]) == "Modality: CT; else reject, missing reject"
    assert str(RULES[2]) == "PixelSpacing: 0.25 to 2 mm; else warn, missing warn"
