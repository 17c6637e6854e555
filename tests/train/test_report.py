"""The page is complete, says what it must, needs nothing from outside, and is reproducible."""

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from medtl_runtime.decision import OperatingPoint
from medtl_runtime.heads import Head, width
from medtl_train.evaluation.report import Example, write_report
from medtl_train.evaluation.subgroups import METRICS
from medtl_train.scoring.assessment import assess_head
from medtl_train.scoring.metrics import NAMES
from medtl_train.scoring.scored import Answers, default_point, positive_of, score

BINARY = ("healthy", "lesion")
THREE = ("no finding", "pneumonia, probably bacterial", "interstitial pattern of unknown origin")
TITLES = ("AUROC", "Average precision", "Accuracy", "Balanced accuracy", "F1", "Recall")
VOID = {"meta", "img", "br", "input", "hr", "link", "line", "path", "use", "rect"}


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
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def answers_of(head: Head, seed: int) -> Answers:
    """Return what a network says of 36 images of nine patients by one head."""
    rng = np.random.default_rng(seed)
    k = len(head.classes)
    targets = rng.normal(50, 10, 36) if head.kind == "regression" else np.arange(36.0) % k
    logits = rng.normal(size=(36, width((head,))))
    if head.kind == "multiclass":
        logits += 1.5 * np.eye(k)[targets.astype(int)]
    else:
        logits += ((targets - targets.mean()) / targets.std())[:, None]
    patients = np.array([f"p{i // 4}" for i in range(36)])
    return score((head,), logits, targets[:, None], patients, points={head.name: point_of(head)})[
        head.name
    ]


def point_of(head: Head) -> OperatingPoint:
    positive = positive_of(head)
    if positive is None:
        return default_point(head)
    chosen = "Youden's J on 36 validation images"
    return OperatingPoint(rule="threshold", positive=positive, threshold=0.41, chosen=chosen)


def run(classes=BINARY, *, heads=None, test=True, external=False, seed=0) -> dict[str, Any]:
    """Return the arguments of `write_report` for a small run."""
    heads = heads or (Head(name="finding", classes=classes),)
    rng = np.random.default_rng(seed)
    splits = ["validation", *["test"] * test, *["external"] * external]
    answers = {
        split: {head.name: answers_of(head, seed + number) for head in heads}
        for number, split in enumerate(splits)
    }
    names = {"validation": "val"}
    present = ["train", *(names.get(split, split) for split in splits)]
    targets = {head.name: {"counts": dict.fromkeys(head.classes, 12), "unknown": 0}
               if head.classes else {"low": 31.5, "median": 50.0, "high": 77.0, "unknown": 2}
               for head in heads}  # fmt: skip
    metrics = {
        "name": "liver",
        "medtl_version": "0.1.0",
        "heads": {
            head.name: {
                **{k: v for k, v in head.to_json().items() if k != "name"},
                "positive": positive_of(head),
                "temperature": 1.25,
                "operating_point": vars(point_of(head)),
            }
            for head in heads
        },
        "data": {
            "path": "data/liver",
            "fingerprint": "sha256:0123abcd",
            "images": dict.fromkeys(present, 36),
            "patients": dict.fromkeys(present, 9),
            "targets": dict.fromkeys(present, targets),
            "patients_known": True,
            "excluded": [
                {"source": f"data/{i}.dcm", "label": "healthy", "split": "", "reason": f"why {i}"}
                for i in range(3)
            ],
            "cleaning": {
                "unlabelled": 0,
                "unreadable": 2,
                "repeated": 1,
                "contradicted": 0,
                "nearly_repeated": 0,
            },
            "headers": {"Modality": {"missing": 0, "counts": {"CT": 36}}},
        },
        "recipe": {
            "size": [96, 80],
            "channels": 1,
            "window": {"kind": "fixed", "centre": 90, "width": 250},
            "polarity": "display",
            "fit": "letterbox",
            "kernel": "bilinear",
        },
        "config": {"lr": 0.0001, "arch": None, "offline": False, "monitor": "auroc"},
        "network": {"arch": "resnet18", "head": "linear", "parameters": 11170242},
        "transfer": {"source": "runs/lung", "tensors": 120, "skipped": ["head.bias (3,): no"]},
        "training": {
            "epochs": 4,
            "best_epoch": 3,
            "monitor": "auroc",
            "best_value": 0.97,
            "stopped_early": True,
            "soup": [],
            "seconds": 61.2,
            "device": "cpu",
            "versions": {"torch": "2.15.0"},
        },
        "validation": None,
        "test": None,
        "external": None,
        **{split: evaluation(answers[split]) for split in splits},
        "subgroups": {splits[-1]: {head.name: [] for head in heads}},
    }
    row = {"train_loss": 0.5, "val_loss": 0.6, "lr": 1e-3, "seconds": 3.2}
    history = [
        row | dict.fromkeys((*NAMES[:6], "monitored"), 0.6 + 0.1 * e) | {"epoch": e, "phase": phase}
        for e, phase in enumerate(("head", "head", "all", "all"), start=1)
    ]
    pixels = rng.integers(0, 65536, (1, 96, 80)).astype(np.uint16)
    examples = []
    for predicted in (0, 1):
        heat = np.full((8, 8), -1.0)
        heat[(0, 0) if predicted else (7, 7)] = 2  # class 1 is seen above left, 0 below right
        said = ("healthy", "lesion")[predicted]
        examples.append(
            Example(
                pixels=pixels,
                heat=heat,
                evidence=said,
                truth="lesion",
                predicted=f"{said}, probability 0.73",
                is_wrong=not predicted,
                source=f"{predicted}.dcm",
            )
        )
    return {"metrics": metrics, "history": history, "answers": answers, "examples": examples}


def evaluation(answers: dict[str, Answers]) -> dict[str, Any]:
    return {
        "images": 36,
        "patients": 9,
        "heads": {n: assess_head(one, seed=0, resamples=40) for n, one in answers.items()},
    }


def written(folder, arguments) -> str:
    write_report(folder / "report.html", **arguments)
    return (folder / "report.html").read_text(encoding="utf-8")


def usual(classes=BINARY, *, test=True) -> str:
    """Return the page of `run`, drawn once for all tests that only read it."""
    return _drawn(classes, test)


@cache
def _drawn(classes: tuple[str, ...], test: bool) -> str:
    with TemporaryDirectory() as folder:
        return written(Path(folder), run(classes, test=test))


def figures(arguments: dict[str, Any], split: str, head: str = "finding") -> dict[str, Any]:
    return arguments["metrics"][split]["heads"][head]


@pytest.mark.parametrize("classes", [BINARY, THREE])
@pytest.mark.parametrize("test", [True, False])
def test_the_page_has_every_metric_of_every_split_with_its_interval(classes, test):
    arguments = run(classes, test=test)
    page = Page(usual(classes, test=test))
    assert not page.open, "an element is not closed"
    for split in ("validation", "test") if test else ("validation",):
        for found in figures(arguments, split)["metrics"].values():
            assert written_as(found) in page.text
    assert [title for title in TITLES if title not in page.text] == []
    assert [name for name in classes if name not in page.text] == []


def written_as(found: dict[str, float | None]) -> str:
    if found["low"] is None:
        return f"{found['value']:.3f} –"
    between = " to " if found["low"] < 0 else "–"
    return f"{found['value']:.3f} {found['low']:.3f}{between}{found['high']:.3f}"


def test_the_first_screen_speaks_of_the_test_and_of_the_operating_point():
    arguments = run()
    text = Page(usual()).text
    first = text[: text.index("How good the model is")]
    tested = figures(arguments, "test")["metrics"]
    for name in ("auroc", "recall", "specificity", "precision"):
        assert f"{tested[name]['value']:.3f}" in first
    assert "36 images of 9 patients kept for the test (18 healthy; 18 lesion)" in first
    assert "An image is called lesion when its probability is at least 0.410" in first
    assert "Youden's J on 36 validation images" in first
    assert "Not a medical device" in first
    assert "There is no test split" not in text


def test_without_a_test_split_the_first_screen_says_that_its_figures_are_of_validation():
    arguments = run(test=False)
    text = Page(usual(test=False)).text
    first = text[: text.index("How good the model is")]
    assert "There is no test split" in first
    assert f"{figures(arguments, 'validation')['metrics']['auroc']['value']:.3f}" in first


def test_an_external_test_set_stands_beside_the_test(tmp_path):
    arguments = run(external=True)
    html = written(tmp_path, arguments)
    for split in ("test", "external"):
        assert written_as(figures(arguments, split)["metrics"]["auroc"]) in Page(html).text
    assert "External 36 images of 9 patients" in Page(html).text
    assert "on the external images" in html


def test_unknown_patients_are_a_warning_and_intervals_are_by_image(tmp_path):
    arguments = run(test=False)
    assert "Whose images these are is not known" not in Page(usual()).text
    arguments["metrics"]["data"]["patients_known"] = False
    text = Page(written(tmp_path, arguments)).text
    assert "Whose images these are is not known" in text
    assert "bootstrap over images" in text
    assert "9 patients" not in text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.45, 0.8, "Not shown to be better than chance"),
        (1.0, 1.0, "interval of no width is not certain"),
    ],
)
def test_a_weak_or_a_perfect_result_comes_with_a_warning(tmp_path, low, high, words):
    arguments = run(test=False)
    found = figures(arguments, "validation")["metrics"]
    for metric in found.values():
        metric["high"] = None if metric["high"] is None else min(metric["high"], 0.99)
        metric["low"] = None if metric["low"] is None else min(metric["low"], 0.98)
    found["auroc"] = {"value": high, "low": low, "high": high}
    assert words in Page(written(tmp_path, arguments)).text
    assert words not in Page(usual()).text


def test_a_figure_that_is_not_defined_is_a_dash_and_a_split_of_one_class_has_no_curve(tmp_path):
    arguments = run()
    found = arguments["answers"]["test"]["finding"]
    one_class = replace(found, labels=np.zeros(36, np.int64))
    arguments["answers"]["test"]["finding"] = one_class
    arguments["metrics"]["test"] = evaluation({"finding": one_class})
    arguments["history"][0]["monitored"] = None
    text = Page(written(tmp_path, arguments)).text
    assert "AUROC – 95 % interval –" in text
    assert "lesion 0 of 36 – –" in text
    assert not re.search(r"\b(nan|None|Undefined)\b", text)


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_confusion_matrices_show_counts_and_row_shares(classes):
    arguments = run(classes)
    text = Page(usual(classes)).text
    for split in ("validation", "test"):
        table = figures(arguments, split)["confusion"]
        for name, row in zip(classes, table, strict=True):
            cells = " ".join(f"{n} {100 * n / sum(row):.1f} %" for n in row)
            assert f"{name} {cells} {sum(row)}" in text


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_calibration_stands_beside_what_the_shares_alone_would_get(classes):
    found = figures(run(classes), "test")["metrics"]
    text = Page(usual(classes)).text
    section = text[text.index("Whether its probabilities") :]
    error, brier = (found[name]["value"] for name in ("ece", "brier"))
    constant = 1 / 4 if len(classes) == 2 else 2 / 3
    assert f"Expected calibration error {error:.3f} Brier score {brier:.3f}" in section
    assert f"{constant:.3f} if every image got the classes' shares" in section


# --- other kinds of heads ------------------------------------------------------------------------

EDEMA = Head(name="edema", kind="binary", classes=("absent", "present"))
STAGE = Head(name="stage", kind="ordinal", classes=("0", "I", "II", "III"))
AGE = Head(name="age", kind="regression", unit="a", mean=50.0, std=10.0)
ORGAN = Head(name="organ", classes=THREE)


def test_grades_are_ranked_by_lying_above_each(tmp_path):
    arguments = run(heads=(STAGE,), test=False)
    text = Page(written(tmp_path, arguments)).text
    found = figures(arguments, "validation", "stage")["metrics"]
    first = text[: text.index("How good the model is")]
    for name in ("quadratic_weighted_kappa", "within_one_grade", "grade_mae"):
        assert f"{found[name]['value']:.3f}" in first
    assert "An image gets the lowest grade that at least half of the probability" in first
    assert all(f"above {name} " in text for name in ("0", "I", "II"))
    assert "Ranked probability score" in text


def test_values_are_shown_against_the_true_ones_in_their_unit(tmp_path):
    arguments = run(heads=(AGE,), test=False)
    html = written(tmp_path, arguments)
    text = Page(html).text
    found = figures(arguments, "validation", "age")["metrics"]
    assert f"{found['mae']['value']:.4g} a" in text
    assert "The value is the network's, 50 + 10 × its output, in a." in text
    assert "Predicted against true values of the validation images" in html
    assert "Errors against the mean of both values of the validation images" in html
    assert "31.5, 50, 77" in text
    assert "Which classes it confuses" not in text


SEVERAL = (EDEMA, ORGAN, STAGE, AGE)


@cache
def several() -> tuple[dict[str, Any], str]:
    """Return the arguments of a run with four heads, and its page."""
    arguments = run(heads=SEVERAL)
    with TemporaryDirectory() as folder:
        return arguments, written(Path(folder), arguments)


def test_each_of_several_heads_has_its_part():
    heads, (arguments, html) = SEVERAL, several()
    page = Page(html)
    assert not page.open
    first = page.text[: page.text.index("How good the model is")]
    for head, name in zip(heads, ("auroc", "auroc", "quadratic_weighted_kappa", "r2"), strict=True):
        assert f"{figures(arguments, 'test', head.name)['metrics'][name]['value']:.3f}" in first
    titles = [a["id"] for a in page.all("h2") if "id" in a]
    assert titles == ["head-1", "head-2", "head-3", "head-4"]
    assert "An image is called present when its probability is at least 0.410" in page.text
    assert "edema: present" in page.text


def test_subgroups_are_a_table_and_small_ones_are_marked(tmp_path):
    arguments = run(test=False)
    metric = {"value": 0.812, "low": 0.7, "high": 0.9}
    rows = [
        {"attribute": "site", "value": name, "images": 20, "patients": patients, "small": small,
         "resamples": 400, "metrics": dict.fromkeys(METRICS, metric)}
        for name, patients, small in (("north", 30, False), ("south", 7, True))
    ]  # fmt: skip
    arguments["metrics"]["subgroups"] = {"validation": {"finding": rows}}
    text = Page(written(tmp_path, arguments)).text
    assert "north site 20 30 0.812 0.700–0.900" in text
    assert "south * site 20 7" in text
    assert "With many groups some intervals miss the truth by chance" in text
    assert "On which parts" not in Page(usual()).text


def test_delong_is_told_apart_from_the_bootstrap(tmp_path):
    assert "Patients have several images, which DeLong's interval" in Page(usual()).text
    arguments = run(test=False)
    delong = {"value": 0.8, "low": 0.723, "high": 0.877}
    figures(arguments, "validation")["delong"] = delong
    text = Page(written(tmp_path, arguments)).text
    assert "DeLong's interval of the AUROC holds as well: validation 0.723–0.877" in text


def test_folds_have_a_page_without_a_network_of_their_own(tmp_path):
    arguments = run()
    metrics = arguments["metrics"]
    metrics["validation"] = None
    metrics["heads"]["finding"] |= {"temperature": None, "operating_point": None}
    del metrics["subgroups"]
    for name in ("best_epoch", "monitor", "best_value", "stopped_early", "soup"):
        del metrics["training"][name]
    metrics["folds"] = [{"run": f"folds/{k}", "test": metrics["test"]} for k in (1, 2)]
    arguments |= {"history": (), "examples": ()}
    del arguments["answers"]["validation"]
    text = Page(written(tmp_path, arguments)).text
    assert "each tested by a network that had not seen its patient" in text
    assert "These are figures of a recipe, not of a network" in text
    assert "folds/2 AUROC" in text
    assert "How it learned" not in text


def test_every_excluded_sample_is_listed_with_its_reason_up_to_fifty(tmp_path):
    arguments = run(test=False)
    text = Page(usual()).text
    assert all(f"data/{i}.dcm healthy – why {i}" in text for i in range(3))
    assert "more; metrics.json has them all" not in text
    assert "0 without a label, 2 unreadable, 1 repeated, 0 with two labels" in text
    excluded = arguments["metrics"]["data"]["excluded"]
    arguments["metrics"]["data"]["excluded"] = [
        {**excluded[0], "reason": f"reason {i}."} for i in range(57)
    ]
    text = Page(written(tmp_path, arguments)).text
    assert "57 samples: 57 healthy." in text
    assert "reason 49." in text
    assert "reason 50." not in text
    assert "And 7 more" in text


def test_what_is_needed_to_run_it_again_is_on_the_page():
    text = Page(usual()).text
    for words in (
        "sha256:0123abcd",
        "96 × 80 pixels",
        "centre 90, width 250",
        "11,170,242 parameters",
        "runs/lung; 120 tensors taken, 1 not",
        "head.bias (3,): no",
        "torch 2.15.0",
        "lr 0.0001",
        "arch –",
        "offline no",
        "Kept is epoch 3, the best by validation AUROC (0.970)",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ({"kind": "header", "fallback": None}, "the range of the stored bits"),
        (
            {"kind": "header", "fallback": {"kind": "fixed", "centre": 40, "width": 400}},
            "without one, centre 40, width 400",
        ),
    ],
)
def test_a_window_from_the_header_is_told_with_its_fallback(tmp_path, window, words):
    arguments = run(test=False)
    arguments["metrics"]["recipe"]["window"] = window
    assert words in Page(written(tmp_path, arguments)).text


def test_an_example_is_shown_plain_and_with_its_map_and_a_wrong_one_is_marked():
    page = Page(usual())
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(str(i["src"]).split(",")[1])))
        for i in page.all("img")
    ]
    assert [picture.mode for picture in pictures] == ["L", "RGB", "L", "RGB"]
    assert {picture.size for picture in pictures} == {(320, 384)}
    assert "✗ Wrong Truth: lesion Predicted: healthy, probability 0.73" in page.text
    assert "✓ Right Truth: lesion Predicted: lesion, probability 0.73" in page.text
    assert sum(a.get("class") == "error" for a in page.all("figure")) == 1
    for picture, rows, columns in (
        (pictures[1], slice(-20, None), slice(-20, None)),
        (pictures[3], slice(20), slice(20)),
    ):
        red, _, blue = np.moveaxis(np.asarray(picture, int), -1, 0)
        assert ((red - blue)[rows, columns] > 60).all(), "no warm colour where the evidence is"
        assert (red == blue)[130:250, 110:200].all(), "colour where there is no evidence"


def test_a_run_without_examples_has_no_section_for_them(tmp_path):
    page = Page(written(tmp_path, run(test=False) | {"examples": []}))
    assert "What it looks at" not in page.text
    assert page.all("img") == []


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_the_page_needs_nothing_from_outside_itself(classes):
    html = usual(classes)
    page = Page(html)
    assert "://" not in html
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    names = {a["id"] for _, a in page.elements if "id" in a}
    for _, attributes in page.elements:
        for key in ("src", "href", "xlink:href"):
            target = attributes.get(key)
            assert target is None or target.startswith("data:") or target[1:] in names
    assert set(re.findall(r"url\(#?(.*?)\)", html)) <= names
    policies = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_every_picture_has_words_and_every_identifier_is_unique(classes):
    page = Page(usual(classes))
    words = [a["aria-label"] for a in page.all("div") if a.get("role") == "img"]
    words += [a["alt"] for a in page.all("img")]
    assert len(words) == len(set(words))
    assert len(words) == 2 + 2 * 2 + 2 + 4
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))


def test_names_cannot_smuggle_in_elements_or_formulae(tmp_path):
    evil = "<script>alert('$x_1$')</script>"
    arguments = run((evil, '"><img src=x> $x_1$'))
    arguments["metrics"]["name"] = evil
    arguments["metrics"]["data"]["excluded"][0]["reason"] = evil
    page = Page(written(tmp_path, arguments))
    assert page.all("script") == []
    assert len(page.all("img")) == 4
    assert not any(key.startswith("on") for _, a in page.elements for key in a)
    assert page.text.count(evil) > 3
    assert 'Share with "><img src=x> $x_1$' in page.text


def test_the_same_input_gives_the_same_bytes_whatever_matplotlib_is_set_to(tmp_path):
    with matplotlib.rc_context({"font.size": 23, "axes.facecolor": "red"}):
        assert written(tmp_path, run(THREE)) == usual(THREE)
        assert matplotlib.rcParams["font.size"] == 23


def test_no_window_system_is_touched():
    code = "import sys, medtl_train.evaluation.report; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("monitor", ["loss", "balanced_accuracy"])
def test_a_run_of_one_epoch_by_any_monitor_has_a_page(tmp_path, monitor):
    arguments = run(test=False)
    arguments["history"] = arguments["history"][:1]
    arguments["metrics"]["training"] |= {"monitor": monitor, "best_epoch": 1, "epochs": 1}
    text = Page(written(tmp_path, arguments)).text
    assert "1 epoch, stopped early, in 0:01:01 (hours:minutes:seconds) on cpu" in text
    assert f"Kept is epoch 1, the best by validation {monitor.replace('_', ' ')} (0.970)" in text


# --- in a browser --------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["one head", "several heads"])
def test_a_browser_shows_the_page_whole_and_asks_for_nothing(browser, tmp_path, which):
    html = usual() if which == "one head" else several()[1]
    page = tmp_path / "report.html"
    page.write_text(html.replace("data/liver", "/data/" + "a-long-name-" * 20))
    # 688 pixels are the width of A4 between margins of 14 mm.
    for window, media in ((1280, "screen"), (400, "screen"), (688, "print")):
        browser.open(page, width=window, media=media)
        assert browser.width <= window, (window, media)
        assert (browser.requests, browser.complaints) == ([], [])
    assert browser.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
    assert browser.evaluate("document.querySelectorAll('.plot svg').length") > 5


def test_a_browser_would_notice(browser, tmp_path):
    html = '<p style="width: 2000px">x</p><img src="http://localhost:1/x.png"><script>x()</script>'
    (tmp_path / "page.html").write_text(html)
    browser.open(tmp_path / "page.html", width=1280)
    assert browser.width > 1280
    assert browser.requests == ["http://localhost:1/x.png"]
    assert browser.complaints
