"""A whole series as one case: its slices in the order of their geometry, or why they have none.

Only headers are looked at. A series is all that shares a SeriesInstanceUID, and each slice must
agree with the others in patient, study, modality, shape, pixel spacing, frame of reference and
orientation; a localizer among the slices makes a mixed series, which is refused. What cannot be
seen in the geometry is not found: slices lost at an end, or every second one.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import SeriesUnfit
from medtl_runtime.scan import Header, Scan

# Direction cosines are written as text. Four decimals, the fewest that are seen, are off by 1e-4
# in length and angle; ten times that moves the far corner of a 300 mm image by 0.3 mm.
_DIRECTION_TOLERANCE = 1e-3

# Pixel spacings of one acquisition are the same text; another field of view differs by more.
_SPACING_TOLERANCE = 1e-3

# Nearer than 1 µm is the same position; the finest spacing in use, that of optical coherence
# tomography, is ten times as wide.
_SAME_POSITION_MM = 1e-3

# No scanner is as wide; a damaged header may hold any number, and the largest ones overflow.
_FURTHEST_MM = 1e6

# Relative to the median gap. Up to 1 % is what rounding of the coordinates to 0.01 mm does to
# slices 1 mm apart. A missing slice doubles a gap (100 %; 33 % in a series of two gaps, where it
# moves the median as well), and 10 % lies well below both. The same holds for steps across the
# stack; those of a tilted gantry are all alike.
_REGULAR_GAP = 0.01
_IRREGULAR_GAP = 0.10

_MOST_SHOWN = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """One image of a case."""

    scan: Scan
    """Where it is read from."""
    frame: int
    """Index of the frame in the scan, from 0."""
    position_mm: float | None
    """Of its first pixel along the normal; None for one slice, or without geometry."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """The slices of one regular series."""

    name: str
    """The scan, where it is one; else the folder with the SeriesInstanceUID, or the UID alone."""
    series_instance_uid: str
    slices: tuple[Slice, ...] = field(repr=False)
    """By rising position; without geometry, in the order of the file's frames."""
    spacing_mm: float | None
    """Median distance of neighbouring slices; None for one slice, or without geometry."""
    warnings: tuple[str, ...]
    """What is unusual of the series, without being refused for it."""


def group(scans: Iterable[Scan]) -> list[Case | SeriesUnfit]:
    """Sort scans into cases, one for each series, in the order in which the series appear.

    Slices are sorted by dot(ImagePositionPatient, cross(row, column direction)) (PS3.3
    C.7.6.2.1.1), never by InstanceNumber. The frames of a multi-frame file are slices like those
    of single files. A multi-frame file without positions and without a frame of reference (a cine
    loop) is a case in the order of its frames, with a warning, if it is alone in its series.

    Parameters
    ----------
    scans
        In any order. A scan that is one image without geometry is a case of one slice.

    Returns
    -------
    list of Case or SeriesUnfit
        A series is refused where

        - a file is not DICOM, or has no SeriesInstanceUID (each such file by itself);
        - PatientID, StudyInstanceUID, Modality, SOPClassUID, PhotometricInterpretation, the first
          value of ImageType (ORIGINAL or DERIVED), FrameOfReferenceUID, Rows x Columns or
          PixelSpacing (by more than 0.1 %) differ within it;
        - two files share a SOPInstanceUID;
        - ImagePositionPatient or ImageOrientationPatient is missing from one of several slices, or
          a position is out of range;
        - an orientation departs from the median one, or row and column directions from orthogonal
          unit vectors, by more than 0.001;
        - two slices are within 0.001 mm of the same position (copies, echoes, time points);
        - a gap departs from the median gap by more than 10 % of it, or the sideways step from one
          slice to the next from the median step; more than 1 % is a warning.
    """
    series: dict[tuple[str, int], list[Scan]] = {}
    for index, scan in enumerate(scans):
        uid = scan.header.series_instance_uid
        series.setdefault((uid, -1 if uid else index), []).append(scan)
    return [_case_or_refusal(members) for members in series.values()]


def _case_or_refusal(scans: Sequence[Scan]) -> Case | SeriesUnfit:
    try:
        return _case(scans)
    except SeriesUnfit as unfit:
        return unfit


def _case(scans: Sequence[Scan]) -> Case:
    uid = _series_uid(scans[0])
    name = _name(uid, scans)
    _require_unmixed(name, [scan.header for scan in scans])
    frames = [(scan, index) for scan in scans for index in range(scan.frame_count)]
    positions: list[float | None] = [None] * len(frames)
    spacing, warnings = None, ()
    if _is_cine(scans):
        warnings = ("ImagePositionPatient is missing; the slices are in the order of the frames",)
    elif len(frames) > 1:
        origins, orientations = _geometry(name, scans)
        normal = _normal(name, orientations)
        along = origins @ normal
        order = np.argsort(along)
        spacing, warnings = _spacing(name, along)
        warnings += _straightness(name, origins[order], normal, spacing)
        frames = [frames[index] for index in order]
        positions = [float(along[index]) for index in order]
    _require_distinct_files(name, scans)
    slices = tuple(
        Slice(scan=scan, frame=index, position_mm=position)
        for (scan, index), position in zip(frames, positions, strict=True)
    )
    return Case(
        name=name, series_instance_uid=uid, slices=slices, spacing_mm=spacing, warnings=warnings
    )


def _series_uid(scan: Scan) -> str:
    uid = scan.header.series_instance_uid
    if uid:
        return uid
    reason = "SeriesInstanceUID is missing"
    if not scan.header.is_dicom:
        reason = "not DICOM; only DICOM images form a series"
    raise SeriesUnfit(scan.source, reason, attribute="SeriesInstanceUID", expected="a UID")


def _name(uid: str, scans: Sequence[Scan]) -> str:
    if len(scans) == 1:
        return scans[0].source
    try:
        folder = os.path.commonpath([os.path.dirname(scan.source) for scan in scans])  # noqa: PTH120
    except ValueError:  # absolute and relative names, or several drives
        folder = ""
    return f"{folder}#{uid}" if folder else uid


def _is_cine(scans: Sequence[Scan]) -> bool:
    # With a frame of reference the frames lie somewhere in it: slices whose positions are damaged,
    # or the tiles of a slide.
    header = scans[0].header
    single = len(scans) == 1 and scans[0].frame_count > 1
    return single and not header.positions and not header.frame_of_reference_uid


def _require_unmixed(name: str, headers: Sequence[Header]) -> None:
    """Raise unless the slices agree in everything but their position."""
    _require_one(name, "PatientID", [h.patient_id for h in headers], shown=False)
    _require_one(name, "StudyInstanceUID", [h.study_instance_uid for h in headers], shown=False)
    _require_one(name, "Modality", [h.modality for h in headers])
    _require_one(name, "SOPClassUID", [h.sop_class_uid for h in headers])
    photometric = [h.photometric_interpretation for h in headers]
    _require_one(name, "PhotometricInterpretation", photometric)
    _require_one(name, "ImageType", ["".join(h.image_type[:1]) for h in headers])
    _require_one(name, "Rows x Columns", [f"{h.rows} x {h.columns}" for h in headers])
    frames_of_reference = [h.frame_of_reference_uid for h in headers]
    _require_one(name, "FrameOfReferenceUID", frames_of_reference, shown=False)
    spacings = [one for h in headers for one in h.frame_spacings or (h.pixel_spacing,)]
    _require_one_spacing(name, spacings)


def _require_one(name: str, attribute: str, values: Sequence[str], *, shown: bool = True) -> None:
    """Raise unless all values are the same; identifiers are counted, not ``shown``."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return
    found = f"{len(counts)} values"
    if shown:
        found = [value or "missing" for value, _ in counts[:_MOST_SHOWN]]
    most, others = counts[0][1], len(values) - counts[0][1]
    reason = f"mixed series: {attribute} of {others} images differs from that of {most}"
    raise SeriesUnfit(name, reason, attribute=attribute, found=found, expected="one value")


def _require_one_spacing(name: str, spacings: Sequence[tuple[float, float] | None]) -> None:
    known = {spacing for spacing in spacings if spacing is not None}
    if not known:
        return
    low, high = np.min(list(known), axis=0), np.max(list(known), axis=0)
    if None not in spacings and (high - low <= _SPACING_TOLERANCE * high).all():
        return
    raise SeriesUnfit(
        name,
        "mixed series: PixelSpacing differs between images",
        attribute="PixelSpacing",
        found=[low.tolist(), high.tolist(), *([None] * (None in spacings))],
        expected="one value",
    )


def _geometry(name: str, scans: Sequence[Scan]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the origins, (S, 3) in mm, and the orientations, (S, 6), of all frames."""
    missing = [s for s in scans if len(s.header.positions) != s.frame_count]
    if missing:
        raise SeriesUnfit(
            name,
            f"ImagePositionPatient or ImageOrientationPatient is missing in {len(missing)} of "
            f"{len(scans)} files",
            attribute="ImagePositionPatient",
            expected="a position for each slice",
        )
    positions = [position for scan in scans for position in scan.header.positions]
    origins = np.array([position.origin for position in positions], np.float64)
    orientations = np.array([position.orientation for position in positions], np.float64)
    if not (np.abs(origins) <= _FURTHEST_MM).all():  # so that NaN is beyond
        raise SeriesUnfit(
            name,
            "ImagePositionPatient is out of range",
            attribute="ImagePositionPatient",
            expected=f"numbers within {_FURTHEST_MM:.0f} mm",
        )
    return origins, orientations


def _normal(name: str, orientations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit vector across the slices, (3,), of orientations (S, 6)."""
    row, column = orientations[:, :3], orientations[:, 3:]
    # The median, and not the first, so that the order of the files does not matter.
    typical = np.median(orientations, axis=0)
    with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are beyond the tolerance
        lengths = np.linalg.norm(row, axis=1), np.linalg.norm(column, axis=1)
        skew = np.stack([lengths[0] - 1, lengths[1] - 1, np.sum(row * column, axis=1)])
        spread = np.abs(orientations - typical)
    what = "row and column directions are no orthogonal unit vectors"
    _require_direction(name, what, np.abs(skew).max(axis=0))
    _require_direction(name, "mixed series: the orientation differs", spread.max(axis=1))
    normal = np.cross(typical[:3], typical[3:])
    return normal / np.linalg.norm(normal)


def _require_direction(name: str, what: str, departures: NDArray[np.float64]) -> None:
    beyond = ~(departures <= _DIRECTION_TOLERANCE)  # so that NaN is beyond
    if beyond.any():
        largest = float(departures.max())
        raise SeriesUnfit(
            name,
            f"{what} in {beyond.sum()} of {len(departures)} slices",
            attribute="ImageOrientationPatient",
            found=round(largest, 6) if np.isfinite(largest) else None,
            expected=f"within {_DIRECTION_TOLERANCE}",
        )


def _spacing(name: str, along: NDArray[np.float64]) -> tuple[float, tuple[str, ...]]:
    """Return the median gap in mm, and warnings; ``along`` holds the positions (S,), S > 1."""
    gaps = np.diff(np.sort(along))
    _require_distinct(name, gaps)
    median = float(np.median(gaps))
    departure = float(np.abs(gaps / median - 1).max())
    if departure <= _REGULAR_GAP:
        return median, ()
    found = f"gaps between slices of {gaps.min():.4g} to {gaps.max():.4g} mm, {departure:.1%} off"
    if departure <= _IRREGULAR_GAP:
        return median, (f"{found} the median; expected within {_REGULAR_GAP:.0%}",)
    raise SeriesUnfit(
        name,
        f"irregular series: {found} the median (is a slice missing?)",
        attribute="ImagePositionPatient",
        found=[round(float(gap), 4) for gap in (gaps.min(), median, gaps.max())],
        expected=f"gaps within {_IRREGULAR_GAP:.0%} of the median",
    )


def _straightness(
    name: str, origins: NDArray[np.float64], normal: NDArray[np.float64], spacing: float
) -> tuple[str, ...]:
    """Return warnings of a stack whose sorted ``origins``, (S, 3) in mm, jump sideways."""
    steps = np.diff(origins, axis=0)
    sideways = steps - np.outer(steps @ normal, normal)
    jumps = np.linalg.norm(sideways - np.median(sideways, axis=0), axis=1)
    largest = float(jumps.max())
    if largest <= _REGULAR_GAP * spacing:
        return ()
    found = f"a slice lies {largest:.4g} mm beside the line of the others"
    if largest <= _IRREGULAR_GAP * spacing:
        return (f"{found}; expected within {_REGULAR_GAP:.0%} of the distance of slices",)
    raise SeriesUnfit(
        name,
        f"irregular series: {found}",
        attribute="ImagePositionPatient",
        found=round(largest, 4),
        expected=f"within {_IRREGULAR_GAP:.0%} of {spacing:.4g} mm",
    )


def _require_distinct_files(name: str, scans: Sequence[Scan]) -> None:
    uids = [scan.header.sop_instance_uid for scan in scans if scan.header.sop_instance_uid]
    different = len(set(uids))
    if different < len(uids):
        raise SeriesUnfit(
            name,
            f"{len(uids) - different} of {len(scans)} files have the SOPInstanceUID of another",
            attribute="SOPInstanceUID",
            found=f"{different} values",
            expected=f"{len(uids)} values",
        )


def _require_distinct(name: str, gaps: NDArray[np.float64]) -> None:
    repeated = int((gaps <= _SAME_POSITION_MM).sum())
    if repeated:
        raise SeriesUnfit(
            name,
            f"{repeated} of {len(gaps) + 1} slices lie where another one does "
            "(copies, echoes or time points)",
            attribute="ImagePositionPatient",
            found=f"{len(gaps) + 1 - repeated} positions",
            expected=f"{len(gaps) + 1} positions",
        )
