"""The content tree of a structured report, built of highdicom's templates (PS3.16 TID 1500)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as SrCode
from pydicom.uid import generate_uid

from medtl_runtime.answers import Answer, label_of
from medtl_runtime.codes import Code, Codes
from medtl_runtime.decision import Decision, HeadDecision
from medtl_runtime.derived import NOT_FOR_DIAGNOSIS, device_uid, frame_numbers, serial_number
from medtl_runtime.heads import Head
from medtl_runtime.results import CaseResult, Result

_FINDING = SrCode("121071", "DCM", "Finding")
_PROBABILITY = SrCode("122157", "DCM", "Probability")
_NO_UNITS = SrCode("1", "UCUM", "no units")
_UNDETERMINED = SrCode("373068000", "SCT", "Undetermined")
_COMMENT = SrCode("121106", "DCM", "Comment")
_QUALITATIVE = SrCode("C0034375", "UMLS", "Qualitative Evaluations")
_ARTIFICIAL_INTELLIGENCE = SrCode("123110", "DCM", "Artificial Intelligence")  # CID 7162
_DEVICE = SrCode("121007", "DCM", "Device")  # CID 270

Images = Sequence[tuple[Result, Dataset]]
"""Each result with the header of its image."""


def content_of(
    images: Images, case: CaseResult | None, codes: Codes, decision: Decision
) -> Dataset:
    """Return the root of the content tree: TID 1500."""
    groups = [
        group
        for head, own in zip(images[0][0].heads, decision.heads, strict=True)
        for group in _head_groups(head, own, images, case, codes)
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


def _observer(model: Mapping[str, str | None]) -> sr.ObservationContext:
    """Return TID 1001 with the model as a device (TID 1004)."""
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


def _head_groups(
    head: Head,
    decision: HeadDecision,
    images: Images,
    case: CaseResult | None,
    codes: Codes,
) -> Iterator[sr.MeasurementsAndQualitativeEvaluations]:
    """Yield the groups of a head: that of the case first, then one for each image."""
    heads = images[0][0].heads
    algorithm = _algorithm(images[0][0], head, decision)
    suffix = "" if len(heads) == 1 else f", {head.name}"
    if case is not None:
        answer = case.answers[head.name]
        content = _findings(answer, head, heads, codes)
        remarks, references = _of_case(case, images)
        yield _group(f"case{suffix}", answer, content, remarks, references, algorithm)
    for number, (result, source) in enumerate(images, start=1):
        answer = result.answers[head.name]
        content = _findings(answer, head, heads, codes)
        remarks = [f"Departs from the intended use: {one.reason}" for one in result.warnings]
        reference = _reference(source, frame_numbers(result, source))
        yield _group(f"image {number}{suffix}", answer, content, remarks, [reference], algorithm)


def _algorithm(result: Result, head: Head, decision: HeadDecision) -> sr.AlgorithmIdentification:
    """Return TID 4019: what computed the numbers, and everything that could change them."""
    model = result.model
    return sr.AlgorithmIdentification(
        name=str(model["name"]),
        version=str(model["version"]),
        family=_ARTIFICIAL_INTELLIGENCE,
        parameters=[
            f"model file: {model['digest'] or 'unknown'} ({model['precision']})",
            f"site file: {model['site'] or 'none'}",
            f"engine: {result.engine}",
            *([f"head: {head.name}"] if len(result.heads) > 1 else []),
            *_parameters(decision),
        ],
    )


def _parameters(decision: HeadDecision) -> list[str]:
    """Return what between the logits and the answer was fitted, in words."""
    point, triage, margin = decision.operating_point, decision.triage, decision.interval
    if point.rule == "value":
        half = (
            f"plus or minus {margin.half_width:g}, coverage {margin.coverage:g}" if margin else ""
        )
        return [f"interval: {half or 'none'}"]
    chosen = {
        "argmax": "the most probable class",
        "median": "the median grade",
        "threshold": f"{point.positive} at a probability of {point.threshold or 0:g} or more",
    }[point.rule]
    return [
        f"temperature: {decision.temperature:g}",
        f"operating point: {chosen}",
        f"abstains: {f'at an error rate of {triage.error_rate:g}' if triage else 'never'}",
    ]


def _of_case(
    case: CaseResult, images: Images
) -> tuple[list[str], list[sr.SourceImageForMeasurementGroup]]:
    """Return what is remarked of a whole series, and the images that it rests on."""
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
    return remarks, [_reference(by_uid[uid], numbers) for uid, numbers in frames.items()]


@dataclass(frozen=True, kw_only=True)
class _Findings:
    """What a group holds of an answer."""

    finding: SrCode | None
    """None for a regression."""
    measurements: Sequence[sr.Measurement]


def _findings(answer: Answer, head: Head, heads: Sequence[Head], codes: Codes) -> _Findings:
    if answer.value is not None:
        return _Findings(finding=None, measurements=[_value(answer, head, codes)])
    coded = {name: codes.of(label_of(heads, head, name)) for name in head.classes}
    finding = _UNDETERMINED if answer.finding is None else _sr_code(coded[answer.finding])
    chances = answer.probabilities or {}
    measurements = [_probability(coded[name], chance) for name, chance in chances.items()]
    return _Findings(finding=finding, measurements=measurements)


def _group(
    name: str,
    answer: Answer,
    content: _Findings,
    remarks: Sequence[str],
    references: Sequence[sr.SourceImageForMeasurementGroup],
    algorithm: sr.AlgorithmIdentification,
) -> sr.MeasurementsAndQualitativeEvaluations:
    """Return TID 1501."""
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(generate_uid(prefix=None), name),
        finding_type=content.finding,
        algorithm_id=algorithm,
        measurements=list(content.measurements),
        source_images=list(references),
    )
    own = [f"The model abstains: {answer.why_abstained}"] if answer.is_abstained else []
    if (found := answer.interval) is not None:
        limits = f"{found.low:.6g} to {found.high:.6g} {answer.unit or ''}".strip()
        own.append(f"Prediction interval: {limits}, coverage {found.coverage:g}")
    group[0].ContentSequence.extend(map(_comment, [*own, *remarks]))
    return group


def _probability(code: Code, chance: float) -> sr.Measurement:
    """Return TID 300 for a class: its probability, 0 to 1, modified by the class's code."""
    measurement = sr.Measurement(name=_PROBABILITY, value=round(chance, 6), unit=_NO_UNITS)
    of = sr.CodeContentItem(
        name=_FINDING, value=_sr_code(code), relationship_type="HAS CONCEPT MOD"
    )
    measurement[0].ContentSequence = sr.ContentSequence([of])
    return measurement


def _value(answer: Answer, head: Head, codes: Codes) -> sr.Measurement:
    """Return TID 300 for a regression: its value, in its unit (UCUM)."""
    assert answer.value is not None
    unit = SrCode(head.unit, "UCUM", head.unit) if head.unit else _NO_UNITS
    # At most 16 characters make a Decimal String (PS3.5 6.2).
    value = float(f"{answer.value:.8g}")
    return sr.Measurement(name=_sr_code(codes.of_value(head.name)), value=value, unit=unit)


def _reference(source: Dataset, frames: Sequence[int] | None) -> sr.SourceImageForMeasurementGroup:
    uids = str(source.SOPClassUID), str(source.SOPInstanceUID)
    return sr.SourceImageForMeasurementGroup(*uids, list(frames) if frames else None)


def _comment(text: str) -> sr.TextContentItem:
    return sr.TextContentItem(name=_COMMENT, value=text, relationship_type="CONTAINS")


def _sr_code(code: Code) -> SrCode:
    return SrCode(code.value, code.scheme, code.meaning)
