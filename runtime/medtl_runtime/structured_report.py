"""Findings as a DICOM structured report: a Comprehensive 3D SR with a TID 1500 Measurement Report.

IHE's AI Results profile stores findings and measurements in this form. The content tree is built of
highdicom's templates; the document around it is built here, because highdicom's own refuses sources
of retired SOP classes, which archives hold, and writes odd patient names to the log.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as SrCode
from pydicom.uid import Comprehensive3DSRStorage, generate_uid

from medtl_runtime.codes import PRIVATE_SCHEME, Code, Codes
from medtl_runtime.derived import (
    NOT_FOR_DIAGNOSIS,
    device_uid,
    frame_numbers,
    object_in_study,
    serial_number,
    source_of,
    write_object,
)
from medtl_runtime.errors import ExtraMissing, ScanUnfit
from medtl_runtime.results import CaseResult, Result, why_abstained

if TYPE_CHECKING:
    from highdicom import sr

    from medtl_runtime.decision import Decision

# Series Number is for people to sort by; scanners count from 1, and few come this far.
_SERIES_NUMBER = 9100

_FINDING = SrCode("121071", "DCM", "Finding")
_PROBABILITY = SrCode("122157", "DCM", "Probability")
_NO_UNITS = SrCode("1", "UCUM", "no units")
_UNDETERMINED = SrCode("373068000", "SCT", "Undetermined")
_COMMENT = SrCode("121106", "DCM", "Comment")
_QUALITATIVE = SrCode("C0034375", "UMLS", "Qualitative Evaluations")
_ARTIFICIAL_INTELLIGENCE = SrCode("123110", "DCM", "Artificial Intelligence")  # CID 7162
_DEVICE = SrCode("121007", "DCM", "Device")  # CID 270

_Images = Sequence[tuple[Result, Dataset]]


def write_sr(
    outcome: CaseResult | Sequence[Result],
    sources: Sequence[Dataset],
    codes: Codes,
    decision: "Decision",
    path: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write one report of a case, or of the images of a scan, into their study; return the path.

    Completion Flag is COMPLETE, because the report holds all that the model says of these images;
    Verification Flag is UNVERIFIED and Preliminary Flag PRELIMINARY, because nobody has attested
    it and it does not stand for a radiologist's report (PS3.3 C.17.2).

    Parameters
    ----------
    outcome
        A case: a measurement group for it and one for each slice. Or the results of a scan, one or
        more: a group for each.
    sources
        The headers of all these images, in any order.
    codes
        What stands for the classes; see `codes.read_codes`.
    decision
        The decision that was applied; its operating point is named as a parameter.
    path
        The file to write.

    Raises
    ------
    ScanUnfit
        An image is no DICOM object, lacks an identifier that a report has to refer to, or is of
        another study than the others.
    ExtraMissing
        highdicom is not installed.
    OutputExists, OutputNotWritten
        As their names say.
    """
    _require_highdicom()
    results = outcome.scored if isinstance(outcome, CaseResult) else outcome
    assert results, "a report of nothing"
    images = _with_sources(results, sources)
    case = outcome if isinstance(outcome, CaseResult) else None
    content = _content(images, case, codes, decision)
    model, first = results[0].model, images[0][1]
    document = object_in_study(first, model, Comprehensive3DSRStorage)
    _describe(document)
    for element in content:
        document[element.tag] = element
    document.CurrentRequestedProcedureEvidenceSequence = [_evidence(images)]
    return write_object(document, path, overwrite=overwrite)


def _require_highdicom() -> None:
    try:
        import highdicom  # noqa: F401
    except ImportError as cause:
        raise ExtraMissing("highdicom", extra="sr", purpose="a structured report") from cause


def _with_sources(results: Sequence[Result], sources: Sequence[Dataset]) -> _Images:
    by_uid = {str(source.get("SOPInstanceUID") or ""): source for source in sources}
    images = [(result, source_of(result, by_uid)) for result in results]
    studies = {str(source.StudyInstanceUID) for _, source in images}
    if len(studies) > 1:
        raise ScanUnfit(
            results[0].scan,
            "a report is about one study; these images are of several",
            attribute="StudyInstanceUID",
            found=len(studies),
            expected="one",
        )
    return images


def _describe(document: Dataset) -> None:
    """Add the SR Document Series and General modules (PS3.3 C.17.1, C.17.2) and the scheme."""
    document.Modality = "SR"
    document.SeriesInstanceUID = generate_uid(prefix=None)
    document.SeriesNumber = _SERIES_NUMBER
    document.SeriesDescription = "medtl findings"
    document.ReferencedPerformedProcedureStepSequence = []
    document.PerformedProcedureCodeSequence = []
    document.InstanceNumber = 1
    document.CompletionFlag = "COMPLETE"
    document.VerificationFlag = "UNVERIFIED"
    document.PreliminaryFlag = "PRELIMINARY"
    scheme = Dataset()  # PS3.3 C.12.1: what a private designator stands for
    scheme.CodingSchemeDesignator = PRIVATE_SCHEME
    scheme.CodingSchemeName = "Class labels of a model that medtl runs"
    scheme.CodingSchemeResponsibleOrganization = "The medtl developers"
    document.CodingSchemeIdentificationSequence = [scheme]


def _evidence(images: _Images) -> Dataset:
    """Return all images by study and series (PS3.3 C.17.2.3), each once."""
    study = Dataset()
    study.StudyInstanceUID = images[0][1].StudyInstanceUID
    by_series: dict[str, dict[str, Dataset]] = {}
    for _, source in images:
        instance = Dataset()
        instance.ReferencedSOPClassUID = source.SOPClassUID
        instance.ReferencedSOPInstanceUID = source.SOPInstanceUID
        instances = by_series.setdefault(str(source.SeriesInstanceUID), {})
        instances[str(source.SOPInstanceUID)] = instance
    study.ReferencedSeriesSequence = []
    for uid, instances in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = uid
        series.ReferencedSOPSequence = list(instances.values())
        study.ReferencedSeriesSequence.append(series)
    return study


def _content(
    images: _Images, case: CaseResult | None, codes: Codes, decision: "Decision"
) -> Dataset:
    """Return the root of the content tree: TID 1500."""
    from highdicom import sr

    algorithm = _algorithm(images[0][0], decision)
    groups = [_case_group(case, images, codes, algorithm)] if case else []
    groups += [
        _image_group(number, one, source, codes, algorithm)
        for number, (one, source) in enumerate(images, start=1)
    ]
    report = sr.MeasurementReport(
        observation_context=_observer(images[0][0].model),
        procedure_reported=_sr_code(codes.procedure),
        imaging_measurements=groups,
    )
    notes = sr.ContainerContentItem(name=_QUALITATIVE, relationship_type="CONTAINS")
    notes.ContentSequence = sr.ContentSequence([_comment(NOT_FOR_DIAGNOSIS)])
    root = report[0]
    root.ContentSequence.append(notes)
    return root


def _observer(model: Mapping[str, str | None]) -> "sr.ObservationContext":
    """Return TID 1001 with the model as a device (TID 1004)."""
    from highdicom import sr

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=device_uid(model),
        name="medtl",
        manufacturer_name="medtl",
        model_name=f"{model['name']} {model['version']}",
        serial_number=serial_number(model),
    )
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(sr.CodedConcept.from_code(_DEVICE), device)
    )


def _algorithm(result: Result, decision: "Decision") -> "sr.AlgorithmIdentification":
    """Return TID 4019: what computed the numbers, and everything that could change them."""
    from highdicom import sr

    model, point = result.model, decision.operating_point
    chosen = (
        f"{point.positive} at a probability of {point.threshold:g} or more"
        if point.rule == "threshold"
        else "the most probable class"
    )
    triage = decision.triage
    return sr.AlgorithmIdentification(
        name=str(model["name"]),
        version=str(model["version"]),
        family=_ARTIFICIAL_INTELLIGENCE,
        parameters=[
            f"model file: {model['digest'] or 'unknown'} ({model['precision']})",
            f"site file: {model['site'] or 'none'}",
            f"engine: {result.engine}",
            f"temperature: {decision.temperature:g}",
            f"operating point: {chosen}",
            f"abstains: {f'at an error rate of {triage.error_rate:g}' if triage else 'never'}",
        ],
    )


def _case_group(
    case: CaseResult, images: _Images, codes: Codes, algorithm: "sr.AlgorithmIdentification"
) -> "sr.MeasurementsAndQualitativeEvaluations":
    """Return TID 1501 for the whole series."""
    remarks = [
        f"Of the whole series: {case.aggregation} of {len(images)} of {len(case.slices)} slices",
        *case.notes,
    ]
    frames: dict[str, list[int]] = {}
    for result, source in images:
        frames.setdefault(str(source.SOPInstanceUID), []).extend(
            frame_numbers(result, source) or []
        )
    by_uid = {str(source.SOPInstanceUID): source for _, source in images}
    references = [_reference(by_uid[uid], numbers) for uid, numbers in frames.items()]
    return _group("case", case, remarks, references, codes, algorithm)


def _image_group(
    number: int,
    result: Result,
    source: Dataset,
    codes: Codes,
    algorithm: "sr.AlgorithmIdentification",
) -> "sr.MeasurementsAndQualitativeEvaluations":
    """Return TID 1501 for one image."""
    remarks = [f"Departs from the intended use: {one.reason}" for one in result.warnings]
    reference = _reference(source, frame_numbers(result, source))
    return _group(f"image {number}", result, remarks, [reference], codes, algorithm)


def _group(
    name: str,
    outcome: Result | CaseResult,
    remarks: Sequence[str],
    references: "Sequence[sr.SourceImageForMeasurementGroup]",
    codes: Codes,
    algorithm: "sr.AlgorithmIdentification",
) -> "sr.MeasurementsAndQualitativeEvaluations":
    from highdicom import sr

    finding = outcome.finding
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(generate_uid(prefix=None), name),
        finding_type=_UNDETERMINED if finding is None else _sr_code(codes.of(finding)),
        algorithm_id=algorithm,
        measurements=list(_measurements(outcome.probabilities, codes)),
        source_images=list(references),
    )
    if finding is None:
        remarks = [f"The model abstains: {why_abstained(outcome)}", *remarks]
    group[0].ContentSequence.extend(map(_comment, remarks))
    return group


def _measurements(probabilities: Mapping[str, float], codes: Codes) -> "Iterator[sr.Measurement]":
    """Yield TID 300 for each class: its probability, 0 to 1, modified by the class's code."""
    from highdicom import sr

    for label, chance in probabilities.items():
        measurement = sr.Measurement(name=_PROBABILITY, value=round(chance, 6), unit=_NO_UNITS)
        of = sr.CodeContentItem(
            name=_FINDING, value=_sr_code(codes.of(label)), relationship_type="HAS CONCEPT MOD"
        )
        measurement[0].ContentSequence = sr.ContentSequence([of])
        yield measurement


def _reference(
    source: Dataset, frames: Sequence[int] | None
) -> "sr.SourceImageForMeasurementGroup":
    from highdicom import sr

    uids = str(source.SOPClassUID), str(source.SOPInstanceUID)
    return sr.SourceImageForMeasurementGroup(*uids, list(frames) if frames else None)


def _comment(text: str) -> "sr.TextContentItem":
    from highdicom import sr

    return sr.TextContentItem(name=_COMMENT, value=text, relationship_type="CONTAINS")


def _sr_code(code: Code) -> SrCode:
    return SrCode(code.value, code.scheme, code.meaning)
