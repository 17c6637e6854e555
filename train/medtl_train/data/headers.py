"""What the headers of the training images held: what the exporter learns the intended use from."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from medtl_runtime.intended_use import ATTRIBUTES, values_of
from medtl_runtime.scan import Header

# Capitals, digits, space and underscore (CS, PS3.5 6.2), or a UID. What else stands in such a field
# was typed there, and goes into no file that leaves the place.
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_UID = re.compile(r"[0-9.]{1,64}")

# What is typed in capitals looks like a code: a body part that only one patient has may be a name.
_TYPED = ("BodyPartExamined", "ViewPosition")
_LEAST_PATIENTS = 2

OLDEST = 90.0
"""Ages above it are noted as it: at a great age a number can tell who it is."""


def summarise(headers: Sequence[Header]) -> dict[str, dict[str, Any]]:
    """Return what the headers of images hold, by attribute, as JSON values.

    Parameters
    ----------
    headers
        One for each image.

    Returns
    -------
    By keyword of `ATTRIBUTES`. Of codes: ``counts``, images by code; ``other``, the number of
    images whose values are not named, because they are no codes, or because they are typed at the
    scanner (body part and view position) and only one patient has them; and ``missing``, those
    without any.
    Of numbers: ``low`` and ``high``, their range (None without any), and ``missing``, the number of
    images without a usable one. Nothing of it names a patient.
    """
    return {
        keyword: _range(headers, keyword) if attribute.numeric else _counts(headers, keyword)
        for keyword, attribute in ATTRIBUTES.items()
    }


def _counts(headers: Sequence[Header], keyword: str) -> dict[str, Any]:
    found = [set(map(str, values_of(header, keyword))) for header in headers]
    patients: dict[str, set[str]] = defaultdict(set)
    for header, codes in zip(headers, found, strict=True):
        for code in codes:
            patients[code].add(header.patient_id or header.study_instance_uid)
    pattern = _UID if keyword == "SOPClassUID" else _CODE
    least = _LEAST_PATIENTS if keyword in _TYPED else 1
    named = {one for one in patients if pattern.fullmatch(one) and len(patients[one]) >= least}
    counts = Counter(code for codes in found for code in codes & named)
    return {
        "missing": sum(not codes for codes in found),
        "other": sum(bool(codes) and not codes & named for codes in found),
        "counts": {code: counts[code] for code in sorted(counts)},
    }


def _range(headers: Sequence[Header], keyword: str) -> dict[str, Any]:
    found = [_numbers(header, keyword) for header in headers]
    numbers = [number for some in found for number in some]
    return {
        "missing": sum(not some for some in found),
        "low": min(numbers, default=None),
        "high": max(numbers, default=None),
    }


def _numbers(header: Header, keyword: str) -> list[float]:
    numbers = [float(number) for number in values_of(header, keyword)]
    if keyword == "PatientAge":
        numbers = [min(number, OLDEST) for number in numbers]
    return [number for number in numbers if math.isfinite(number)]
