"""The model card says what the file's description holds, no more, and survives any name."""

import copy
import html
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from markdown_it import MarkdownIt

from medtl_export.card import card_json, card_markdown
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.decision import (
    Decision,
    HeadDecision,
    Margin,
    NoveltyCutoffs,
    OperatingPoint,
    Triage,
)
from medtl_runtime.heads import Head
from medtl_runtime.intended_use import IntendedUse, Rule
from medtl_runtime.modelfile import Description
from medtl_runtime.recipe import FixedWindow, HeaderVoi, Recipe
from medtl_runtime.testing import describe

DIGEST = "sha256:" + "ab" * 32
CLASSES = ("healthy", "lesion")
POINT = OperatingPoint(
    rule="threshold",
    positive="lesion",
    threshold=0.304288,
    chosen="Youden's J on 90 validation images",
)


def metric(value: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def evaluation(confusion: list[list[int]], patients: int) -> dict[str, Any]:
    counts = {"images": sum(map(sum, confusion)), "patients": patients}
    found = {
        **counts,
        "resamples": 1000,
        "metrics": {
            "auroc": metric(0.83185, 0.73579, 0.91151),
            "recall": metric(0.88888, 0.78488, 0.97562),
            "specificity": metric(None, None, None),
        },
        "confusion": confusion,
        "delong": None,
    }
    return {**counts, "heads": {"label": found}}


def targets(**splits: dict[str, int]) -> dict[str, Any]:
    return {name: {"label": {"counts": one, "unknown": 0}} for name, one in splits.items()}


def facts(classes: tuple[str, ...] = CLASSES, **changes: Any) -> dict[str, Any]:
    k = len(classes)
    table = [[7 + 10 * i + j for j in range(k)] for i in range(k)]
    counts = {name: sum(row) for name, row in zip(classes, table, strict=True)}
    return {
        "run": "liver",
        "architecture": "resnet18",
        "head": "linear",
        "data_fingerprint": "sha256:" + "cd" * 32,
        "images": {"train": 20 * k, "val": sum(counts.values()), "test": sum(counts.values())},
        "targets": targets(train=dict.fromkeys(classes, 20), val=counts, test=counts),
        "patients": {"train": 10, "val": 30, "test": 60},
        "patients_known": True,
        "configuration": {"epochs": 12, "optimizer": "adamw", "path_column": "path", "seed": 0},
        "parent_weights": "lung",
        "validation": evaluation(table, 30),
        "test": evaluation(table, 60),
        "external": None,
        "parity": {"images": 90, "largest_difference": 1.7e-6, "flips": 0, "tolerance": 0.00031},
        "versions": {"torch": "2.9.0", "medtl": "0.1.0"},
        **changes,
    }


def described(classes: tuple[str, ...] = CLASSES, **changes: Any) -> Description:
    given = {
        "name": "liver",
        "version": "cdcdcdcdcdcd",
        "decision": Decision(heads=(HeadDecision(temperature=3.5794, operating_point=POINT),)),
        "provenance": facts(classes),
        "requires": {"ir_version": 10, "opset": 20, "onnxruntime": "1.23"},
    }
    return describe(classes=classes, **(given | changes))


def row(attribute: str = "PatientAge", value: str = "18 to 39 years") -> dict[str, Any]:
    metrics = {"auroc": metric(0.812, 0.701, 0.898), "recall": metric(None, None, None)}
    return {
        "head": "label",
        "attribute": attribute,
        "value": value,
        "images": 41,
        "patients": 17,
        "resamples": 400,
        "metrics": metrics,
    }


def card(description: Description, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return card_json(description, subgroups=rows or [], digest=DIGEST, size_bytes=11386707)


def markdown(description: Description, rows: list[dict[str, Any]] | None = None) -> str:
    return card_markdown(card(description, rows))


def stated(description: Description, rows: list[dict[str, Any]] | None = None) -> dict[str, str]:
    """Return the limitations by fact."""
    return {one["fact"]: one["text"] for one in card(description, rows)["limitations"]}


def rendered(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the table whose head begins with ``first``, as a reader sees them."""
    for found in re.findall("<table>.*?</table>", rendered(text), re.DOTALL):
        rows = [
            [html.unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(_CELL, line)]
            for line in re.findall("<tr>.*?</tr>", found, re.DOTALL)
        ]
        if rows[0][0] == first:
            return rows
    raise AssertionError(f"no table begins with {first}")


_CELL = re.compile("<t[hd][^>]*>(.*?)</t[hd]>", re.DOTALL)


def prose(text: str) -> str:
    """Return what a reader sees, in one line."""
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", rendered(text))).split())


def test_the_card_is_json_and_the_same_for_the_same_file() -> None:
    first, second = card(described(), [row()]), card(described(), [row()])
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert json.dumps(first) == json.dumps(second)
    assert card_markdown(first) == card_markdown(json.loads(json.dumps(second)))


def test_no_date_stands_on_it() -> None:
    text = json.dumps(card(described(), [row()])) + markdown(described(), [row()])
    assert not re.search(r"\b20\d\d-\d\d|\b\d\d:\d\d\b", text)


def test_metrics_have_intervals_and_numbers_of_cases() -> None:
    text = markdown(described())
    assert table(text, "Metric") == [
        ["Metric", "Test", "Validation"],
        ["AUROC", "0.832 (0.736 to 0.912)", "0.832 (0.736 to 0.912)"],
        ["recall (sensitivity)", "0.889 (0.785 to 0.976)", "0.889 (0.785 to 0.976)"],
        ["specificity", "not defined", "not defined"],
    ]
    assert "Test: 50 images of 60 patients. Validation: 50 images of 30 patients." in prose(text)
    assert "bootstrap over patients" in prose(text)


def test_the_confusion_matrix_has_the_true_classes_as_rows() -> None:
    assert table(markdown(described()), "True class") == [
        ["True class", "called healthy", "called lesion", "right"],
        ["healthy", "7", "8", "7 of 15"],
        ["lesion", "17", "18", "18 of 35"],
    ]


def test_the_data_are_counted_by_split_and_class() -> None:
    assert table(markdown(described()), "Split") == [
        ["Split", "Patients", "Images", "By class"],
        ["training", "10", "40", "healthy 20, lesion 20"],
        ["validation", "30", "50", "healthy 15, lesion 35"],
        ["test", "60", "50", "healthy 15, lesion 35"],
    ]


def test_the_model_is_named_with_its_digest_and_origin() -> None:
    text = markdown(described(precision="int8"))
    for fact in (DIGEST, "cdcdcdcdcdcd", "resnet18", "lung", "int8", "10.9 MiB", "torch 2.9.0"):
        assert fact in prose(text)
    assert "epochs 12, optimizer adamw, seed 0" in prose(text)


def test_rules_are_in_words() -> None:
    rules = (
        Rule(attribute="Modality", values=("CT",), mismatch="reject", missing="warn"),
        Rule(attribute="SOPClassUID", values=("1.2.840.10008.5.1.4.1.1.2",), mismatch="warn"),
        Rule(attribute="PatientAge", low=20, high=80, mismatch="warn", missing="allow"),
    )
    text = markdown(described(intended_use=IntendedUse(rules=rules)))
    assert table(text, "DICOM attribute")[1:] == [
        ["Modality", "CT", "refused", "scored, with a warning"],
        ["SOPClassUID", "CT Image Storage", "scored, with a warning", "scored, with a warning"],
        ["PatientAge", "20 to 80 years", "scored, with a warning", "scored"],
    ]
    assert "Not for images that the rules refuse, by Modality" in prose(text)


def test_the_decision_is_in_words() -> None:
    decision = Decision(
        heads=(
            HeadDecision(
                temperature=3.5794,
                operating_point=POINT,
                triage=Triage(error_rate=0.1, thresholds=(0.2, 0.35), images=90),
            ),
        ),
        novelty=NoveltyCutoffs(
            energy=-0.5, mahalanobis=31560.8, false_refusal_rate=0.022, images=90
        ),
    )
    found = prose(
        markdown(
            described(
                decision=decision,
                aggregation=Aggregation(rule="top-k-mean", k=3),
            )
        )
    )
    assert "divided by 3.579." in found
    assert "The finding is lesion where its probability is 0.3043 or more, else healthy." in found
    assert "The point was chosen by Youden's J on 90 validation images." in found
    assert "at least: healthy 0.2, lesion 0.35." in found
    assert "at most about 10.0%" in found
    assert "an energy score of -0.5 or a Mahalanobis score of 31560.8" in found
    assert "at most about 2.2% of images like the 90" in found
    assert "the mean of the 3 highest" in found
    assert "The rates of triage and novelty hold only nearly" in found


def test_a_model_that_never_abstains_says_so() -> None:
    found = prose(markdown(described()))
    assert "The model never abstains." in found
    assert "No image is refused as unlike the training images." in found


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            Recipe(size=(64, 96), channels=1, window=FixedWindow(centre=160, width=160)),
            ["from 80 to 240 become 0 to 1", "64 rows by 96 columns", "set in black bars"],
        ),
        (
            Recipe(
                size=(64, 64),
                channels=3,
                window=HeaderVoi(fallback=FixedWindow(centre=40, width=400)),
                fit="crop",
                polarity="modality",
            ),
            [
                "Without either, a window of centre 40 and width 400 does.",
                "A grey image is repeated.",
                "cut about its middle",
                "are not turned",
            ],
        ),
        (
            Recipe(size=(64, 64), channels=1, window=HeaderVoi(), fit="stretch"),
            ["Without either, the range of the stored bits does.", "whatever its aspect ratio"],
        ),
    ],
)
def test_the_input_recipe_is_in_words(recipe: Recipe, expected: list[str]) -> None:
    found = prose(markdown(described(recipe=recipe)))
    assert [words for words in expected if words not in found] == []


def test_subgroups_are_a_table() -> None:
    text = markdown(described(), [row()])
    assert table(text, "Group") == [
        ["Group", "Images", "Patients", "AUROC", "recall (sensitivity)"],
        ["PatientAge: 18 to 39 years", "41", "17", "0.81 (0.70 to 0.90)", "not defined"],
    ]
    assert "400 resamples" in prose(text)
    assert "None can be reported" in prose(markdown(described()))


LATENCY = {
    "reference_ms": 1.69,
    "candidate_ms": 1.0,
    "speed_up": 1.7,
    "low": 1.64,
    "high": 1.78,
    "rounds": 60,
}
ACCOUNT: dict[str, Any] = {
    "scheme": "QDQ, uint8 activations",
    "target": "cpu",
    "saturation": "impossible, by its weights",
    "calibration_images": 40,
    "validation_images": 90,
    "metric": "auroc",
    "max_drop": 0.02,
    "accuracy": {"fp32": {"label": {"auroc": 0.7936}}, "chosen": {"label": {"auroc": None}}},
    "difference": metric(-0.0005, -0.004, 0.003),
    "flips": 1,
    "latency": LATENCY,
    "machine": {"cpu": "Xeon", "cores": 2, "engine": "ONNX Runtime 1.31.1, CPU"},
    "kept_in_float": [
        {"node": "a", "operator": "Conv", "reason": "the head"},
        {"node": "b", "operator": "Conv", "reason": "the head"},
    ],
    "reason": "the fastest that is no worse",
    "search": [
        {
            "name": "static",
            "difference": metric(-0.0005, -0.004, 0.003),
            "flips": 1,
            "latency": LATENCY,
            "verdict": "chosen",
        },
        {
            "name": "fp16",
            "difference": None,
            "flips": None,
            "latency": None,
            "verdict": "not runnable",
        },
    ],
}


def quantised(**changes: Any) -> Description:
    return described(precision="int8", quantisation={**ACCOUNT, **changes})


def test_the_quantisation_is_accounted_for() -> None:
    text = markdown(quantised())
    found = prose(text)
    assert "1 of 90 validation images is decided otherwise than by fp32." in found
    assert "AUROC changes by −0.0005 (−0.0040 to 0.0030)." in found
    assert "The whole interval had to lie above −0.0200." in found
    assert "without VNNI: impossible, by its weights." in found
    assert "1.00 ms, against 1.69 ms for fp32: 1.70 times as fast (1.64 to 1.78;" in found
    assert "Measured on Xeon, 2 cores, ONNX Runtime 1.31.1, CPU." in found
    assert "Why this one: the fastest that is no worse." in found
    assert table(text, "Validation")[1:] == [["AUROC", "0.7936", "not defined"]]
    assert table(text, "Operator")[1:] == [["Conv", "2", "the head"]]
    speed, change = "1.70 (1.64 to 1.78)", "−0.0005 (−0.0040 to 0.0030)"
    assert table(text, "Candidate")[1:] == [
        ["static", change, "1", speed, "chosen"],
        ["fp16", "–", "–", "–", "not runnable"],
    ]


def test_what_was_not_measured_is_not_told() -> None:
    description = quantised(
        latency=None,
        not_measured="no engine here runs it",
        difference=None,
        max_drop=None,
        search=[],
        reason="",
    )
    found = prose(markdown(description))
    assert "Time was not measured: no engine here runs it." in found
    assert "latency" not in stated(description)
    for words in ("changes by", "had to lie", "Why this one", "What was tried"):
        assert words not in found
    assert "Quantisation" not in prose(markdown(described()))
    unused = prose(markdown(described(quantisation=ACCOUNT)))
    assert "The ONNX graph was compared with torch" in unused
    assert "The ONNX graph, before quantisation, was compared" in found


def test_optional_parts_of_the_account_may_be_missing() -> None:
    least = ("scheme", "validation_images", "accuracy", "flips")
    account = {name: ACCOUNT[name] for name in least}
    found = prose(markdown(described(precision="int8", quantisation=account)))
    assert "Time was not measured." in found
    assert "1 of 90 validation images" in found


def changed(**changes: Any) -> Description:
    return described(provenance=facts(**changes))


def large() -> dict[str, Any]:
    """Return facts that give no limitation about the number of cases."""
    counts = {"healthy": 300, "lesion": 100}
    big = evaluation([[250, 50], [20, 80]], 200)
    patients = {"train": 500, "val": 200, "test": 200}
    names = ("train", "val", "test")
    return {
        "images": dict.fromkeys(names, 400),
        "targets": targets(**dict.fromkeys(names, counts)),
        "patients": patients,
        "validation": big,
        "test": big,
    }


def test_the_limitations_follow_from_the_facts() -> None:
    few = stated(described(), [row()])
    assert "15 images of healthy and 35 images of lesion of 60 patients" in few["few_patients"]
    assert few["few_training_patients"] == "It learned from 10 patients only (40 images)."
    assert "no_test_set" not in few
    many = stated(changed(**large()), [row()])
    assert set(few) - set(many) == {"few_patients", "few_training_patients"}
    assert "75% healthy and 25% lesion" in many["prevalence"]


def test_a_class_without_images_in_the_split_counts_as_few() -> None:
    given = large()
    given["targets"] |= targets(test={"healthy": 400, "lesion": 0})
    assert "0 images of lesion" in stated(changed(**given))["few_patients"]


def test_without_a_test_set_the_validation_figures_are_said_to_be_too_good() -> None:
    images, patients = facts()["images"], facts()["patients"]
    description = changed(
        test=None,
        images={name: images[name] for name in ("train", "val")},
        patients={name: patients[name] for name in ("train", "val")},
    )
    assert "too good" in stated(description)["no_test_set"]
    text = markdown(description)
    assert table(text, "Metric")[0] == ["Metric", "Validation"]
    assert "There is no test set." in prose(text)


def test_without_known_patients_no_number_of_patients_is_told() -> None:
    description = changed(patients_known=False)
    assert "by image" in stated(description)["unknown_patients"]
    text = markdown(description)
    assert [line[1] for line in table(text, "Split")[1:]] == ["not known"] * 3
    assert not re.search(r"\d patients", prose(text))
    assert "No patient is in two splits" not in text
    assert "unknown_patients" not in stated(described())


def test_the_figures_of_a_quantised_file_are_said_to_be_of_the_float_network() -> None:
    assert "measured with fp32" in stated(quantised())["other_precision"]
    assert "Measured with fp32, before quantisation." in prose(markdown(quantised()))
    assert "other_precision" not in stated(described())
    own = described(precision="int8", provenance=facts(evaluated_precision="int8"))
    assert "other_precision" not in stated(own)


def test_rules_with_one_value_are_a_limit() -> None:
    rules = (
        Rule(attribute="Modality", values=("CT",)),
        Rule(attribute="BodyPartExamined", values=("LIVER", "ABDOMEN")),
    )
    found = stated(described(intended_use=IntendedUse(rules=rules)))
    assert found["single_scope"].startswith("The intended use names one modality (CT).")
    assert "no_rules" not in found
    assert "no_rules" in stated(described())


def test_an_interval_without_width_is_not_called_certain() -> None:
    certain = copy.deepcopy(facts()["test"])
    certain["heads"]["label"]["metrics"]["recall"] = metric(1.0, 1.0, 1.0)
    assert "no certainty" in stated(changed(test=certain))["no_width"]
    narrow = {**row(), "metrics": {"auroc": metric(0.0, 0.0, 0.0)}}
    assert "no_width" in stated(described(), [narrow])
    assert "no_width" not in stated(described(), [row()])


def test_more_than_two_classes_have_no_class_to_find() -> None:
    classes = ("a", "b", "c")
    text = markdown(described(classes, decision=Decision(heads=(HeadDecision(),))))
    assert table(text, "True class")[3] == ["c", "27", "28", "29", "29 of 84"]
    assert "means over the classes" in prose(text)
    assert "The finding is the most probable class." in prose(text)
    assert "The temperature was fitted on the validation images" in prose(text)


NASTY = (
    "a|b `code` <b>bold</b>",
    "*x* _y_ [l](http://e.org) ~z~ $1$ \\ &amp; &",
    "# heading",
    "1. list",
)


@pytest.mark.parametrize("name", NASTY)
def test_a_class_may_have_any_name(name: str) -> None:
    classes = ("healthy", name)
    point = OperatingPoint(rule="threshold", positive=name, threshold=0.5)
    description = described(
        classes,
        decision=Decision(heads=(HeadDecision(operating_point=point),)),
        provenance=facts(classes),
    )
    text, shown = markdown(description), " ".join(name.split())
    assert table(text, "True class")[2][0] == shown
    assert table(text, "True class")[0][2] == f"called {shown}"
    assert table(text, "Split")[1][3] == f"healthy 20, {shown} 20"
    page = rendered(text)
    assert html.escape(f"The finding is {shown} where", quote=False) in page.replace("&quot;", '"')
    plain = rendered(markdown(described()))
    for tag in ("<h", "<b>", "<em>", "<a ", "<code>", "<strong>", "<table>", "<ol>", "<tr>"):
        assert page.count(tag) == plain.count(tag)


@pytest.mark.parametrize("scheme", ["# QDQ", "1. QDQ", "- QDQ", "===", "> QDQ", "+ QDQ", "2) QDQ"])
def test_a_value_at_the_start_of_a_line_makes_no_heading_or_list(scheme: str) -> None:
    page = rendered(markdown(quantised(scheme=scheme)))
    shown = html.escape(scheme)
    assert f"<p>{shown}, for cpu; calibrated on 40 training images." in page


@pytest.mark.parametrize("field", ["name", "version"])
def test_the_name_and_version_are_escaped_too(field: str) -> None:
    changes: dict[str, Any] = {field: "<script>x</script> `|` ``` $(rm)"}
    page = rendered(markdown(described(**changes)))
    assert "<script" not in page
    if field == "name":
        assert "'&lt;script&gt;x&lt;/script&gt; `|` ``` $(rm).onnx'" in page


def test_what_the_run_was_told_by_path_does_not_show() -> None:
    configuration = {"epochs": 12, "from_run": "/home/ann/runs/lung", "weights": "/home/ann/w.pth"}
    found = card(changed(configuration=configuration))
    assert "ann" not in json.dumps(found["model"])
    assert "/" not in json.dumps(found["model"]["training"])


def test_it_says_how_to_check_the_file() -> None:
    text = markdown(described(name="my liver"))
    assert "sha256sum 'my liver.onnx'\n" in text
    assert "medtl-infer --selftest --model 'my liver.onnx'\n" in text
    assert f"it is <code>{'ab' * 32}</code>" in rendered(text)
    assert card(described())["verification"]["self_test"] == {"images": 2, "tolerance": 1e-4}


def test_what_nobody_recorded_is_listed() -> None:
    found: Mapping[str, Any] = card(described())
    assert any("reference standard" in one for one in found["not_recorded"])
    shown = prose(markdown(described()))
    assert [one for one in found["not_recorded"] if one not in shown] == []


HEADS = (
    Head(name="organ", classes=("liver", "spleen", "kidney")),
    Head(name="oedema", kind="binary", classes=("absent", "present")),
    Head(name="grade", kind="ordinal", classes=("1", "2", "3")),
    Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0),
)
OF_FOUR = Decision(
    heads=(
        HeadDecision(temperature=2.0),
        HeadDecision(
            operating_point=OperatingPoint(rule="threshold", positive="present", threshold=0.4),
            triage=Triage(error_rate=0.1, thresholds=(0.3, 0.4), images=90),
        ),
        HeadDecision(operating_point=OperatingPoint(rule="median")),
        HeadDecision(
            operating_point=OperatingPoint(rule="value"),
            interval=Margin(coverage=0.9, half_width=12.5, images=80),
        ),
    )
)


def of_four(**changes: Any) -> Description:
    """Return a description of four kinds of heads, with an age that is not known everywhere."""
    classes = {head.name: head.classes for head in HEADS if head.classes}
    table = {name: [[20] * len(k) for _ in k] for name, k in classes.items()}
    found = {
        name: evaluation(one, 60)["heads"]["label"] | {"images": 90} for name, one in table.items()
    }
    errors = {"mae": metric(6.25, 5.5, 7.0), "r2": metric(0.61, 0.5, 0.7)}
    found["age"] = {"images": 80, "patients": 55, "resamples": 1000, "metrics": errors}
    split = {"images": 90, "patients": 60, "heads": found}
    counts = {
        name: {"counts": dict.fromkeys(k, 90 // len(k)), "unknown": 0}
        for name, k in classes.items()
    }
    counts["age"] = {"median": 51.5, "unknown": 10}
    names = ("train", "val", "test")
    given = facts(
        images=dict.fromkeys(names, 90),
        targets=dict.fromkeys(names, counts),
        validation=split,
        test=split,
    )
    return described(heads=HEADS, decision=OF_FOUR, provenance=given, **changes)


def test_a_card_of_several_heads_tells_each_by_its_name() -> None:
    text = markdown(of_four(), [{**row(), "head": "grade"}])
    found = prose(text)
    assert "answers 4 questions: organ : one of 3 classes: liver , spleen , kidney" in found
    assert "oedema : absent or present." in found
    assert "grade : one of 3 grades, the lowest first: 1 , 2 , 3" in found
    assert "age : a value in a." in found
    assert "Of oedema, the class to find is present" in found
    assert "Not for findings other than oedema, which it does not look for." in found
    assert table(text, "True class")[0] == [
        *("True class", "called liver", "called spleen", "called kidney", "right")
    ]
    assert table(text, "Group")[1][:2] == ["PatientAge: 18 to 39 years", "41"]
    assert table(text, "Split")[0] == ["Split", "Patients", "Images", *(h.name for h in HEADS)]
    assert table(text, "Split")[1][3:] == [
        "liver 30, spleen 30, kidney 30",
        "absent 45, present 45",
        "1 30, 2 30, 3 30",
        "median 51.500, 10 not known",
    ]
    assert "mean absolute error 6.250 (5.500 to 7.000)" in found
    assert "Errors are in a." in found


def test_the_decision_of_each_kind_of_head_is_in_words() -> None:
    found = prose(markdown(of_four()))
    for sentence in (
        "organ: Probabilities are the softmax of the logits divided by 2.",
        "oedema: The probability of present is the sigmoid of the logit divided by 1.",
        "oedema: A class is possible where its probability is at least: absent 0.3, present 0.4.",
        "grade: The finding is the median grade",
        "age: The value is 50 plus 20 times the logit, in a.",
        "age: Its interval is the value plus or minus 12.5 a, which holds the true value of at "
        "least about 90.0% of the images (conformal prediction, fitted on 80 images).",
        "The value of a series is the median of those of its slices.",
    ):
        assert sentence in found


def test_limitations_of_several_heads_name_the_head() -> None:
    found = stated(of_four())
    assert "organ: 30 images of liver, 30 images of spleen" in found["few_patients"]
    assert "age: 80 images of 60 patients" in found["few_patients"]
    assert "The rates of triage and interval hold only nearly" in found["fitted_on_validation"]
    assert "oedema: 50% absent and 50% present" in found["prevalence"]


def test_the_account_of_several_heads_names_the_one_that_loses_most() -> None:
    figures = {"organ": {"auroc": 0.9}, "age": {"r2": 0.61}}
    account = {
        **ACCOUNT,
        "accuracy": {"fp32": figures, "chosen": figures},
        "head": "age",
        "not_judged": ["oedema"],
    }
    found = prose(markdown(of_four(precision="int8", quantisation=account)))
    assert "The head that loses most is age: R² changes by −0.0005" in found
    assert "Not judged, because the metric is not defined on these images: oedema." in found
    assert "age: R² 0.6100 0.6100" in found


def test_a_model_of_values_alone_needs_no_classes() -> None:
    age = HEADS[3]
    facts_of_age = of_four().provenance
    given = {
        **facts_of_age,
        "targets": {name: {"age": one["age"]} for name, one in facts_of_age["targets"].items()},
        **{
            name: {**facts_of_age[name], "heads": {"age": facts_of_age[name]["heads"]["age"]}}
            for name in ("validation", "test")
        },
    }
    decision = Decision(heads=(OF_FOUR.heads[3],))
    alone = described(heads=(age,), decision=decision, provenance=given)
    found = prose(markdown(alone))
    assert "answers 1 question: age : a value in a." in found
    assert "called" not in found
    assert "prevalence" not in stated(alone)
    assert "The interval was fitted on the validation images" in found
