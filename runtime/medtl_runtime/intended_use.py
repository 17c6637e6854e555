"""The intended use of a model: which images it was made for, checked on the header before decoding.

A `Rule` says what one attribute may hold and what follows when it holds something else, or nothing:
a missing value is not a pass. The exporter learns rules from the headers of the training images and
takes others from its configuration; see `docs/model-file.md`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from medtl_runtime.errors import ScanOutOfScope, UsageError
from medtl_runtime.scan import Header

Action = Literal["allow", "warn", "reject"]


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """A DICOM attribute that rules can be about."""

    field: str
    """Of `Header`."""
    numeric: bool = False
    """Compared with bounds; else with lists of codes, whatever their case."""
    unit: str = ""
    in_reasons: bool = False
    """Whether the reason of a refusal tells its value. Logs hold reasons, so not those that are of
    the patient or typed at the scanner."""


ATTRIBUTES: Mapping[str, Attribute] = {
    "Modality": Attribute(field="modality", in_reasons=True),
    "SOPClassUID": Attribute(field="sop_class_uid", in_reasons=True),
    "BodyPartExamined": Attribute(field="body_part_examined"),
    "ViewPosition": Attribute(field="view_position"),
    "PhotometricInterpretation": Attribute(field="photometric_interpretation", in_reasons=True),
    "PresentationIntentType": Attribute(field="presentation_intent_type"),
    "BurnedInAnnotation": Attribute(field="burned_in_annotation"),
    "ImageType": Attribute(field="image_type"),
    "Rows": Attribute(field="rows", numeric=True, unit="pixels", in_reasons=True),
    "Columns": Attribute(field="columns", numeric=True, unit="pixels", in_reasons=True),
    "PixelSpacing": Attribute(field="pixel_spacing", numeric=True, unit="mm", in_reasons=True),
    "PatientAge": Attribute(field="patient_age", numeric=True, unit="years"),
}
"""By keyword (PS3.6)."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one attribute may hold.

    Of an attribute with several values, ImageType, one has to be among ``values`` and none among
    ``forbidden``; both values of PixelSpacing have to lie within the bounds.

    Raises
    ------
    UsageError
        An unknown attribute, a field that does not fit it, or bounds in the wrong order.
    """

    attribute: str
    """A keyword in `ATTRIBUTES`."""
    values: tuple[str, ...] = ()
    """Codes that are accepted; empty for all."""
    forbidden: tuple[str, ...] = ()
    """Codes that are not."""
    low: float | None = None
    """Lowest accepted number, in the attribute's unit; None for no bound."""
    high: float | None = None
    """Highest accepted number."""
    mismatch: Action = "reject"
    """What follows from another value."""
    missing: Action = "warn"
    """What follows from none."""

    def __post_init__(self) -> None:
        _check_rule(self)

    @property
    def expected(self) -> str:
        """What is accepted, in words."""
        unit = ATTRIBUTES[self.attribute].unit
        bounds = (self.low, self.high)
        if bounds != (None, None):
            return f"{_range_in_words(*bounds)} {unit}"
        accepted = [" or ".join(self.values)] if self.values else []
        excluded = [f"not {' or '.join(self.forbidden)}"] if self.forbidden else []
        return ", ".join(accepted + excluded) or "any value"

    def __str__(self) -> str:
        return f"{self.attribute}: {self.expected}; else {self.mismatch}, missing {self.missing}"

    def assess(self, header: Header) -> "Mismatch | None":
        """Return how a header departs from the rule, if it does and that is not allowed."""
        found = values_of(header, self.attribute)
        if not found:
            action = self.missing
        elif self._accepts(found):
            action = "allow"
        else:
            action = self.mismatch
        if action == "allow":
            return None
        return Mismatch(
            attribute=self.attribute,
            found=found[0] if len(found) == 1 else list(found) or None,
            expected=self.expected,
            action=action,
        )

    def _accepts(self, found: Sequence[str | float]) -> bool:
        if ATTRIBUTES[self.attribute].numeric:
            low = -math.inf if self.low is None else self.low
            high = math.inf if self.high is None else self.high
            return all(low <= float(number) <= high for number in found)
        codes = {str(code) for code in found}
        if codes & {code.upper() for code in self.forbidden}:
            return False
        return not self.values or bool(codes & {code.upper() for code in self.values})

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; `from_json` is its inverse."""
        lists = {"values": list(self.values), "forbidden": list(self.forbidden)}
        return {**{one.name: getattr(self, one.name) for one in fields(self)}, **lists}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Rule":
        """Read what `to_json` wrote; fields that are left out have their defaults.

        Raises
        ------
        UsageError
            A field is unknown, or is no value for a rule.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("attribute"), str):
            raise UsageError("a rule of the intended use without an attribute")
        attribute = data["attribute"]
        unknown = set(data) - {one.name for one in fields(Rule)}
        if unknown:
            names = ", ".join(sorted(map(str, unknown)))
            raise UsageError(f"intended use, {attribute}: unknown field {names}")
        given: dict[str, Any] = dict(data)
        for name in ("values", "forbidden"):
            codes = given.get(name, [])
            if not isinstance(codes, list | tuple) or not all(isinstance(c, str) for c in codes):
                raise UsageError(f"intended use, {attribute}: {name} is no list of texts")
            given[name] = tuple(codes)
        return Rule(**given)


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Where a header departs from the intended use."""

    attribute: str
    found: str | float | Sequence[str | float] | None
    """None where the attribute is missing."""
    expected: str
    """In words."""
    action: Action

    @property
    def reason(self) -> str:
        """One line for people and for logs: it tells no value that could be of the patient."""
        if self.found is None:
            return f"{self.attribute} is missing; expected {self.expected}"
        found = _in_words(self.found)
        if ATTRIBUTES[self.attribute].in_reasons and re.fullmatch(r"[A-Z0-9_. x]{1,64}", found):
            return f"{self.attribute} is {found}; expected {self.expected}"
        return f"{self.attribute} is not what the model is for; expected {self.expected}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True, kw_only=True)
class IntendedUse:
    """What the model may be used on: one rule for each attribute that matters.

    Raises
    ------
    UsageError
        Two rules for one attribute.
    """

    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        names = [rule.attribute for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"intended use with two rules for {', '.join(twice)}")

    def check(self, header: Header, source: str) -> tuple[Mismatch, ...]:
        """Return what is to be warned of, in the order of the rules.

        Images that are not DICOM have no attributes, not even their size: a rule says by
        ``missing`` what follows.

        Raises
        ------
        ScanOutOfScope
            A rule rejects the header; the first that does is named.
        """
        found = [one for rule in self.rules if (one := rule.assess(header)) is not None]
        for one in found:
            if one.action == "reject":
                raise ScanOutOfScope(
                    source,
                    one.reason,
                    attribute=one.attribute,
                    found=one.found,
                    expected=one.expected,
                )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; `from_json` is its inverse."""
        return {"rules": [rule.to_json() for rule in self.rules]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "IntendedUse":
        """Read what `to_json` wrote.

        Raises
        ------
        UsageError
            A field is missing, unknown, or does not fit its attribute.
        """
        if not isinstance(data, Mapping) or set(data) != {"rules"}:
            raise UsageError("malformed intended use; expected rules and nothing else")
        if not isinstance(data["rules"], list):
            raise UsageError("malformed intended use; rules is no list")
        return IntendedUse(rules=tuple(map(Rule.from_json, data["rules"])))


def values_of(header: Header, attribute: str) -> Sequence[str | float]:
    """Return what a header holds: codes in capitals, or numbers; empty where it is missing."""
    found = getattr(header, ATTRIBUTES[attribute].field)
    if found is None or found == "":
        return ()
    values = found if isinstance(found, tuple) else (found,)
    if ATTRIBUTES[attribute].numeric:
        return values
    return tuple(code.strip().upper() for code in values if code.strip())


def _check_rule(rule: Rule) -> None:
    def require(condition: bool, words: str) -> None:
        if not condition:
            raise UsageError(f"intended use, {rule.attribute}: {words}")

    expected = ", ".join(ATTRIBUTES)
    require(rule.attribute in ATTRIBUTES, f"unknown attribute; expected one of {expected}")
    for name in ("mismatch", "missing"):
        found = getattr(rule, name)
        words = f"{name} is {found}; expected {', '.join(get_args(Action))}"
        require(isinstance(found, str) and found in get_args(Action), words)
    bounds = {name: getattr(rule, name) for name in ("low", "high")}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if not ATTRIBUTES[rule.attribute].numeric:
        require(not given, f"{' and '.join(given)} for codes; expected values or forbidden")
        return
    require(not rule.values and not rule.forbidden, "codes for a number; expected low or high")
    for name, bound in given.items():
        require(_is_number(bound), f"{name} is {bound!r}; expected a number")
    require(len(given) < 2 or given["low"] <= given["high"], "low is above high")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _in_words(found: str | float | Sequence[str | float]) -> str:
    values = [found] if isinstance(found, str | int | float) else found
    return " x ".join(one if isinstance(one, str) else f"{one:g}" for one in values)


def _range_in_words(low: float | None, high: float | None) -> str:
    if high is None:
        return f"{low:g} or more"
    return f"at most {high:g}" if low is None else f"{low:g} to {high:g}"
