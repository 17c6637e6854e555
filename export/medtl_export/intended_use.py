"""The intended use that goes into a model file: learned from the training headers, then edited.

What the training images held says what the model has been shown, not what it is good for: the
configuration has the last word. In it, a table ``[intended_use.Modality]`` replaces the learned
rule of an attribute, and ``Modality = false`` in ``[intended_use]`` removes it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from medtl_runtime.errors import UsageError
from medtl_runtime.intended_use import ATTRIBUTES, Action, IntendedUse, Rule
from medtl_train.data.headers import OLDEST

TABLE = "intended_use"
"""The name of the table in the configuration."""

_YEARS_BESIDE = 10
_DECADE = 10
_GROWN_UP = 18

Summary = Mapping[str, Any]
"""Of one attribute, as `medtl_train.data.headers.summarise` writes it."""


def learned_rules(headers: Mapping[str, Summary]) -> tuple[Rule, ...]:
    """Return the rules that the training headers give, in the order of `ATTRIBUTES`.

    - Modality: another than those seen is rejected.
    - SOPClassUID, PhotometricInterpretation, BodyPartExamined, ViewPosition: another than those
      seen is warned of; what is written there is often wrong or another word for the same.
    - PresentationIntentType: FOR PROCESSING is rejected where only FOR PRESENTATION was seen: it
      has other grey values.
    - ImageType: LOCALIZER is rejected, BurnedInAnnotation: YES is warned of, unless seen.
    - Rows, Columns, PixelSpacing: warned of below half of the smallest and above twice the largest.
    - PatientAge: warned of more than ten years outside the range seen, and of children where none
      was seen. Bounds are rounded outwards to whole decades, so that the model file tells no
      patient's age: 47 to 63 gives 30 to 80.
    - Codes that `medtl_train.data.headers` does not name, because only one patient has them, are
      as if they had not been seen.
    - A missing value counts as a mismatch where no training image lacked it, save where the
      standard leaves the attribute out for most images (age, annotation, intent, image type): it
      is allowed there.

    Where no training image was DICOM there is nothing to learn, and no rule but those for size.
    """
    makers: Mapping[str, Callable[[str, Summary], Rule | None]] = {
        "Modality": lambda name, seen: _among(name, seen, "reject"),
        "SOPClassUID": lambda name, seen: _among(name, seen, "warn"),
        "BodyPartExamined": lambda name, seen: _among(name, seen, "warn"),
        "ViewPosition": lambda name, seen: _among(name, seen, "warn"),
        "PhotometricInterpretation": lambda name, seen: _among(name, seen, "warn"),
        "PresentationIntentType": lambda name, seen: _without(
            name, seen, "FOR PROCESSING", "reject"
        ),
        "BurnedInAnnotation": _without_annotation(headers),
        "ImageType": lambda name, seen: _without(name, seen, "LOCALIZER", "reject"),
        "Rows": _near,
        "Columns": _near,
        "PixelSpacing": _near,
        "PatientAge": _ages,
    }
    made = (makers[name](name, headers[name]) for name in ATTRIBUTES)
    return tuple(rule for rule in made if rule is not None)


def _among(name: str, seen: Summary, action: Action) -> Rule | None:
    if not seen["counts"]:
        return None
    missing = "allow" if seen["missing"] else action
    return Rule(attribute=name, values=tuple(seen["counts"]), mismatch=action, missing=missing)


def _without(name: str, seen: Summary, code: str, action: Action) -> Rule | None:
    if not seen["counts"] or code in seen["counts"]:
        return None
    return Rule(attribute=name, forbidden=(code,), mismatch=action, missing="allow")


def _without_annotation(headers: Mapping[str, Summary]) -> Callable[[str, Summary], Rule | None]:
    def rule(name: str, seen: Summary) -> Rule | None:
        # Most images without annotations lack the attribute, so its absence is knowledge as well,
        # if they are DICOM at all.
        if not headers["Modality"]["counts"] or "YES" in seen["counts"]:
            return None
        return Rule(attribute=name, forbidden=("YES",), mismatch="warn", missing="allow")

    return rule


def _near(name: str, seen: Summary) -> Rule | None:
    if seen["low"] is None:
        return None
    missing = "allow" if seen["missing"] else "warn"
    low, high = seen["low"] / 2, 2 * seen["high"]
    return Rule(attribute=name, low=low, high=high, mismatch="warn", missing=missing)


def _ages(name: str, seen: Summary) -> Rule | None:
    if seen["low"] is None:
        return None
    low = _DECADE * math.floor((seen["low"] - _YEARS_BESIDE) / _DECADE)
    high = _DECADE * math.ceil((seen["high"] + _YEARS_BESIDE) / _DECADE)
    return Rule(
        attribute=name,
        low=max(low, _GROWN_UP if seen["low"] >= _GROWN_UP else 0),
        # None where the oldest was as old as is noted.
        high=None if seen["high"] >= OLDEST else high,
        mismatch="warn",
        missing="allow",
    )


def intended_use(headers: Mapping[str, Summary], table: Mapping[str, Any]) -> IntendedUse:
    """Return the learned rules with those of the configuration in their places.

    Parameters
    ----------
    headers
        What `medtl_train.data.headers.summarise` wrote.
    table
        The configuration's table; see `edits`.
    """
    changed = edits(table)
    learned = {rule.attribute: rule for rule in learned_rules(headers)}
    chosen = (changed.get(name, learned.get(name)) for name in ATTRIBUTES)
    return IntendedUse(rules=tuple(rule for rule in chosen if rule is not None))


def edits(table: Mapping[str, Any]) -> dict[str, Rule | None]:
    """Read the configuration's table: a rule by attribute, or None where there is to be none.

    Raises
    ------
    UsageError
        An attribute or a field that there is not, or a value that does not fit it.
    """
    if not isinstance(table, Mapping):
        raise UsageError(f"{TABLE} is {table}; expected a table such as [{TABLE}.Modality]")
    return {name: _edit(name, entry) for name, entry in table.items()}


def _edit(name: str, entry: Any) -> Rule | None:
    if name not in ATTRIBUTES:
        raise UsageError(f"{TABLE}.{name}: unknown attribute; expected {', '.join(ATTRIBUTES)}")
    if entry is False:
        return None
    if not isinstance(entry, Mapping) or "attribute" in entry:
        raise UsageError(f"{TABLE}.{name}: expected false or a table of a rule's fields")
    return Rule.from_json({**entry, "attribute": name})
