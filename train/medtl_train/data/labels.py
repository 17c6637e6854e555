"""What the labels of an image say: from words in a table to the targets of the heads.

    --label-column finding                              one question, alternatives
    --label-column edema:binary,age:value=a,birads:grades     three questions

An image has one text for each question; an empty one is unknown.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head, Kind
from medtl_train.config.data import MissingLabels
from medtl_train.errors import DataUnfit

BINARY = ("absent", "present")
"""The classes of a binary head."""

_NO_NAME = "label"
_KINDS: dict[str, Kind] = {
    "classes": "multiclass",
    "binary": "binary",
    "grades": "ordinal",
    "value": "regression",
}
_ABSENT = {"0", "no", "false", "absent", "negative"}
_PRESENT = {"1", "yes", "true", "present", "positive"}
_UNKNOWN = {"", "nan", "na", "n/a", "null"}
"""Of the kinds that have no names of their own; a class may be called NA."""

_MOST_NUMBERS = 50
"""More different numbers than this are no classes, but values."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of every image; it becomes a `Head` once all answers are known."""

    name: str
    kind: Kind = "multiclass"
    order: tuple[str, ...] = ()
    """Of grades, the lowest first; empty where they are numbers."""
    unit: str = ""
    """Of values, in UCUM."""

    def read(self, text: str) -> str:
        """Return an answer in its one spelling, so that ``1`` and ``yes`` are the same.

        Raises
        ------
        ValueError
            It is no answer; the message says what was expected.
        """
        if self.kind == "multiclass":
            return text
        if text.lower() in _UNKNOWN:
            return ""
        if self.kind == "binary":
            return _binary(text)
        if self.kind == "regression":
            return _value(text)
        return _grade(text, self.order)


def parse_questions(spec: str) -> tuple[Question, ...]:
    """Return what ``--label-column`` asks: ``COLUMN[:KIND]``, separated by commas.

    Raises
    ------
    UsageError
        No such kind, a column that is named twice, or grades in no order.
    """
    questions = tuple(_parse(part.strip()) for part in spec.split(","))
    names = [question.name for question in questions]
    if len(set(names)) < len(names):
        raise UsageError(f"--label-column is {spec}; expected each column once")
    return questions


def _parse(part: str) -> Question:
    column, _, kind = part.partition(":")
    word, given, detail = kind.partition("=")
    name = column or _NO_NAME
    if not kind:
        return Question(name=name)
    if word not in _KINDS or (given and word not in ("grades", "value")):
        expected = "COLUMN, or COLUMN: with classes, binary, grades, grades=LOW<…<HIGH, value"
        raise UsageError(f"--label-column has {part}; expected {expected} or value=UNIT")
    if word != "grades":
        return Question(name=name, kind=_KINDS[word], unit=detail.strip())
    order = tuple(_spelling(grade.strip()) for grade in detail.split("<")) if detail else ()
    if given and (len(order) < 2 or len(set(order)) < len(order) or not all(order)):
        raise UsageError(f"--label-column has {part}; expected grades=LOW<…<HIGH, each once")
    return Question(name=name, kind="ordinal", order=order)


def _binary(text: str) -> str:
    word = _spelling(text).lower()
    if word in _ABSENT | _PRESENT:
        return BINARY[word in _PRESENT]
    words = "0 or 1, no or yes, false or true, absent or present, negative or positive"
    raise ValueError(f"expected {words}, or nothing where it is unknown")


def _value(text: str) -> str:
    number = _number(text)
    if number is None:
        raise ValueError("expected a number, or nothing where it is unknown")
    return _spelling(text)


def _grade(text: str, order: tuple[str, ...]) -> str:
    grade = _spelling(text)
    if order and grade not in order:
        raise ValueError(f"expected one of {', '.join(order)}")
    if not order and _number(text) is None:
        raise ValueError("expected a number; of grades in words say the order, grades=LOW<…<HIGH")
    return grade


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _spelling(text: str) -> str:
    """Return a number in its shortest form, as 2 for 2.0; other texts as they are."""
    number = _number(text)
    return text if number is None else repr(number).removesuffix(".0")


def read_answer(question: Question, text: str, missing: MissingLabels, place: str) -> str:
    """Return an answer in its one spelling, empty where it is unknown.

    Parameters
    ----------
    missing
        Refuses what is unknown, or not; never ``auto``.
    place
        Where the text stands, for the message.

    Raises
    ------
    DataUnfit
        It is none, or unknown where that is refused.
    """
    try:
        answer = question.read(text)
    except ValueError as cause:
        raise DataUnfit(f"{place}: {question.name} is {text}; {cause}") from cause
    if not answer and missing == "refuse":
        remedy = "--missing-labels drop leaves such images out"
        raise DataUnfit(f"{place}: {question.name} is missing; {remedy}")
    return answer


def policy_in_force(missing: MissingLabels, questions: Sequence[Question]) -> MissingLabels:
    """Return what ``auto`` stands for.

    With one question an image without an answer teaches nothing, and is rather a mistake in the
    table. With several it teaches the others.
    """
    if missing != "auto":
        return missing
    return "refuse" if len(questions) == 1 else "mask"


def heads_of(questions: Sequence[Question], answers: Iterable[Sequence[str]]) -> tuple[Head, ...]:
    """Return the heads, with the classes that the answers hold.

    Parameters
    ----------
    answers
        Of each image, one text for each question.

    Raises
    ------
    DataUnfit
        Fewer than two classes or grades; or classes that are numbers, and too many.
    """
    found: list[set[str]] = [set() for _ in questions]
    for texts in answers:
        for known, text in zip(found, texts, strict=True):
            known.add(text)
    return tuple(
        _head(question, known - {""}) for question, known in zip(questions, found, strict=True)
    )


def _head(question: Question, answers: set[str]) -> Head:
    name, kind = question.name, question.kind
    if not answers:
        raise DataUnfit(f"no image has a label for {name}")
    if kind == "regression":
        return Head(name=name, kind=kind, unit=question.unit)
    if kind == "binary":
        return Head(name=name, kind=kind, classes=BINARY)
    classes = question.order or class_names(answers)
    if kind == "multiclass" and len(classes) > _MOST_NUMBERS and _all_numbers(classes):
        raise DataUnfit(
            f"{name} has {len(classes)} different numbers; expected classes: for a regression "
            f"say --label-column {name}:value"
        )
    if len(answers) < 2:
        only = "".join(answers)
        raise DataUnfit(f"one class only ({only}); a classifier needs two or more")
    return Head(name=name, kind=kind, classes=classes)


def _all_numbers(names: Iterable[str]) -> bool:
    return all(_number(name) is not None for name in names)


def class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in order: by number where all are numbers, else by name."""
    known = sorted(set(names))
    return tuple(sorted(known, key=float if _all_numbers(known) else str))


def targets_of(heads: Sequence[Head], answers: Sequence[str]) -> list[float]:
    """Return what each head should answer; NaN where it is not known.

    Index of the class, 0 or 1 of a binary head, index of the grade, or the value in its unit.

    Raises
    ------
    DataUnfit
        An answer is none of the head's, or there is not one for each.
    """
    if len(answers) != len(heads):
        raise DataUnfit(f"{len(answers)} labels; expected {len(heads)}, one for each head")
    return [_target(head, text) for head, text in zip(heads, answers, strict=True)]


def _target(head: Head, text: str) -> float:
    if not text:
        return math.nan
    if head.kind == "regression":
        number = _number(text)
        if number is None:
            raise DataUnfit(f"the label {text!r} of {head.name} is no number")
        return number
    if text not in head.classes:
        expected = ", ".join(head.classes)
        raise DataUnfit(f"the label {text!r} is no class of {head.name}; expected {expected}")
    return float(head.classes.index(text))
