"""Runs are compared on the images that all have, and a difference is told from chance."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

from medtl_runtime.decision import OperatingPoint
from medtl_runtime.errors import OutputExists, UsageError
from medtl_runtime.heads import Head
from medtl_train.compare import comparison
from medtl_train.compare.cli import compare as command
from medtl_train.compare.comparison import Run, compare, read_run
from medtl_train.compare.report import write_comparison
from medtl_train.evaluation import predictions
from medtl_train.scoring.metrics import differences

FINDING = Head(name="finding", classes=("healthy", "lesion"))
STAGE = Head(name="stage", kind="ordinal", classes=("0", "1", "2"))
AGE = Head(name="age", kind="regression", unit="a", mean=50, std=10)
POINTS = {
    "finding": OperatingPoint(rule="threshold", positive="lesion", threshold=0.5),
    "stage": OperatingPoint(rule="median"),
    "age": OperatingPoint(rule="value"),
}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 60)


def run(name: str, *, skill: float, seed: int, images: int = 1, n: int = 90) -> Run:
    """Return a run on always the same images, with a skill of its own."""
    truth, own = np.random.default_rng(0), np.random.default_rng(seed)
    labels, stages = truth.integers(0, 2, n), truth.integers(0, 3, n)
    ages = truth.normal(50, 10, n)
    chance = 1 / (1 + np.exp(-(skill * (labels - 0.5) + own.normal(size=n))))
    grades = np.exp(skill * np.eye(3)[stages] + own.normal(size=(n, 3)))
    grades /= grades.sum(1, keepdims=True)
    rows = pl.DataFrame(
        {
            "split": ["test"] * n,
            "source": [f"{i}.png" for i in range(n)],
            "frame": [0] * n,
            "digest": [f"digest {i}" for i in range(n)],
            "patient": [f"p{i // images}" for i in range(n)],
            "target(finding)": labels.astype(float),
            "p(finding=healthy)": 1 - chance,
            "p(finding=lesion)": chance,
            "target(stage)": stages.astype(float),
            **{f"p(stage={k})": grades[:, k] for k in range(3)},
            "target(age)": ages,
            "value(age)": ages + own.normal(0, 10 / skill, n),
        }
    )
    heads = (FINDING, STAGE, AGE)
    return Run(name=name, heads=heads, points=POINTS, rows=rows, patients_known=True)


def test_a_better_run_is_found_to_be_better() -> None:
    found = compare([run("a", skill=0.5, seed=1), run("b", skill=6, seed=2)], "test")
    assert (found["images"], found["patients"]) == (90, 90)
    for head, metric, sign in (("finding", "auroc", 1), ("stage", "auroc", 1), ("age", "mae", -1)):
        _, second = found["heads"][head]["runs"]
        change = second["differences"][metric]
        assert sign * change["value"] > 0
        assert change["low"] * change["high"] > 0
        assert all(test["p"] < 0.05 for test in second["tests"])
    assert found["heads"]["finding"]["runs"][0]["differences"] is None


def test_runs_that_say_the_same_do_not_differ() -> None:
    found = compare([run("a", skill=2, seed=1), run("b", skill=2, seed=1)], "test")
    for head in found["heads"].values():
        _, second = head["runs"]
        assert all(change["value"] == 0 for change in second["differences"].values())
        assert all(test["p"] == test["p_holm"] == 1 for test in second["tests"])


def test_differences_are_those_of_the_paired_bootstrap() -> None:
    runs = [run("a", skill=2, seed=1, images=3), run("b", skill=3, seed=2, images=3)]
    found = compare(runs, "test")["heads"]["finding"]["runs"][1]["differences"]
    scored = [predictions.answers_of(one.rows, FINDING, POINTS["finding"]) for one in runs]
    expected = differences(*scored, seed=0, resamples=60)
    for name, change in expected.items():
        assert {key: found[name][key] for key in change} == change
        assert 2 / 61 <= found[name]["p"] <= 1


@pytest.mark.parametrize(
    ("images", "methods"),
    [
        (1, ["DeLong", "McNemar, exact"]),
        (3, ["paired bootstrap over patients", "McNemar for patients with several images"]),
    ],
)
def test_the_test_is_one_that_holds_for_the_patients(images: int, methods: list[str]) -> None:
    runs = [run("a", skill=2, seed=1, images=images), run("b", skill=3, seed=2, images=images)]
    found = compare(runs, "test")
    tests = found["heads"]["finding"]["runs"][1]["tests"]
    assert [test["method"] for test in tests] == methods
    assert found["one_image_a_patient"] == (images == 1)


def test_p_values_are_adjusted_for_all_comparisons_of_their_kind() -> None:
    runs = [run(name, skill=2 + k, seed=k) for k, name in enumerate("abc")]
    rows = [row for head in compare(runs, "test")["heads"].values() for row in head["runs"][1:]]
    tests = [test for row in rows for test in row["tests"]]
    aurocs = [test for test in tests if test["name"] == "auroc"]
    assert len(aurocs) == 4  # two heads, two runs
    smallest = min(aurocs, key=lambda test: test["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 4 * smallest["p"]))
    assert all(test["p_holm"] >= test["p"] for test in tests)


def test_images_are_matched_by_their_pixels_in_any_order() -> None:
    one, other = run("a", skill=2, seed=1), run("b", skill=3, seed=2)
    turned = replace(other, rows=other.rows.reverse())
    assert compare([one, turned], "test") == compare([one, other], "test")


def test_images_that_one_run_lacks_are_left_out_and_counted() -> None:
    one, other = run("a", skill=2, seed=1), run("b", skill=3, seed=2)
    found = compare([one, replace(other, rows=other.rows[10:])], "test")
    assert (found["images"], found["left_out"]) == (80, {"a": 10, "b": 0})


def test_unknown_targets_are_left_out_of_their_head_alone() -> None:
    runs = [run("a", skill=2, seed=1), run("b", skill=3, seed=2)]
    unknown = pl.Series("target(finding)", [None] * 10 + [0.0, 1.0] * 40, pl.Float64)
    heads = compare([replace(one, rows=one.rows.with_columns(unknown)) for one in runs], "test")
    images = {name: head["runs"][0]["images"] for name, head in heads["heads"].items()}
    assert images == {"finding": 80, "stage": 90, "age": 90}


def test_only_heads_that_all_runs_have_are_compared() -> None:
    one, other = run("a", skill=2, seed=1), run("b", skill=3, seed=2)
    found = compare([one, replace(other, heads=(AGE, STAGE))], "test")
    assert list(found["heads"]) == ["stage", "age"]


def changed(one: Run, what: str) -> Run:
    match what:
        case "images":
            return replace(one, rows=one.rows.with_columns(digest=pl.lit("x") + pl.col("digest")))
        case "truth":
            return replace(one, rows=one.rows.with_columns(pl.col("target(finding)") * 0))
        case "positive":
            point = replace(POINTS["finding"], positive="healthy")
            return replace(one, points={**POINTS, "finding": point})
        case _:
            return replace(one, heads=(replace(FINDING, classes=("no", "yes")),))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("images", "no image in common"),
        ("truth", "do not agree on the true finding"),
        ("positive", "looks for healthy and a for lesion"),
        ("classes", "no label with the same classes in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(what: str, words: str) -> None:
    one, other = run("a", skill=2, seed=1), run("b", skill=3, seed=2)
    with pytest.raises(UsageError, match=words):
        compare([one, changed(other, what)], "test")


def test_the_page_says_what_was_compared_and_how(tmp_path: Path) -> None:
    runs = [run("runs/a", skill=2, seed=1), run("runs/<b>", skill=3, seed=2)]
    found = compare([runs[0], replace(runs[1], rows=runs[1].rows[5:])], "test")
    write_comparison(tmp_path / "c.html", found)
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "85 images of 85 patients" in page
    assert "runs/a has 5 images more" in page
    assert "DeLong" in page
    assert "runs/&lt;b&gt;" in page
    assert "<b>/" not in page
    change = found["heads"]["finding"]["runs"][1]["differences"]["auroc"]
    assert f"{change['value']:.3f}" in page
    assert page.count('role="img"') == 3
    assert "://" not in page


def test_unknown_patients_are_a_warning(tmp_path: Path) -> None:
    runs = [replace(run(n, skill=2, seed=k), patients_known=False) for k, n in enumerate("ab")]
    write_comparison(tmp_path / "c.html", compare(runs, "test"))
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "Whose images these are is not known" in page
    assert "Each image counts as a patient of its own" in page
    assert "90 patients" not in page


def test_a_browser_shows_the_page_whole_and_asks_for_nothing(browser: Any, tmp_path: Path) -> None:
    runs = [run(f"runs/{name * 30}", skill=k, seed=k) for k, name in enumerate("abc", start=1)]
    write_comparison(tmp_path / "c.html", compare(runs, "test"))
    for window, media in ((1280, "screen"), (400, "screen"), (688, "print")):
        browser.open(tmp_path / "c.html", width=window, media=media)
        assert browser.width <= window, (window, media)
        assert (browser.requests, browser.complaints) == ([], [])


# --- the command ---------------------------------------------------------------------------------


def medtl_compare(*given: object) -> Result:
    return CliRunner().invoke(command, [*map(str, given)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folders of two finished runs, as far as they are compared."""
    folder = tmp_path_factory.mktemp("runs")
    for name, skill in (("first", 1.0), ("second", 4.0)):
        write_run(folder / name, run(name, skill=skill, seed=len(name)))
    return [folder / "first", folder / "second"]


def write_run(folder: Path, one: Run) -> None:
    folder.mkdir()
    predictions.write(folder / predictions.NAME, [one.rows])
    summary: dict[str, Any] = dict.fromkeys(("name", "config", "validation", "test", "external"))
    summary["data"] = dict.fromkeys(("path", "excluded", "headers"))
    summary["data"]["patients_known"] = True
    summary["heads"] = {
        head.name: {**head.to_json(), "operating_point": vars(POINTS[head.name]), "positive": None}
        for head in one.heads
    }
    (folder / "metrics.json").write_text(json.dumps(summary), encoding="utf-8")


def test_a_run_is_read_as_it_was_written(folders: list[Path]) -> None:
    found = read_run(folders[0], "test")
    assert (found.heads, found.points) == ((FINDING, STAGE, AGE), POINTS)
    assert found.rows.equals(run("first", skill=1.0, seed=5).rows)


def test_the_command_prints_the_comparison_and_writes_the_page(
    folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "c.html"
    done = medtl_compare(*folders, "--out", out)
    assert (done.exit_code, done.stderr) == (0, "")
    headings = next(line for line in done.stdout.splitlines() if "decisions p" in line)
    assert headings.split() == ["run", "auroc", "difference", "p", "decisions", "p"]
    found = compare([read_run(folder, "test") for folder in folders], "test")
    change = found["heads"]["finding"]["runs"][1]["differences"]["auroc"]
    assert f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})" in done.stdout
    assert "90 test images of 90 patients" in done.stdout
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert isinstance(medtl_compare(*folders, "--out", out).exception, OutputExists)


def test_the_command_prints_json(folders: list[Path]) -> None:
    found = json.loads(medtl_compare(*folders, "--json").stdout)
    assert found["runs"] == [str(folder) for folder in folders]
    assert found["resamples"] == 60
    assert found["heads"]["age"]["runs"][1]["tests"][0]["p_holm"] < 0.05


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (["first"], "1 run given; a comparison takes two or more"),
        (["first", "first"], "a run is given twice"),
        (["first", "third"], r"third holds no metrics\.json"),
    ],
)
def test_what_the_command_cannot_compare_is_refused(
    folders: list[Path], runs: list[str], words: str
) -> None:
    done = medtl_compare(*(folders[0].parent / name for name in runs))
    assert isinstance(done.exception, UsageError)
    assert re.search(words, str(done.exception))
    assert done.stdout == ""


def test_a_split_that_a_run_does_not_have_is_refused(folders: list[Path]) -> None:
    with pytest.raises(UsageError, match="no images of the split external"):
        read_run(folders[0], "external")


def test_predictions_that_lack_a_head_are_refused(tmp_path: Path) -> None:
    one = run("a", skill=1, seed=1)
    write_run(tmp_path / "a", replace(one, rows=one.rows.drop("value(age)")))
    with pytest.raises(UsageError, match=r"lacks the column value\(age\)"):
        read_run(tmp_path / "a", "test")
