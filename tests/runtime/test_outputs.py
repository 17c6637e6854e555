"""JSON lines, the table and CSV: what they show of each kind of outcome."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtl_runtime import Predictor
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.answers import Answer
from medtl_runtime.csv_file import CsvFile
from medtl_runtime.decision import Decision, HeadDecision, Triage
from medtl_runtime.errors import OutputExists, ScanError, ScanNovel, ScanOutOfScope, ScanUnreadable
from medtl_runtime.heads import Head
from medtl_runtime.intended_use import Mismatch
from medtl_runtime.novelty import Novelty
from medtl_runtime.outputs import JsonLines, Table
from medtl_runtime.results import CaseResult, Failure, Outcome, Result
from medtl_runtime.testing import FakeEngine, describe

Rows = Callable[[str], list[dict[str, Any]]]

HEADS = (Head(name="label", classes=("negative", "positive")),)
IMAGE = np.zeros((8, 8), np.uint8)
NOVEL = ScanNovel("c.dcm", "unlike the training data (energy)", attribute="energy", found=9.5)
NEVER = Decision(
    heads=(HeadDecision(triage=Triage(error_rate=0.1, thresholds=(0.0, 0.0), images=9)),)
)
MODALITY = Mismatch(attribute="Modality", found="MR", expected="CT", action="warn")


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(engine=FakeEngine(describe()))


def result(predictor: Predictor, scan: str = "a.dcm", **changes: Any) -> Result:
    return replace(predictor(IMAGE), scan=scan, **changes)


def with_set(one: Result, possible: tuple[str, ...] | None) -> Result:
    return replace(one, answers={"label": replace(one.answers["label"], prediction_set=possible)})


def case(*slices: Result | Failure, notes: tuple[str, ...] = ()) -> CaseResult:
    return CaseResult(
        scan="study",
        series_instance_uid="1.2.3",
        aggregation=Aggregation(rule="max"),
        answers={
            "label": Answer(
                kind="multiclass",
                finding="positive",
                probabilities={"negative": 0.25, "positive": 0.75},
            )
        },
        notes=notes,
        slices=slices,
    )


EXISTS = {"reason": "output-exists", "message": "a file of that name exists"}
FILES = {"heatmap": ["maps/a.png", "maps/b.png"], "sr": "sr/a.dcm", "secondary_capture": EXISTS}


def table(
    capsys: pytest.CaptureFixture[str],
    predictor: Predictor,
    *outcomes: Outcome,
    files: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the lines of a table that are not empty."""
    with Table(predictor) as sink:
        for outcome in outcomes:
            sink.add(outcome, files or {})
    return [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]


# --- table


def test_the_table_of_plain_results_has_no_column_for_notes(
    capsys: pytest.CaptureFixture[str], predictor: Predictor
) -> None:
    shown = table(capsys, predictor, result(predictor))
    assert shown[0].split() == ["scan", "finding", "p(negative)", "p(positive)", "ms"]
    assert shown[2].split()[:4] == ["a.dcm", "negative", "0.500", "0.500"]
    assert shown[-1] == "model fake 1 (fp32)  Research use only; not a medical device."


def test_nothing_makes_no_table(capsys: pytest.CaptureFixture[str], predictor: Predictor) -> None:
    assert table(capsys, predictor) == []


def test_a_failure_is_a_row_with_its_reason_and_needs_no_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    absent = Predictor(tmp_path / "none.onnx", background=True)
    failures: list[ScanError] = [
        ScanUnreadable("a.dcm", "the file is empty"),
        ScanOutOfScope("b.dcm", "Modality is MR; expected CT"),
    ]
    shown = table(capsys, absent, *(Failure(scan=one.source, error=one) for one in failures))
    header, _, *lines = shown
    assert header.split() == ["scan", "finding", "ms", "note"]
    assert [line.split(maxsplit=2) for line in lines] == [
        ["a.dcm", "error", "the file is empty"],
        ["b.dcm", "refused", "Modality is MR; expected CT"],
    ]


def test_warnings_and_abstention_are_notes(
    capsys: pytest.CaptureFixture[str], predictor: Predictor
) -> None:
    doubtful = Predictor(engine=FakeEngine(describe(decision=NEVER)))
    shown = table(
        capsys,
        predictor,
        result(predictor, warnings=(MODALITY,)),
        result(doubtful, scan="b.dcm", warnings=(MODALITY,)),
        with_set(result(doubtful, scan="c.dcm"), ()),
    )
    assert shown[2].endswith("Modality is MR; expected CT")
    assert shown[3].split()[:2] == ["b.dcm", "abstained"]
    assert "cannot exclude negative or positive; Modality is MR" in shown[3]
    assert shown[4].endswith("every class is excluded, as it resembles none")


def test_a_file_that_was_not_written_is_a_note_with_its_reason(
    capsys: pytest.CaptureFixture[str], predictor: Predictor
) -> None:
    one = result(predictor, warnings=(MODALITY,))
    shown = table(capsys, predictor, one, files=FILES)
    note = "Modality is MR; expected CT; no secondary_capture: a file of that name exists"
    assert shown[2].endswith(note)
    assert "maps/" not in shown[2]


def test_frames_are_numbered_where_there_are_several(
    capsys: pytest.CaptureFixture[str], predictor: Predictor
) -> None:
    novel = Failure(scan="two.dcm", error=NOVEL, frame=1)
    shown = table(capsys, predictor, result(predictor, "two.dcm"), novel, result(predictor, "one"))
    assert [line.split()[:2] for line in shown[2:5]] == [
        ["two.dcm", "[0]"],
        ["two.dcm", "[1]"],
        ["one", "negative"],
    ]


def test_a_case_is_one_row_with_what_is_unusual_of_it(
    capsys: pytest.CaptureFixture[str], predictor: Predictor
) -> None:
    slices = [result(predictor, warnings=(MODALITY,), milliseconds={"run": 10.0}) for _ in range(3)]
    whole = case(*slices, notes=("gaps of 1.9 to 2 mm",))
    part = case(*slices, Failure(scan="c.dcm", error=NOVEL, frame=0))
    lines = table(capsys, predictor, whole, part)
    assert lines[2].split()[:5] == ["study", "positive", "0.250", "0.750", "30.0"]
    assert lines[2].endswith("max of 3 slices; gaps of 1.9 to 2 mm; Modality is MR; expected CT")
    assert "max of 3 of 4 slices" in lines[3]


def test_the_foot_says_when_thresholds_are_those_of_the_site(
    capsys: pytest.CaptureFixture[str], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    from medtl_runtime.modelfile import file_digest
    from medtl_runtime.site import site_path, write_site

    model = make_model(tmp_path / "tiny.onnx")
    write_site(
        site_path(model),
        model_digest=file_digest(model),
        decision=Decision(heads=(HeadDecision(temperature=2),)),
        unit="image",
        account={},
    )
    fitted = Predictor(model, device="cpu", threads=1)
    shown = table(capsys, fitted, result(fitted))
    assert f"model tiny 1 (fp32, fitted on site), {file_digest(model)[:19]}…" in shown[-1]


def test_what_was_found_is_shown_whatever_stops_the_rest(
    capsys: pytest.CaptureFixture[str], predictor: Predictor
) -> None:
    def stopped() -> None:
        with Table(predictor) as sink:
            sink.add(result(predictor), {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert "a.dcm" in capsys.readouterr().out


def test_names_and_classes_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    odd = Predictor(engine=FakeEngine(describe(classes=("[red]no[/red]", ":smile:"))))
    shown = table(capsys, odd, result(odd, "CT [axial] \x1b[31m.dcm"))
    assert "p([red]no[/red])" in shown[0]
    assert "p(:smile:)" in shown[0]
    assert shown[2].startswith("CT [axial] \N{REPLACEMENT CHARACTER}[31m.dcm")


# --- JSON


def test_json_comes_line_by_line_with_the_files_that_were_written(
    capsys: pytest.CaptureFixture[str], predictor: Predictor, rows: Rows
) -> None:
    with JsonLines() as sink:
        sink.add(result(predictor), {"heatmap": "maps/a.png"})
        (row,) = rows(capsys.readouterr().out)
        assert row["heatmap"] == "maps/a.png"
        sink.add(Failure(scan="c.dcm", error=NOVEL, frame=1), {})
        (row,) = rows(capsys.readouterr().out)
        assert (row["reason"], row["found"]) == ("out-of-distribution", 9.5)


# --- CSV


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_csv_has_a_row_for_each_outcome_and_each_slice(
    predictor: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "findings.csv"
    spacing = ScanOutOfScope(
        "d.dcm", "PixelSpacing ...", attribute="PixelSpacing", found=[0.5, 0.7], expected="1 mm"
    )
    with CsvFile(path, HEADS, overwrite=False) as sink:
        sink.add(result(predictor, 'b, "odd"\n.dcm'), {})
        sink.add(Failure(scan="d.dcm", error=spacing), {})
        sink.add(case(result(predictor), Failure(scan="c.dcm", error=NOVEL, frame=0)), {})
        assert not path.exists()  # it appears whole
    first, refused, slice_1, slice_2, whole = read(path)
    assert first["scan"] == 'b, "odd"\n.dcm'
    assert (first["status"], first["finding"]) == ("ok", "negative")
    assert float(first["p(negative)"]) == pytest.approx(0.5)
    assert (refused["attribute"], refused["found"]) == ("PixelSpacing", "[0.5, 0.7]")
    assert (refused["status"], refused["p(positive)"], refused["frame"]) == ("refused", "", "")
    assert (slice_1["finding"], slice_2["found"]) == ("negative", "9.5")
    assert (whole["series_instance_uid"], whole["p(positive)"]) == ("1.2.3", "0.75")
    assert whole["message"] == "max of 1 of 2 slices"
    assert {one["series_instance_uid"] for one in (slice_1, slice_2)} == {"1.2.3"}
    assert first["series_instance_uid"] == ""


def test_csv_names_the_files_and_why_there_is_none(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "findings.csv"
    with CsvFile(path, HEADS, overwrite=False) as sink:
        sink.add(result(predictor), FILES)
        sink.add(case(result(predictor)), {"sr": "sr/study.dcm"})
    first, one_slice, whole = read(path)
    assert (first["sr"], first["secondary_capture"]) == ("sr/a.dcm", "")
    assert json.loads(first["heatmap"]) == ["maps/a.png", "maps/b.png"]
    assert first["not_written"] == "no secondary_capture: a file of that name exists"
    assert (one_slice["sr"], whole["sr"], whole["not_written"]) == ("", "sr/study.dcm", "")


def test_csv_tells_what_else_was_found_and_by_which_model(tmp_path: Path) -> None:
    novelty = Novelty(energy=-1.25, mahalanobis=7.5)
    doubtful = Predictor(engine=FakeEngine(describe(decision=NEVER)))
    model = {**doubtful.model, "digest": "sha256:ab", "site": "sha256:cd"}
    changes: dict[str, Any] = {"novelty": novelty, "warnings": (MODALITY, MODALITY), "model": model}
    path = tmp_path / "findings.csv"
    with CsvFile(path, HEADS, overwrite=False) as sink:
        sink.add(result(doubtful, **changes), {})
        sink.add(with_set(result(doubtful), ()), {})
        sink.add(with_set(result(doubtful), None), {})
    full, empty, without = read(path)
    assert json.loads(full["prediction_set"]) == ["negative", "positive"]
    assert (empty["prediction_set"], without["prediction_set"]) == ("[]", "")
    assert (full["energy"], full["mahalanobis"]) == ("-1.25", "7.5")
    assert full["warnings"] == "Modality is MR; expected CT; Modality is MR; expected CT"
    assert (full["model_digest"], full["site_digest"]) == ("sha256:ab", "sha256:cd")
    assert (without["energy"], without["warnings"], without["site_digest"]) == ("", "", "")


def test_csv_takes_names_that_are_no_utf_8(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "findings.csv"
    with CsvFile(path, HEADS, overwrite=False) as sink:
        sink.add(result(predictor, os.fsdecode(b"sk\xe5ne.dcm")), {})
        sink.add(result(predictor, "läsion.dcm"), {})
    names = [row["scan"] for row in read(path)]
    assert names[0].startswith("sk")
    assert names[1] == "läsion.dcm"


def test_an_existing_csv_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    path = tmp_path / "findings.csv"
    path.write_text("mine")
    with pytest.raises(OutputExists):
        CsvFile(path, HEADS, overwrite=False)
    with CsvFile(path, HEADS, overwrite=True):
        assert path.read_text() == "mine"
    assert path.read_text().startswith("scan,frame,")
