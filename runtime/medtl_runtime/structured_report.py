"""Findings as a DICOM structured report: a Comprehensive 3D SR with a TID 1500 Measurement Report.

IHE's AI Results profile stores findings and measurements in this form. The content tree is built in
`report_content` of highdicom's templates; the document around it is built here, because highdicom's
own refuses sources
of retired SOP classes, which archives hold, and writes odd patient names to the log.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, generate_uid

from medtl_runtime.codes import PRIVATE_SCHEME, Codes
from medtl_runtime.derived import object_in_study, source_of, write_object
from medtl_runtime.errors import ExtraMissing, ScanUnfit
from medtl_runtime.results import CaseResult, Result

if TYPE_CHECKING:
    from medtl_runtime.decision import Decision
    from medtl_runtime.report_content import Images

# Series Number is for people to sort by; scanners count from 1, and few come this far.
_SERIES_NUMBER = 9100


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
        A case: measurement groups for it and for each slice. Or the results of a scan, one or
        more: groups for each. There is one for each head.
    sources
        The headers of all these images, in any order.
    codes
        What stands for the classes and values; see `codes.read_codes`.
    decision
        The decision that was applied; its operating points are named as parameters.
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
    from medtl_runtime.report_content import content_of

    results = outcome.scored if isinstance(outcome, CaseResult) else outcome
    assert results, "a report of nothing"
    images = _with_sources(results, sources)
    case = outcome if isinstance(outcome, CaseResult) else None
    content = content_of(images, case, codes, decision)
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


def _with_sources(results: Sequence[Result], sources: Sequence[Dataset]) -> "Images":
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


def _evidence(images: "Images") -> Dataset:
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
