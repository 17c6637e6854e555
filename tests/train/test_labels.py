"""What a label column asks is read from one line, and answers have one spelling."""

import math

import numpy as np
import pytest

from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head
from medtl_train.data.labels import (
    BINARY,
    Question,
    heads_of,
    parse_questions,
    policy_in_force,
    read_answer,
    targets_of,
)
from medtl_train.errors import DataUnfit


def test_a_column_alone_asks_for_classes() -> None:
    assert parse_questions("finding") == (Question(name="finding"),)


def test_kinds_units_and_orders_are_read() -> None:
    assert parse_questions("edema:binary, age:value=a,birads:grades,grade:grades=low<mid<high") == (
        Question(name="edema", kind="binary"),
        Question(name="age", kind="regression", unit="a"),
        Question(name="birads", kind="ordinal"),
        Question(name="grade", kind="ordinal", order=("low", "mid", "high")),
    )


def test_folders_and_arrays_have_a_kind_without_a_column() -> None:
    assert parse_questions(":grades") == (Question(name="label", kind="ordinal"),)


@pytest.mark.parametrize(
    "spec",
    [
        "a:multi", "a:binary=yes", "a:classes=x", "a:grades=", "a:grades=low", "a:grades=x<x",
        "a:grades=x<<y", "a,a", "a:binary,a:value",
    ],
)  # fmt: skip
def test_what_no_column_can_be_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="--label-column"):
        parse_questions(spec)


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("binary", "1", "present"), ("binary", "0.0", "absent"), ("binary", "Yes", "present"),
        ("binary", "FALSE", "absent"), ("binary", "Positive", "present"), ("binary", "NaN", ""),
        ("regression", "34.0", "34"), ("regression", "1e-3", "0.001"), ("regression", "N/A", ""),
        ("ordinal", "2.0", "2"), ("ordinal", "", ""), ("multiclass", "NA", "NA"),
        ("multiclass", "1.0", "1.0"),
    ],
)  # fmt: skip
def test_an_answer_has_one_spelling(kind, text: str, answer: str) -> None:
    assert Question(name="x", kind=kind).read(text) == answer


def test_every_number_survives_being_written() -> None:
    question = Question(name="x", kind="regression")
    for number in np.random.default_rng(0).normal(0, 1e3, 50).tolist():
        assert float(question.read(str(number))) == number


@pytest.mark.parametrize(
    ("question", "text", "message"),
    [
        (Question(name="q", kind="binary"), "-1", "q is -1; expected 0 or 1, no or yes"),
        (Question(name="q", kind="regression"), "old", "q is old; expected a number"),
        (Question(name="q", kind="regression"), "inf", "q is inf; expected a number"),
        (Question(name="q", kind="ordinal"), "low", r"of grades in words say the order"),
        (Question(name="q", kind="ordinal", order=("a", "b")), "c", "expected one of a, b"),
    ],
)
def test_what_is_no_answer_is_refused_with_its_place(
    question: Question, text: str, message: str
) -> None:
    with pytest.raises(DataUnfit, match=message) as refused:
        read_answer(question, text, "mask", "t.csv, row 7")
    assert str(refused.value).startswith("t.csv, row 7: ")


def test_a_missing_answer_is_refused_or_empty() -> None:
    question = Question(name="edema", kind="binary")
    assert read_answer(question, "", "mask", "row 1") == ""
    with pytest.raises(DataUnfit, match="row 1: edema is missing; --missing-labels drop"):
        read_answer(question, "", "refuse", "row 1")


def test_one_label_must_be_there_and_one_of_several_may_be_missing() -> None:
    one, two = parse_questions("a"), parse_questions("a:binary,b:binary")
    assert policy_in_force("auto", one) == "refuse"
    assert policy_in_force("auto", two) == "mask"
    assert policy_in_force("drop", two) == "drop"


def test_heads_are_made_of_the_answers() -> None:
    questions = parse_questions("f,e:binary,g:grades,o:grades=low<mid<high,v:value=mm")
    answers = [
        ("b", "present", "10", "high", "1"),
        ("a", "", "9", "low", ""),
        ("b", "", "", "", ""),
    ]
    assert heads_of(questions, answers) == (
        Head(name="f", classes=("a", "b")),
        Head(name="e", kind="binary", classes=BINARY),
        Head(name="g", kind="ordinal", classes=("9", "10")),
        Head(name="o", kind="ordinal", classes=("low", "mid", "high")),
        Head(name="v", kind="regression", unit="mm"),
    )


@pytest.mark.parametrize(
    ("spec", "answers", "message"),
    [
        ("f", [("a",), ("a",)], r"one class only \(a\)"),
        ("a:binary,b:binary", [("", "present"), ("", "absent")], "no image has a label for a"),
        ("age", [(str(n),) for n in range(60)], "60 different numbers.*--label-column age:value"),
    ],
)
def test_answers_that_make_no_head_are_refused(spec: str, answers: list, message: str) -> None:
    with pytest.raises(DataUnfit, match=message):
        heads_of(parse_questions(spec), answers)


def test_targets_are_indices_values_and_nan() -> None:
    heads = (
        Head(name="f", classes=("a", "b", "c")),
        Head(name="e", kind="binary", classes=BINARY),
        Head(name="v", kind="regression", unit="mm"),
        Head(name="u", kind="binary", classes=BINARY),
    )
    *known, unknown = targets_of(heads, ("c", "present", "2.5", ""))
    assert known == [2.0, 1.0, 2.5]
    assert math.isnan(unknown)


@pytest.mark.parametrize("answers", [("d",), ("a", "b"), ()])
def test_answers_that_are_not_the_heads_are_refused(answers: tuple[str, ...]) -> None:
    with pytest.raises(DataUnfit):
        targets_of((Head(name="f", classes=("a", "b")),), answers)
