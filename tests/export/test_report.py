"""The page says what the file is, draws what was tried, and needs nothing from outside."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import pytest

from medtl_export.gate import Difference
from medtl_export.report import Kind, Point, candidates, frontier, points, write_report
from medtl_runtime.decision import (
    Decision,
    HeadDecision,
    NoveltyCutoffs,
    OperatingPoint,
    plain_decision,
)
from medtl_runtime.errors import OutputNotWritten
from medtl_runtime.heads import Head
from medtl_runtime.intended_use import IntendedUse, Rule
from medtl_runtime.modelfile import Description
from medtl_runtime.testing import describe

CLASSES = ("healthy", "lesion")
DIGEST = "sha256:" + "ab" * 32
VOID = {"meta", "img", "br", "line", "path", "use", "rect"}
EVIL = "<script>alert('$x_1$')</script>"


class Page(HTMLParser):
    """What a reader gets: the visible text, and each element with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def names(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    @property
    def headline(self) -> str:
        return self.text[: self.text.index("For research. Not a medical device")]


def time(speed_up: float, reference: float = 2.0, spread: float = 0.04) -> dict[str, Any]:
    return {
        "reference_ms": reference,
        "candidate_ms": reference / speed_up,
        "speed_up": speed_up,
        "low": speed_up - spread,
        "high": speed_up + spread,
        "rounds": 60,
    }


def change(value: float, spread: float = 0.003) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": value + spread}


def row(name: str, verdict: str, **measured: Any) -> dict[str, Any]:
    nothing = {"latency": None, "difference": None, "head": None, "flips": None, "error": None}
    return {"name": f"int8 {name}", "verdict": verdict, **nothing, **measured}


CHOSEN: dict[str, Any] = {
    "latency": time(1.7),
    "difference": change(-0.0011),
    "head": "label",
    "flips": 1,
}

SEARCH = (
    row("all operators", "first", latency=time(1.1), difference=change(-0.009), flips=7),
    row("products and sums", "faster", latency=time(1.5, 2.2), difference=change(0.0004), flips=0),
    row("products", "slower", latency=time(1.2)),
    row("products and sums, float stem", "faster", latency=time(1.71), error=0.004),
    row("products and sums, float stem, mse ranges", "chosen", error=0.002, **CHOSEN),
    row("products and sums, percentile ranges", "worse", difference=change(-0.02), flips=9),
)


def account(**changes: Any) -> dict[str, Any]:
    before = {"auroc": 0.7936, "recall": 0.8, "specificity": None}
    after = {**before, "auroc": 0.7925}
    return {
        "target": "cpu",
        "scheme": "QDQ, uint8 activations, int8 weights per output channel",
        "saturation": "possible without VNNI",
        "reason": "the fastest accepted candidate",
        "metric": "auroc",
        "max_drop": 0.005,
        "calibration_images": 300,
        "validation_images": 90,
        "accuracy": {"fp32": {"label": before}, "chosen": {"label": after}},
        "not_judged": [],
        **CHOSEN,
        "not_measured": None,
        "conditions": {"threads": None, "batch_size": 1},
        "machine": {"cpu": "Example CPU 7", "cores": 2, "engine": "ONNX Runtime 1.31.1, CPU"},
        "kept_in_float": [
            {"node": "node_conv_1", "operator": "Conv", "reason": "chosen"},
            {"node": "node_conv_9", "operator": "Conv", "reason": "head"},
            {"node": "node_mean", "operator": "ReduceMean", "reason": "head"},
            {"node": "node_conv_2", "operator": "Conv", "reason": "chosen"},
        ],
        "operators": {"Conv": 20, "QuantizeLinear": 44},
        "search": list(SEARCH),
        **changes,
    }


def fallen_back(reason: str, **changes: Any) -> dict[str, Any]:
    """Return the account of a search that ended with the float network."""
    same = account()["accuracy"]["fp32"]
    rows = [{**one, "verdict": one["verdict"].replace("chosen", "not faster")} for one in SEARCH]
    found = {
        "reason": reason,
        "scheme": "float32",
        "saturation": None,
        "accuracy": {"fp32": same, "chosen": same},
        "latency": None,
        "difference": change(0, 0),
        "flips": 0,
        "kept_in_float": [],
        "search": rows,
    }
    return account(**(found | changes))


def facts(classes: tuple[str, ...] = CLASSES) -> dict[str, Any]:
    table = [[40, 5], [6, 39]]
    metrics = {"auroc": {"value": 0.8318, "low": 0.7357, "high": 0.9115}}
    counts = {"images": 90, "patients": 30}
    found = {**counts, "resamples": 1000, "metrics": metrics, "confusion": table, "delong": None}
    evaluation = {**counts, "heads": {"label": found}}
    by_class = {"label": {"counts": dict.fromkeys(classes, 45), "unknown": 0}}
    return {
        "run": "liver",
        "architecture": "resnet18",
        "head": "linear",
        "data_fingerprint": "sha256:" + "cd" * 32,
        "images": {"train": 90, "val": 90, "test": 90},
        "targets": {"train": by_class, "val": by_class, "test": by_class},
        "patients": {"train": 10, "val": 30, "test": 30},
        "patients_known": True,
        "configuration": {"epochs": 12, "optimizer": "adamw"},
        "parent_weights": "lung",
        "validation": evaluation,
        "test": evaluation,
        "external": None,
        "parity": {"images": 90, "largest_difference": 1.7e-6, "flips": 0, "tolerance": 0.00031},
        "versions": {"torch": "2.15.0", "medtl": "0.1.0"},
    }


def described(
    quantisation: Mapping[str, Any] | None, classes: tuple[str, ...] = CLASSES, **changes: Any
) -> Description:
    novelty = NoveltyCutoffs(energy=1.5, mahalanobis=310.25, false_refusal_rate=0.02, images=90)
    point = OperatingPoint(rule="threshold", positive=classes[1], threshold=0.3043)
    modality = Rule(attribute="Modality", values=("CT",), mismatch="reject", missing="warn")
    given: dict[str, Any] = {
        "name": "liver",
        "version": "cdcdcdcdcdcd",
        "precision": "int8" if quantisation else "fp32",
        "quantisation": quantisation,
        "decision": Decision(
            heads=(HeadDecision(temperature=3.5, operating_point=point),), novelty=novelty
        ),
        "intended_use": IntendedUse(rules=(modality,)),
        "provenance": facts(classes),
        "requires": {"ir_version": 10, "opset": 20, "onnxruntime": "1.23"},
    }
    return describe(classes=classes, **(given | changes))


def written(folder: Path, description: Description) -> str:
    path = folder / "liver.report.html"
    write_report(
        path,
        description=description,
        size_bytes=11_386_707,
        float_bytes=44_800_000,
        digest=DIGEST,
    )
    return path.read_text(encoding="utf-8")


@cache
def usual() -> str:
    """Return the page of `account`, drawn once for all tests that only read it."""
    with TemporaryDirectory() as folder:
        return written(Path(folder), described(account()))


def shown(folder: Path, description: Description) -> Page:
    page = Page(written(folder, description))
    assert page.open == [], "an element is not closed"
    assert not re.search(r"\b(nan|None|Undefined)\b", page.text)
    return page


def point(number: int, ms: float, value: float | None, kind: Kind = "passing") -> Point:
    found = None if value is None else Difference(**change(value))
    return Point(
        number=number, kind=kind, milliseconds=ms, fastest=ms, slowest=ms, difference=found
    )


def numbers(found: list[Point]) -> list[int]:
    return [one.number for one in found]


def test_the_frontier_is_what_nothing_beats_in_both_by_time() -> None:
    timed = [
        point(0, 2.0, 0.0),
        point(1, 1.0, -0.004),
        point(2, 1.5, -0.005),  # slower and worse than 1
        point(3, 1.2, -0.001),
        point(4, 2.5, -0.001),  # slower than 0 and worse
        point(5, 0.5, None),
    ]
    assert numbers(frontier(timed)) == [1, 3, 0]


def test_on_the_frontier_equals_stay_and_a_tie_in_one_is_decided_by_the_other() -> None:
    assert numbers(frontier([point(2, 1, -0.1), point(1, 1, -0.1)])) == [1, 2]
    assert numbers(frontier([point(1, 1, -0.1), point(2, 1, -0.2)])) == [1]
    assert numbers(frontier([point(1, 2, -0.1), point(2, 1, -0.1)])) == [2]
    assert frontier([point(1, 1, None)]) == []
    assert frontier([]) == []


def test_times_of_different_comparisons_are_told_on_one_scale() -> None:
    found = {one.number: one for one in points(described(account()))}
    assert sorted(found) == [0, 1, 2, 3, 4, 5], "the sixth was not timed"
    assert found[0].milliseconds == 2.0, "the median of 2, 2.2, 2, 2, 2"
    assert found[2].milliseconds == pytest.approx(2.0 / 1.5)
    assert found[2].fastest == pytest.approx(2.0 / 1.54)
    assert found[2].slowest == pytest.approx(2.0 / 1.46)


def test_the_chosen_one_is_among_the_points_with_its_own_figures() -> None:
    (chosen,) = [one for one in points(described(account())) if one.kind == "chosen"]
    assert chosen.number == 5
    assert chosen.milliseconds == pytest.approx(2 / 1.7)
    assert chosen.difference == Difference(**change(-0.0011))


def test_points_say_whether_even_the_lower_bound_is_above_the_allowed_drop() -> None:
    def kinds(**changes: Any) -> list[str]:
        return [one.kind for one in points(described(account(**changes)))]

    rest = ["not judged", "not judged", "chosen"]
    assert kinds() == ["float", "failing", "passing", *rest]
    assert kinds(max_drop=0.0025) == ["float", "failing", "failing", *rest]
    assert kinds(max_drop=None) == ["float", "passing", "passing", *rest]


def test_a_network_that_was_not_searched_for_is_a_candidate_too() -> None:
    found = described(account(target="cuda", search=[]), precision="fp16")
    assert [one["name"] for one in candidates(found)] == ["float16"]
    assert [(p.number, p.kind) for p in points(found)] == [(0, "float"), (1, "chosen")]


def test_after_a_search_in_vain_no_point_but_float_is_in_the_file() -> None:
    found = described(fallen_back("int8 is not surely faster"), precision="fp32")
    assert len(candidates(found)) == len(SEARCH)
    assert "chosen" not in [one.kind for one in points(found)]


def test_against_a_teacher_the_float_network_is_not_the_zero() -> None:
    distilled = {"teacher": {"name": "liver-large", "arch": "resnet50"}}
    found = described(account(distillation=distilled))
    assert points(found)[0].difference is None
    lost = fallen_back("no int8 candidate is accurate enough", difference=change(-0.003))
    assert points(described(lost, precision="fp32"))[0].difference == Difference(**change(-0.003))


def test_the_headline_of_a_faster_int8_file() -> None:
    headline = Page(usual()).headline
    for words in (
        "This file holds the network in int8 , made for cpu.",
        "1.70 times as fast as the float network (95 % interval 1.66 to 1.74): 1.18 ms for one "
        "image instead of 2.00 ms, on Example CPU 7 with ONNX Runtime 1.31.1, CPU",
        "Validation AUROC changes by −0.0011 (95 % interval −0.0041 to +0.0019); a drop of 0.005",
        "Decided otherwise 1 of 90 validation images",
        "Size 10.9 MiB float: 42.7 MiB 25 % of it",
        "judged 4 candidates",
    ):
        assert words in headline
    assert "no width" not in headline


@pytest.mark.parametrize(
    "reason",
    [
        "every int8 candidate is slower: 1.02 ms to 1.16 ms, speed-up 0.88 (0.85 to 0.91)",
        "no int8 candidate is accurate enough",
    ],
)
def test_the_headline_says_that_float_is_not_what_was_asked_for(tmp_path: Path, reason) -> None:
    page = shown(tmp_path, described(fallen_back(reason), precision="fp32"))
    wanted = "This file holds the float network (fp32), although int8 was asked for: " + reason
    assert wanted in page.headline
    assert "times as fast" not in page.headline
    assert "What stays in float" not in page.text
    assert "svg" in page.names(), "what was tried is in the picture"


@pytest.mark.parametrize(
    ("target", "precision", "why"),
    [
        ("arm", "int8", "this is no ARM processor"),
        ("cuda", "fp16", "no NVIDIA GPU, or ONNX Runtime without CUDA"),
    ],
)
def test_the_headline_says_that_and_why_time_was_not_measured(
    tmp_path: Path, target, precision, why
) -> None:
    rows = [] if precision == "fp16" else [{**SEARCH[4], "latency": None}]
    found = account(
        target=target,
        latency=None,
        not_measured=why,
        search=rows,
        reason="by rule; not measured",
    )
    page = shown(tmp_path, described(found, precision=precision))
    assert f"This file holds the network in {precision} , made for {target}." in page.headline
    assert f"How fast it is was not measured : {why}." in page.headline
    assert "no picture of accuracy against time, because no candidate's time is" in page.text
    assert "svg" not in page.names()


def test_float16_that_is_no_better_is_told_as_float16(tmp_path: Path) -> None:
    found = fallen_back("float16 is not surely faster", target="cuda", search=[])
    page = shown(tmp_path, described(found, precision="fp32"))
    assert "although fp16 was asked for: float16 is not surely faster." in page.headline
    assert "candidate was tried" not in page.text
    assert "0 candidates" not in page.text


def test_a_float_file_that_was_asked_for_has_no_picture_but_the_rest(tmp_path: Path) -> None:
    page = shown(tmp_path, described(None))
    assert "No quantisation was asked for." in page.headline
    assert "svg" not in page.names()
    for words in (
        "the largest difference of a logit was 1.7e-06 (0.00031 is allowed), and 0 were",
        "2 synthetic images (seeds 1, 2)",
        "0.832 0.736–0.911",
        "medtl-export runs/liver \\ --output models/liver.onnx \\ --target cpu \\ --false",
    ):
        assert words in page.text


def test_an_interval_without_width_is_a_warning(tmp_path: Path) -> None:
    page = shown(tmp_path, described(account(difference=change(0, 0))))
    assert "An interval of no width is not certain" in page.headline


def test_a_metric_that_is_not_defined_is_told_so(tmp_path: Path) -> None:
    rows = [{**one, "difference": None} for one in SEARCH]
    found = account(difference=None, max_drop=None, search=rows)
    page = shown(tmp_path, described(found))
    assert "AUROC changes is not defined on these images; any drop was allowed" in page.headline
    assert "Specificity true-negative rate – – –" in page.text


def test_every_candidate_is_in_the_table_with_what_was_measured() -> None:
    text = Page(usual()).text
    for words in (
        "1 int8 all operators 1.10 1.06 to 1.14 −0.0090 −0.0120 to −0.0060 7 – first",
        "2 int8 products and sums 1.50 1.46 to 1.54 +0.0004 −0.0026 to +0.0034 0 – faster on the",
        "3 int8 products 1.20 1.16 to 1.24 – – – slower",
        "5 int8 products and sums, float stem, mse ranges 1.70 1.66 to 1.74 −0.0011 −0.0041 to "
        "+0.0019 1 0.002 ◆ chosen on the frontier",
        "6 int8 products and sums, percentile ranges – −0.0200",
        "1 candidate of the table is not in the picture, because it was not timed.",
    ):
        assert words in text


def test_the_picture_has_the_number_of_every_point_and_words_for_who_cannot_see_it() -> None:
    html = usual()
    assert {str(k) for k in range(1, 6)} <= set(re.findall(r">(\d+)</text>", html))
    page = Page(html)
    (picture,) = [a for tag, a in page.elements if a.get("role") == "img"]
    words = "Change of validation AUROC against time, 5 candidates and float"
    assert picture["aria-label"] == words
    for legend in ("in the file", "Pareto frontier", "allowed drop, 0.005", "float network"):
        assert legend in page.text


def test_a_candidate_far_below_the_others_does_not_flatten_the_picture(tmp_path: Path) -> None:
    lost = row("all operators", "worse", latency=time(1.9), difference=change(-0.41))
    text = shown(tmp_path, described(account(search=[*SEARCH, lost]))).text
    assert "lower than the picture" in text
    assert "−0.4 " not in text


def test_many_candidates_of_one_time_have_a_page_too(tmp_path: Path) -> None:
    same = [
        row(f"candidate {k}", "slower", latency=time(1.3, spread=0.0), difference=change(0, 0))
        for k in range(16)
    ]
    unjudged = [row(f"unjudged {k}", "slower", latency=time(1.3)) for k in range(9)]
    found = account(search=[*same, *unjudged])
    page = shown(tmp_path, described(found))
    assert "25 int8 unjudged 8" in page.text


def test_what_stays_in_float_is_grouped_by_reason_and_operator() -> None:
    text = Page(usual()).text
    assert "Left in float because that was faster, or more accurate Conv 2 The head" in text
    assert "maps stay exact Conv 1 ReduceMean 1" in text
    assert "Names of the 4 nodes Conv, chosen: node_conv_1, node_conv_2" in text


def test_the_command_that_repeats_it_has_what_was_decided(tmp_path: Path) -> None:
    found = account(
        qat={"epochs": 4, "lr": 1e-5},
        distillation={"teacher": {"name": "liver large", "arch": "resnet50"}},
        conditions={"threads": 2, "batch_size": 4},
        max_drop=None,
    )
    text = shown(tmp_path, described(found)).text
    assert (
        "medtl-export 'runs/liver large' --quantize --qat --output models/liver.onnx --target cpu "
        "--distil resnet18 --metric auroc --max-drop none --calibration-images 300 --batch-size 4 "
        "--threads 2 --false-refusal-rate 0.02 --aggregation max" in text.replace(" \\ ", " ")
    )
    assert "with rounded weights, before the last search: epochs 4, lr 1e-05" in text
    assert "Distilled from liver large, resnet50" in text
    assert "for a batch of 4 images instead of" in text


def test_the_page_needs_nothing_from_outside_itself() -> None:
    html = usual()
    page = Page(html)
    assert page.open == [], "an element is not closed"
    assert "://" not in html
    assert not {"script", "link", "iframe", "object", "img"} & page.names()
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in page.elements:
        for key in ("src", "href", "xlink:href"):
            target = attributes.get(key)
            assert target is None or (target[0] == "#" and target[1:] in identifiers)
    assert set(re.findall(r"url\(#?(.*?)\)", html)) <= set(identifiers)


def test_names_cannot_smuggle_in_elements(tmp_path: Path) -> None:
    hostile = account(
        search=[*SEARCH, row(EVIL, EVIL)],
        reason=EVIL,
        kept_in_float=[{"node": EVIL, "operator": EVIL, "reason": EVIL}],
        operators={EVIL: 1},
        machine={"cpu": EVIL, "cores": None, "engine": EVIL},
    )
    classes = (EVIL, '"><img src=x onerror=alert(1)>')
    page = shown(tmp_path, described(hostile, classes, name=EVIL))
    assert not {"script", "img"} & page.names()
    assert not any(key.startswith("on") for _, a in page.elements for key in a)
    assert page.text.count(EVIL) > 8


def test_the_same_input_gives_the_same_bytes_whatever_matplotlib_is_set_to(tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 23, "axes.facecolor": "red"}):
        assert written(tmp_path, described(account())) == usual()
        assert matplotlib.rcParams["font.size"] == 23


def test_a_page_that_cannot_be_written_is_an_error_of_medtl(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputNotWritten):
        written(tmp_path / "file", described(None))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium")
def test_a_browser_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "liver.report.html"
    path.write_text(usual(), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [*command, profile, path.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    assert "◆ chosen" in Page(done.stdout).text


HEADS = (
    Head(name="organ", classes=("liver", "spleen", "kidney")),
    Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0),
)


def of_two_heads() -> Description:
    organ = facts()["validation"]["heads"]["label"]
    errors = {"mae": {"value": 6.25, "low": 5.5, "high": 7.0}}
    age = {"images": 80, "patients": 30, "resamples": 1000, "metrics": errors}
    split = {"images": 90, "patients": 30, "heads": {"organ": organ, "age": age}}
    counts = {
        "organ": {"counts": dict.fromkeys(HEADS[0].classes, 30), "unknown": 0},
        "age": {"median": 51.0, "unknown": 10},
    }
    figures = {"organ": {"auroc": 0.9}, "age": {"r2": 0.61}}
    rows = [{**one, "head": "age" if one["difference"] else None} for one in SEARCH]
    told = account(
        accuracy={"fp32": figures, "chosen": figures},
        head="age",
        not_judged=["organ"],
        search=rows,
    )
    given = facts() | {
        "targets": dict.fromkeys(("train", "val", "test"), counts),
        "validation": split,
        "test": split,
    }
    return described(told, heads=HEADS, decision=plain_decision(HEADS), provenance=given)


def test_a_page_of_several_heads_names_the_one_that_loses_most(tmp_path: Path) -> None:
    page = shown(tmp_path, of_two_heads())
    assert "organ: liver; spleen; kidney. age: a value in a." in page.text
    assert "Of the 2 heads, age loses most: its validation R² changes by" in page.text
    assert "Not judged, because AUROC or R² is not defined on these images: organ" in page.text
    assert "6.250" in page.text
