"""The page is complete, says what it must, needs nothing from outside, and is reproducible."""

import base64
import io
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from medtl_train.report import Example, Predictions, write_report

BINARY = ("healthy", "lesion")
THREE = ("no finding", "pneumonia, probably bacterial", "interstitial pattern of unknown origin")
NAMES = ("auroc", "average_precision", "accuracy", "balanced_accuracy", "f1", "recall", "precision")
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


def evaluation(confusion: np.ndarray, first: float) -> dict[str, Any]:
    """Metrics that are all different, so that each can be found on the page."""
    values = {name: first + 0.013 * k for k, name in enumerate((*NAMES, "specificity"))}
    return {
        "images": int(confusion.sum()),
        "patients": 9,
        "resamples": 1000,
        "metrics": {n: {"value": v, "low": v - 0.1, "high": v + 0.05} for n, v in values.items()},
        "confusion": confusion.tolist(),
    }


def run(classes=BINARY, *, test=True, seed=0) -> dict[str, Any]:
    """Return the arguments of `write_report` for a small run."""
    rng = np.random.default_rng(seed)
    k = len(classes)
    binary = k == 2
    splits = ("val", "test") if test else ("val",)
    predictions, confusion = {}, {}
    for split in splits:
        labels = np.arange(36, dtype=np.int64) % k
        logits = rng.normal(size=(36, k)) + 1.5 * np.eye(k)[labels]
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        predictions[split] = Predictions(labels=labels, probabilities=shares)
        confusion[split] = np.zeros((k, k), int)
        np.add.at(confusion[split], (labels, shares.argmax(axis=1)), 1)
    metrics = {
        "name": "liver",
        "medtl_version": "0.1.0",
        "classes": list(classes),
        "positive": classes[1] if binary else None,
        "data": {
            "path": "data/liver",
            "fingerprint": "sha256:0123abcd",
            "images": {s: dict.fromkeys(classes, 36 // k) for s in ("train", *splits)},
            "patients": dict.fromkeys(("train", *splits), 9),
            "patients_known": True,
            "excluded": [
                {"source": f"data/{i}.dcm", "label": classes[0], "split": "", "reason": f"why {i}"}
                for i in range(3)
            ],
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
            "seconds": 61.2,
            "device": "cpu",
            "versions": {"torch": "2.15.0"},
        },
        "temperature": 1.25,
        "operating_point": {
            "rule": "threshold" if binary else "argmax",
            "positive": classes[1] if binary else None,
            "threshold": 0.41 if binary else None,
            "chosen": "Youden's J on 36 validation images" if binary else "",
        },
        "validation": evaluation(confusion["val"], 0.7),
        "test": evaluation(confusion["test"], 0.801) if test else None,
    }
    row = {"train_loss": 0.5, "val_loss": 0.6, "lr": 1e-3, "seconds": 3.2}
    history = [
        row | dict.fromkeys(NAMES[:6], 0.6 + 0.1 * e) | {"epoch": e, "phase": phase}
        for e, phase in enumerate(("head", "head", "all", "all"), start=1)
    ]
    cam = np.zeros((k, 8, 8), np.float32)
    cam[1, 0, 0] = cam[0, 7, 7] = 2  # class 1 is seen above left, class 0 below right
    pixels = rng.integers(0, 65536, (1, 96, 80)).astype(np.uint16)
    examples = [
        Example(
            pixels=pixels,
            cam=cam,
            truth=1,
            predicted=predicted,
            probability=0.73,
            source=f"data/{predicted}.dcm",
        )
        for predicted in (0, 1)
    ]
    return {
        "metrics": metrics,
        "history": history,
        "predictions": predictions,
        "examples": examples,
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


@pytest.mark.parametrize("classes", [BINARY, THREE])
@pytest.mark.parametrize("test", [True, False])
def test_the_page_has_every_metric_of_every_split_with_its_interval(classes, test):
    arguments = run(classes, test=test)
    page = Page(usual(classes, test=test))
    assert not page.open, "an element is not closed"
    for evaluated in (arguments["metrics"][s] for s in ("validation", "test")):
        for found in evaluated["metrics"].values() if evaluated else ():
            assert f"{found['value']:.3f} {found['low']:.3f}–{found['high']:.3f}" in page.text
    assert [title for title in TITLES if title not in page.text] == []
    assert [name for name in classes if name not in page.text] == []


def test_the_first_screen_speaks_of_the_test_and_of_the_operating_point():
    arguments = run()
    text = Page(usual()).text
    first = text[: text.index("How good the model is")]
    tested = arguments["metrics"]["test"]["metrics"]
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
    assert f"{arguments['metrics']['validation']['metrics']['auroc']['value']:.3f}" in first


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
    found = arguments["metrics"]["validation"]["metrics"]
    found["auroc"] = {"value": high, "low": low, "high": high}
    assert words in Page(written(tmp_path, arguments)).text
    assert words not in Page(usual()).text


def test_a_figure_that_is_not_defined_is_a_dash_and_a_split_of_one_class_has_no_curve(tmp_path):
    arguments = run()
    arguments["metrics"]["test"]["metrics"]["auroc"] = {"value": None, "low": None, "high": None}
    arguments["metrics"]["test"]["metrics"]["recall"]["value"] = None
    arguments["history"][0]["auroc"] = None
    one_class = Predictions(
        labels=np.zeros(36, np.int64), probabilities=arguments["predictions"]["test"].probabilities
    )
    arguments["predictions"]["test"] = one_class
    text = Page(written(tmp_path, arguments)).text
    assert "AUROC – 95 % interval –" in text
    assert "lesion 0 of 36 – –" in text
    assert not re.search(r"\b(nan|None|Undefined)\b", text)


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_confusion_matrices_show_counts_and_row_shares(classes):
    arguments = run(classes)
    text = Page(usual(classes)).text
    for split in ("validation", "test"):
        for name, row in zip(classes, arguments["metrics"][split]["confusion"], strict=True):
            cells = " ".join(f"{n} {100 * n / sum(row):.1f} %" for n in row)
            assert f"{name} {cells} {sum(row)}" in text


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_calibration_is_what_a_direct_count_gives(tmp_path, classes):
    arguments = run(classes, test=False)
    found = arguments["predictions"]["val"]
    found.probabilities[:7] = np.eye(len(classes))[0] / 2 + np.eye(len(classes))[1] / 2
    if len(classes) == 2:
        score, hits = found.probabilities[:, 1], found.labels == 1
        brier = np.mean((score - hits) ** 2)
    else:
        score, hits = found.probabilities.max(1), found.probabilities.argmax(1) == found.labels
        brier = np.mean(((found.probabilities - np.eye(3)[found.labels]) ** 2).sum(1))
    bins = np.ceil(score * 10)
    gaps = [abs((score - hits)[bins == b].sum()) for b in np.unique(bins)]
    text = Page(written(tmp_path, arguments)).text
    section = text[text.index("Whether its probabilities") :]
    assert f"Expected calibration error {sum(gaps) / 36:.3f} Brier score {brier:.3f}" in section


def test_every_excluded_sample_is_listed_with_its_reason_up_to_fifty(tmp_path):
    arguments = run(test=False)
    text = Page(usual()).text
    assert all(f"data/{i}.dcm healthy – why {i}" in text for i in range(3))
    assert "more; metrics.json has them all" not in text
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
    code = "import sys, medtl_train.report; print('matplotlib.pyplot' in sys.modules)"
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
