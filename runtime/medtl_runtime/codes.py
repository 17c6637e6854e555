"""Which codes stand for a model's classes and values; `docs/structured-report.md` shows a file."""

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtl_runtime.answers import label_of
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head

PRIVATE_SCHEME = "99MEDTL"
"""Coding scheme of labels that no file maps; designators from 99 on are private (PS3.3 8.2)."""

# The most characters of each: SH, SH and LO (PS3.3 8.8, PS3.5 6.2).
_FIELDS = {"value": 16, "scheme": 16, "meaning": 64}


@dataclass(frozen=True, kw_only=True)
class Code:
    """A coded concept: Code Value, Coding Scheme Designator and Code Meaning (PS3.3 8.8)."""

    value: str
    scheme: str
    meaning: str


# It says that there was an imaging procedure, and not which (PS3.16 CID 100).
_ANY_PROCEDURE = Code(value="363679005", scheme="SCT", meaning="Imaging procedure")


@dataclass(frozen=True, kw_only=True)
class Codes:
    """The codes for a model's classes and values, and for the procedure that reports are about."""

    classes: Mapping[str, Code] = field(default_factory=dict)
    """By the name of the class; of several heads by HEAD=CLASS."""
    values: Mapping[str, Code] = field(default_factory=dict)
    """By the name of the regression."""
    procedure: Code = _ANY_PROCEDURE

    def of(self, label: str) -> Code:
        """Return the code of a class; a private one where no file maps it."""
        return self.classes.get(label) or private_code(label)

    def of_value(self, name: str) -> Code:
        """Return the code of what a regression measures; a private one where no file maps it."""
        return self.values.get(name) or private_code(name)


def private_code(label: str) -> Code:
    """Return a code of medtl's private scheme: the same for the same label, everywhere.

    The value is the label itself where it may stand in a DICOM Short String as it is, else the
    first 16 hexadecimal digits of the SHA-256 of its UTF-8; the meaning is the label, cut to 64
    characters.
    """
    digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()
    value = label if re.fullmatch(r"[A-Za-z0-9._-]{1,16}", label) else digest[:16]
    return Code(value=value, scheme=PRIVATE_SCHEME, meaning=one_line(label) or "unnamed")


def one_line(text: str, most: int = 64) -> str:
    """Return ``text`` as a Long String: no backslash, no control character, at most 64 characters.

    What may not stand in one becomes a question mark, and what is cut off an ellipsis.
    """
    line = "".join(one if _may_stand(one) else "?" for one in text)
    return (line if len(line) <= most else line[: most - 1] + "…").strip()


def read_codes(path: Path, heads: Sequence[Head]) -> Codes:
    """Read a TOML file with a table for each mapped class or value, and one for the procedure.

    Parameters
    ----------
    path
        The file: ``[classes.LABEL]``, ``[values.HEAD]`` and ``[procedure]``, all optional, each
        with ``value`` (at most 16 characters), ``scheme`` (16) and ``meaning`` (64).
    heads
        The model's; a label that is not one of theirs is refused, because it is a slip.

    Raises
    ------
    UsageError
        The file cannot be read, or a field is missing, unknown, empty or too long.
    """
    document = _document(path)
    _refuse_unknown(document, ("classes", "values", "procedure"), path, "")
    classes = [label_of(heads, head, name) for head in heads for name in head.classes]
    values = [head.name for head in heads if head.kind == "regression"]
    given = document.get("procedure")
    return Codes(
        classes=_mapped(document, path, "classes", classes, "class"),
        values=_mapped(document, path, "values", values, "regression"),
        procedure=_ANY_PROCEDURE if given is None else _code(given, path, "procedure"),
    )


def _mapped(
    document: Mapping[str, Any], path: Path, name: str, known: Sequence[str], kind: str
) -> dict[str, Code]:
    """Return the codes of the table ``name``, whose keys have to be among those known."""
    tables = _table(document.get(name, {}), path, name)
    for label in tables:
        if label not in known:
            expected = ", ".join(known) or "none"
            raise UsageError(
                f"{path}: {name}.{label} is no {kind} of the model; expected {expected}"
            )
    return {label: _code(data, path, f"{name}.{label}") for label, data in tables.items()}


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise UsageError(f"{path}: {cause.strerror or cause}") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise UsageError(f"{path} is not TOML: {cause}") from cause


def _table(data: Any, path: Path, name: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise UsageError(f"{path}: {name} is {data!r}; expected a table")
    return data


def _refuse_unknown(table: Mapping[str, Any], known: Sequence[str], path: Path, name: str) -> None:
    for key in table:
        if key not in known:
            expected = ", ".join(known)
            raise UsageError(f"{path}: {name}{key} is unknown; expected {expected}")


def _code(data: Any, path: Path, name: str) -> Code:
    table = _table(data, path, name)
    _refuse_unknown(table, tuple(_FIELDS), path, f"{name}.")
    for one, most in _FIELDS.items():
        if one not in table:
            raise UsageError(f"{path}: {name}.{one} is missing")
        _check_text(table[one], most, f"{path}: {name}.{one}")
    return Code(**table)


def _check_text(value: Any, most: int, where: str) -> None:
    if not isinstance(value, str) or not value or value != value.strip():
        raise UsageError(f"{where} is {value!r}; expected text without spaces around it")
    if len(value) > most:
        raise UsageError(f"{where} has {len(value)} characters; DICOM allows {most}")
    if not all(map(_may_stand, value)):
        raise UsageError(f"{where} holds a backslash or a control character")


def _may_stand(character: str) -> bool:
    """Whether it may be part of a Short or Long String; the backslash parts values (PS3.5 6.2)."""
    return character.isprintable() and character != "\\"
