"""Findings as a DICOM structured report."""

import json
import logging
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medtl_runtime import Predictor
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.answers import Answer
from medtl_runtime.codes import Code, Codes, private_code
from medtl_runtime.decision import Decision, HeadDecision, Margin, OperatingPoint, Triage
from medtl_runtime.derived import device_uid
from medtl_runtime.errors import ExtraMissing, OutputExists, ScanUnfit
from medtl_runtime.heads import Head
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_runtime.results import CaseResult, Result
from medtl_runtime.structured_report import write_sr
from medtl_runtime.testing import FakeEngine, describe

pytest.importorskip("highdicom")
from highdicom import sr

Changed = Callable[..., Dataset]

CLASSES = ("normal", "lesion")
MASS = Code(value="4147007", scheme="SCT", meaning="Mass")
CODES = Codes(classes={"lesion": MASS})
RECIPE = Recipe(size=(16, 16), channels=3, window=HeaderVoi())
# Real images whose own headers the checkers have nothing against, of what is copied from them.
CLEAN = ("CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm", "examples_ybr_color.dcm")


def predictor(lesion: float = 1.0, **fields: object) -> Predictor:
    def logits(images: np.ndarray) -> np.ndarray:
        return np.tile(np.array([0, lesion], np.float32), (len(images), 1))

    return Predictor(engine=FakeEngine(describe(classes=CLASSES, recipe=RECIPE, **fields), logits))


def report(
    outcome: CaseResult | Sequence[Result],
    sources: Sequence[Dataset],
    folder: Path,
    *,
    codes: Codes = CODES,
    decision: Decision | None = None,
) -> Any:
    """Write a report and return what highdicom makes of it."""
    decision = decision or Decision(heads=(HeadDecision(),))
    path = write_sr(outcome, sources, codes, decision, folder / "sr" / "report.dcm")
    return sr.srread(path)


def groups(document: Any) -> list[Any]:
    return document.content.get_image_measurement_groups()


def probabilities(group: Any) -> dict[str, float]:
    """Return the numbers by the meaning of the code that modifies each."""
    found = {}
    for measurement in group.get_measurements():
        assert (measurement.name.value, measurement.name.scheme_designator) == ("122157", "DCM")
        assert measurement.unit.value == "1"
        (modifier,) = measurement[0].ContentSequence
        assert modifier.RelationshipType == "HAS CONCEPT MOD"
        found[modifier.value.meaning] = float(measurement.value)
    return found


def texts(items: Sequence[Dataset], meaning: str) -> list[str]:
    """Return the texts of all items of a name, at any depth."""
    found = []
    for item in items:
        if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeMeaning == meaning:
            found.append(item.TextValue)
        found += texts(item.get("ContentSequence", []), meaning)
    return found


def a_case(changed: Changed, **values: Any) -> tuple[CaseResult, list[Dataset]]:
    sources = [changed("CT_small.dcm", SOPInstanceUID=f"1.2.3.{n}") for n in range(3)]
    slices = [predictor(lesion=n)(source) for n, source in enumerate(sources)]
    said = {name: values.pop(name) for name in ("finding", "prediction_set") if name in values}
    answer = Answer(
        kind="multiclass", probabilities=slices[2].probabilities, **({"finding": "lesion"} | said)
    )
    fields: dict[str, Any] = {
        "scan": "series",
        "answers": {"label": answer},
        "series_instance_uid": str(sources[0].SeriesInstanceUID),
        "aggregation": Aggregation(rule="max"),
        "notes": ("the gap between slices varies by 2 %",),
        "slices": slices,
    }
    return CaseResult(**(fields | values)), sources


def test_the_finding_is_coded_and_every_class_has_its_probability(
    shipped: Path, tmp_path: Path
) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    result = predictor()(source)
    document = report([result], [source], tmp_path)
    (group,) = groups(document)
    assert group.finding_type == sr.CodedConcept("4147007", "SCT", "Mass")
    expected = {"normal": result.probabilities["normal"], "Mass": result.probabilities["lesion"]}
    assert probabilities(group) == pytest.approx(expected, abs=1e-6)
    assert sum(probabilities(group).values()) == pytest.approx(1, abs=1e-6)


def test_a_class_that_is_not_mapped_has_a_private_code_whose_scheme_is_declared(
    shipped: Path, tmp_path: Path
) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    document = report([predictor(lesion=-1)(source)], [source], tmp_path)
    assert groups(document)[0].finding_type == sr.CodedConcept("normal", "99MEDTL", "normal")
    (scheme,) = document.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99MEDTL"
    assert scheme.CodingSchemeResponsibleOrganization


FOUR = (
    Head(name="organ", classes=("liver", "spleen", "kidney")),
    Head(name="oedema", kind="binary", classes=("absent", "present")),
    Head(name="grade", kind="ordinal", classes=("1", "2", "3")),
    Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0),
)
OF_FOUR = Decision(
    heads=(
        HeadDecision(temperature=2.0),
        HeadDecision(
            operating_point=OperatingPoint(rule="threshold", positive="present", threshold=0.4)
        ),
        HeadDecision(operating_point=OperatingPoint(rule="median")),
        HeadDecision(
            operating_point=OperatingPoint(rule="value"),
            interval=Margin(coverage=0.9, half_width=12.5, images=80),
        ),
    )
)
FOUR_CODES = Codes(
    classes={"oedema=present": Code(value="79654002", scheme="SCT", meaning="Edema")},
    values={"age": Code(value="445518008", scheme="SCT", meaning="Age")},
)


def of_four(source: Dataset) -> Result:
    described = describe(heads=FOUR, recipe=RECIPE, decision=OF_FOUR)
    logits = np.array([[0.0, 3.0, 1.0, 2.0, 1.0, -3.0, 0.75]], np.float32)
    engine = FakeEngine(described, lambda images: np.repeat(logits, len(images), axis=0))
    return Predictor(engine=engine)(source)


def test_each_head_has_a_group_of_its_own_with_its_own_parameters(
    shipped: Path, tmp_path: Path
) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    result = of_four(source)
    document = report([result], [source], tmp_path, codes=FOUR_CODES, decision=OF_FOUR)
    organ, oedema, grade, age = groups(document)
    named = [one.tracking_identifier for one in (organ, oedema, grade, age)]
    assert named == ["image 1, organ", "image 1, oedema", "image 1, grade", "image 1, age"]
    private = private_code("organ=spleen")
    assert organ.finding_type == sr.CodedConcept(private.value, "99MEDTL", "organ=spleen")
    assert oedema.finding_type == sr.CodedConcept("79654002", "SCT", "Edema")
    assert grade.finding_type.meaning == "grade=2"
    assert probabilities(oedema).keys() == {"oedema=absent", "Edema"}
    for group, name in ((organ, "organ"), (oedema, "oedema"), (grade, "grade")):
        found = list(probabilities(group).values())
        assert found == pytest.approx(
            list((result.answers[name].probabilities or {}).values()), abs=1e-6
        )
    parameters = texts(document.ContentSequence, "Algorithm Parameters")
    assert [one for one in parameters if one.startswith("head")] == [
        f"head: {head.name}" for head in FOUR
    ]
    assert "operating point: the median grade" in parameters
    assert "interval: plus or minus 12.5, coverage 0.9" in parameters


def test_a_value_is_a_number_in_its_unit_and_no_finding(shipped: Path, tmp_path: Path) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    document = report([of_four(source)], [source], tmp_path, codes=FOUR_CODES, decision=OF_FOUR)
    age = groups(document)[3]
    (measurement,) = age.get_measurements()
    assert age.finding_type is None
    assert measurement.name == sr.CodedConcept("445518008", "SCT", "Age")
    assert measurement.value == 65
    assert measurement.unit == sr.CodedConcept("a", "UCUM", "a")
    comments = texts(document.ContentSequence, "Comment")
    assert "Prediction interval: 52.5 to 77.5 a, coverage 0.9" in comments


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed")
def test_dciodvfy_finds_no_error_in_a_report_of_four_heads(shipped: Path, tmp_path: Path) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    report([of_four(source)], [source], tmp_path, codes=FOUR_CODES, decision=OF_FOUR)
    lines = errors_of("dciodvfy", "-new", tmp_path / "sr" / "report.dcm")
    assert "Comprehensive3DSR" in lines
    assert [line for line in lines if line.startswith("Error")] == []


@pytest.mark.skipif(shutil.which("dsr2xml") is None, reason="dsr2xml is not installed")
def test_another_toolkit_reads_the_numbers_of_four_heads(shipped: Path, tmp_path: Path) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    report([of_four(source)], [source], tmp_path, codes=FOUR_CODES, decision=OF_FOUR)
    command = ["dsr2xml", str(tmp_path / "sr" / "report.dcm")]
    finished = subprocess.run(command, capture_output=True, check=True)
    numbers = [one.findtext("value") for one in ET.fromstring(finished.stdout).iter("num")]
    assert len(numbers) == 3 + 2 + 3 + 1
    assert float(numbers[-1] or "nan") == 65


def test_it_lies_in_the_study_in_a_series_of_its_own(shipped: Path, tmp_path: Path) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    document = report([predictor()(source)], [source], tmp_path)
    for keyword in ("StudyInstanceUID", "PatientName", "PatientID", "StudyDate", "StudyID"):
        assert document[keyword].value == source[keyword].value
    assert document.SeriesInstanceUID != source.SeriesInstanceUID
    assert document.get_evidence() == [
        (
            source.StudyInstanceUID,
            source.SeriesInstanceUID,
            source.SOPInstanceUID,
            source.SOPClassUID,
        )
    ]


def test_it_is_complete_unverified_and_preliminary_and_says_what_it_is_not_for(
    shipped: Path, tmp_path: Path
) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    document = report([predictor()(source)], [source], tmp_path)
    assert document.SOPClassUID.name == "Comprehensive 3D SR Storage"
    assert document.CompletionFlag == "COMPLETE"
    assert document.VerificationFlag == "UNVERIFIED"
    assert document.PreliminaryFlag == "PRELIMINARY"
    assert texts(document.ContentSequence, "Comment") == ["Research use only. Not for diagnosis."]


def test_the_observer_is_the_model_and_everything_that_shapes_its_numbers_is_named(
    shipped: Path, tmp_path: Path
) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    point = OperatingPoint(rule="threshold", positive="lesion", threshold=0.3)
    triage = Triage(error_rate=0.05, thresholds=(0.1, 0.8), images=40)
    decision = Decision(
        heads=(HeadDecision(temperature=1.5, operating_point=point, triage=triage),)
    )
    result = predictor(decision=decision)(source)
    document = report([result], [source], tmp_path, decision=decision)
    (observer,) = document.content.get_observer_contexts()
    device = observer.observer_identifying_attributes
    assert device.uid == device_uid(result.model)
    assert device.model_name == "fake 1"
    assert texts(document.ContentSequence, "Algorithm Name") == ["fake"]
    assert texts(document.ContentSequence, "Algorithm Version") == ["1"]
    assert texts(document.ContentSequence, "Algorithm Parameters") == [
        "model file: unknown (fp32)",
        "site file: none",
        "engine: fake engine",
        "temperature: 1.5",
        "operating point: lesion at a probability of 0.3 or more",
        "abstains: at an error rate of 0.05",
    ]


def test_the_group_of_an_image_refers_to_it_without_a_frame(shipped: Path, tmp_path: Path) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    (group,) = groups(report([predictor()(source)], [source], tmp_path))
    (image,) = group.source_images
    assert image.referenced_sop_instance_uid == source.SOPInstanceUID
    assert image.referenced_sop_class_uid == source.SOPClassUID
    assert image.referenced_frame_numbers is None


def test_the_groups_of_frames_refer_to_them_by_number(shipped: Path, tmp_path: Path) -> None:
    source = pydicom.dcmread(shipped / "examples_ybr_color.dcm")
    results = [one for _, one in zip(range(3), predictor().frames(source), strict=False)]
    document = report(results, [source], tmp_path)
    numbers = [group.source_images[0].referenced_frame_numbers for group in groups(document)]
    assert numbers == [[1], [2], [3]]
    assert len(document.get_evidence()) == 1


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        ((0.1, 0.1), "it cannot exclude normal or lesion"),
        ((0.99, 0.1), "it cannot exclude lesion"),
        ((0.99, 0.99), "every class is excluded, as it resembles none"),
    ],
)
def test_where_the_model_abstains_the_finding_is_undetermined(
    shipped: Path, tmp_path: Path, thresholds: tuple[float, float], words: str
) -> None:
    source = pydicom.dcmread(shipped / "CT_small.dcm")
    triage = Triage(error_rate=0.1, thresholds=thresholds, images=10)
    point = OperatingPoint(rule="threshold", positive="normal", threshold=0.2)
    result = predictor(
        decision=Decision(heads=(HeadDecision(triage=triage, operating_point=point),))
    )(source)
    document = report([result], [source], tmp_path)
    (group,) = groups(document)
    assert group.finding_type == sr.CodedConcept("373068000", "SCT", "Undetermined")
    assert len(probabilities(group)) == 2
    comments = texts(document.ContentSequence, "Comment")
    assert comments[0] == f"The model abstains: {words}"


def test_a_case_has_a_group_of_its_own_before_those_of_its_slices(
    changed: Changed, tmp_path: Path
) -> None:
    case, sources = a_case(changed)
    document = report(case, sources[::-1], tmp_path)
    whole, *slices = groups(document)
    assert whole.tracking_identifier == "case"
    assert whole.finding_type.meaning == "Mass"
    assert probabilities(whole)["Mass"] == pytest.approx(case.probabilities["lesion"], abs=1e-6)
    uids = [f"1.2.3.{n}" for n in range(3)]
    assert [image.referenced_sop_instance_uid for image in whole.source_images] == uids
    assert [one.source_images[0].referenced_sop_instance_uid for one in slices] == uids
    assert [one.finding_type.meaning for one in slices] == ["normal", "Mass", "Mass"]
    assert texts(whole, "Comment") == [
        "Of the whole series: max of 3 of 3 slices",
        "the gap between slices varies by 2 %",
    ]
    assert len({group.tracking_uid for group in groups(document)}) == 4


def test_a_case_of_one_file_refers_to_its_frames_in_one_item(shipped: Path, tmp_path: Path) -> None:
    source = pydicom.dcmread(shipped / "examples_ybr_color.dcm")
    frames = [one for _, one in zip(range(4), predictor().frames(source), strict=False)]
    case = CaseResult(
        scan="cine",
        series_instance_uid="1.2",
        aggregation=Aggregation(rule="top-k-mean", k=2),
        answers={
            "label": Answer(
                kind="multiclass",
                probabilities=frames[0].probabilities,
                prediction_set=CLASSES,
            )
        },
        notes=(),
        slices=frames,
    )
    whole = groups(report(case, [source], tmp_path))[0]
    (image,) = whole.source_images
    assert image.referenced_frame_numbers == [1, 2, 3, 4]
    assert whole.finding_type.meaning == "Undetermined"


def test_departures_from_the_intended_use_are_remarked(changed: Changed, tmp_path: Path) -> None:
    from medtl_runtime.intended_use import Mismatch

    source = changed("CT_small.dcm")
    result = predictor()(source)
    departs = Mismatch(attribute="Modality", found="CT", expected="one of MR", action="warn")
    warned = Result(**{**vars(result), "warnings": (departs,)})
    (group,) = groups(report([warned], [source], tmp_path))
    assert texts(group, "Comment") == [f"Departs from the intended use: {departs.reason}"]


def test_labels_in_any_script_are_kept_beside_names_in_another(
    changed: Changed, tmp_path: Path
) -> None:
    source = changed("CT_small.dcm", SpecificCharacterSet="ISO_IR 144")
    source.PatientName = "Люкceмбypг"
    source.save_as(tmp_path / "source.dcm")
    source = pydicom.dcmread(tmp_path / "source.dcm")
    codes = Codes(classes={"lesion": Code(value="1", scheme="99X", meaning="病変")})
    document = report([predictor()(source)], [source], tmp_path, codes=codes)
    assert groups(document)[0].finding_type.meaning == "病変"
    assert str(document.PatientName) == "Люкceмбypг"


def test_the_procedure_is_what_the_mapping_says(changed: Changed, tmp_path: Path) -> None:
    source = changed("CT_small.dcm")
    head = Code(value="24725-4", scheme="LN", meaning="CT Head")
    document = report([predictor()(source)], [source], tmp_path, codes=Codes(procedure=head))
    (procedure,) = (
        item
        for item in document.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Procedure reported"
    )
    assert procedure.ConceptCodeSequence[0].CodeValue == "24725-4"


def test_an_ultrasound_image_of_a_retired_class_is_reported_too(
    changed: Changed, tmp_path: Path
) -> None:
    source = changed("examples_rgb_color.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.6")
    document = report([predictor()(source)], [source], tmp_path)
    assert document.get_evidence()[0][3] == "1.2.840.10008.5.1.4.1.1.6"


def test_an_odd_patient_is_neither_refused_nor_written_to_the_log(
    changed: Changed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = changed("CT_small.dcm", PatientName="Zyxwv", PatientSex="M")
    source["PatientSex"]._value = "X"  # past pydicom's own check, as a scanner would write it
    source["StudyDate"]._value = "yesterday"
    with caplog.at_level(logging.DEBUG):
        document = report([predictor()(source)], [source], tmp_path)
    assert str(document.PatientName) == "Zyxwv"
    assert document.PatientSex == "X"
    assert "Zyxwv" not in caplog.text


def test_images_of_several_studies_are_refused(changed: Changed, tmp_path: Path) -> None:
    case, sources = a_case(changed)
    sources[1].StudyInstanceUID = "1.2.3.4"
    with pytest.raises(ScanUnfit, match="these images are of several") as error:
        report(case, sources, tmp_path)
    assert error.value.attribute == "StudyInstanceUID"


def test_a_header_that_is_missing_is_refused(changed: Changed, tmp_path: Path) -> None:
    case, sources = a_case(changed)
    with pytest.raises(ScanUnfit, match="SOPInstanceUID is missing, or is of another image"):
        report(case, sources[:2], tmp_path)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("uid", [None, "DOE^JANE", "1.2.", "1" * 65, ["1.2.3", "1.2.4"]])
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The value length")
def test_an_image_that_nothing_can_refer_to_is_refused(
    changed: Changed, tmp_path: Path, keyword: str, uid: str | list[str] | None
) -> None:
    source = changed("CT_small.dcm", **{keyword: uid})
    with pytest.raises(ScanUnfit) as error:
        report([predictor()(source)], [source], tmp_path)
    assert error.value.attribute == keyword
    assert "DOE" not in error.value.reason
    assert list(tmp_path.iterdir()) == []


def test_a_uid_with_leading_zeros_is_kept_as_it_is(changed: Changed, tmp_path: Path) -> None:
    source = changed("CT_small.dcm", StudyInstanceUID="1.2.003")
    document = report([predictor()(source)], [source], tmp_path)
    assert document.StudyInstanceUID == "1.2.003"


def test_an_image_that_is_not_dicom_is_refused(tmp_path: Path) -> None:
    result = predictor()(np.zeros((16, 16), np.uint8))
    with pytest.raises(ScanUnfit, match="only be written for a DICOM image"):
        report([result], [], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_report_is_kept_unless_it_may_be_overwritten(
    changed: Changed, tmp_path: Path
) -> None:
    source = changed("CT_small.dcm")
    result = predictor()(source)
    first = report([result], [source], tmp_path)
    with pytest.raises(OutputExists):
        report([result], [source], tmp_path)
    path = tmp_path / "sr" / "report.dcm"
    write_sr([result], [source], CODES, Decision(heads=(HeadDecision(),)), path, overwrite=True)
    assert sr.srread(path).SOPInstanceUID != first.SOPInstanceUID


def test_without_highdicom_the_error_names_the_extra(
    changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = changed("CT_small.dcm")
    result = predictor()(source)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ExtraMissing, match=r'package highdicom.*pip install "medtl\[sr\]"'):
        report([result], [source], tmp_path)


def test_highdicom_is_not_imported_before_a_report_is_written() -> None:
    program = (
        "import sys, json\n"
        "import medtl_runtime.structured_report, medtl_runtime.secondary_capture\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('highdicom')]))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert json.loads(finished.stdout) == []


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed")
@pytest.mark.parametrize("name", CLEAN)
def test_dciodvfy_finds_no_error(shipped: Path, tmp_path: Path, name: str) -> None:
    source = pydicom.dcmread(shipped / name)
    result = next(predictor().frames(source))
    report([result], [source], tmp_path)
    lines = errors_of("dciodvfy", "-new", tmp_path / "sr" / "report.dcm")
    assert "Comprehensive3DSR" in lines
    assert [line for line in lines if line.startswith("Error")] == []


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed")
def test_dciodvfy_finds_no_error_in_a_case(changed: Changed, tmp_path: Path) -> None:
    case, sources = a_case(changed, finding=None)
    report(case, sources, tmp_path)
    lines = errors_of("dciodvfy", "-new", tmp_path / "sr" / "report.dcm")
    assert "Comprehensive3DSR" in lines
    assert [line for line in lines if line.startswith("Error")] == []


def errors_of(*command: str | Path) -> list[str]:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.stderr.splitlines()


@pytest.mark.skipif(shutil.which("dsr2xml") is None, reason="dsr2xml is not installed")
@pytest.mark.parametrize("name", CLEAN)
def test_another_toolkit_reads_the_content_tree(shipped: Path, tmp_path: Path, name: str) -> None:
    """dsr2xml checks relationships and value types of the whole tree, and fails on the first."""
    source = pydicom.dcmread(shipped / name)
    report([next(predictor().frames(source))], [source], tmp_path)
    command = ["dsr2xml", str(tmp_path / "sr" / "report.dcm")]
    finished = subprocess.run(command, capture_output=True, check=True)
    numbers = [one.findtext("value") for one in ET.fromstring(finished.stdout).iter("num")]
    assert len(numbers) == 2
    assert sum(map(float, filter(None, numbers))) == pytest.approx(1, abs=1e-6)
