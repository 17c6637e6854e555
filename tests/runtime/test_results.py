"""Every kind of outcome is a row that the published schema describes."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from typing import Any

import jsonschema
import numpy as np
import pytest

from medtl_runtime import Predictor, errors
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.answers import Answer
from medtl_runtime.decision import Decision, HeadDecision, Triage
from medtl_runtime.errors import DecoderMissing, ScanError, ScanNovel, ScanUnreadable
from medtl_runtime.intended_use import Mismatch
from medtl_runtime.novelty import Novelty
from medtl_runtime.results import CaseResult, Failure, Outcome, Result, without_pixels
from medtl_runtime.scan import Header
from medtl_runtime.testing import FakeEngine, describe

Rows = Callable[[str], list[dict[str, Any]]]

SCHEMA = json.loads(files("medtl_runtime").joinpath("result.schema.json").read_text("utf-8"))


def result(**changes: Any) -> Result:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    return replace(Predictor(engine=FakeEngine(describe()))(image), **changes)


def abstained() -> Result:
    never = Decision(
        heads=(HeadDecision(triage=Triage(error_rate=0.1, thresholds=(0.0, 0.0), images=9)),)
    )
    return Predictor(engine=FakeEngine(describe(decision=never)))(np.zeros((8, 8), np.uint8))


def case(*slices: Result | Failure, finding: str | None = "negative") -> CaseResult:
    answer = Answer(
        kind="multiclass",
        finding=finding,
        probabilities={"negative": 0.75, "positive": 0.25},
        prediction_set=("negative",),
    )
    return CaseResult(
        scan="study#1.2.3",
        series_instance_uid="1.2.3",
        aggregation=Aggregation(rule="top-k-mean", k=3),
        answers={"label": answer},
        notes=("gaps between slices of 1.9 to 2 mm",),
        slices=slices,
    )


NOVEL = ScanNovel("a.dcm", "unlike", attribute="energy", found=3.25, expected="at most 2")
WARNINGS = (
    Mismatch(attribute="Modality", found="MR", expected="CT", action="warn"),
    Mismatch(attribute="PixelSpacing", found=[0.5, 0.7], expected="1 to 2 mm", action="warn"),
    Mismatch(attribute="ViewPosition", found=None, expected="AP", action="warn"),
)
OUTCOMES: dict[str, Outcome] = {
    "result": result(),
    "warned": result(warnings=WARNINGS),
    "with novelty": result(novelty=Novelty(energy=-3.25, mahalanobis=12.5)),
    "of a site": result(
        model={
            "name": "a",
            "version": "1",
            "precision": "int8",
            "digest": "sha256:" + 64 * "a",
            "site": "sha256:" + 64 * "b",
        }
    ),
    "abstained": abstained(),
    "novel frame": Failure(scan="a.dcm", error=NOVEL, frame=3, header=Header(modality="MR")),
    "unreadable": Failure(scan="a.dcm", error=ScanUnreadable("a.dcm", "cut short")),
    "case": case(result(), Failure(scan="a.dcm", error=NOVEL, frame=0), result()),
    "abstained case": case(abstained(), finding=None),
}


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("kind", OUTCOMES)
def test_each_kind_of_outcome_is_a_row_of_the_schema(rows: Rows, kind: str) -> None:
    outcome = OUTCOMES[kind]
    (row,) = rows(json.dumps(outcome.to_json(), allow_nan=False))
    assert row["status"] == outcome.status
    assert row["scan"] == outcome.scan


@pytest.mark.parametrize(
    "files",
    [
        {"heatmap": "maps/a.png"},
        {"heatmap": ["maps/a.png", "maps/b.png"], "sr": "reports/a.sr.dcm"},
        {"secondary_capture": {"reason": "scan-unfit", "message": "no DICOM"}},
    ],
)
def test_the_files_of_an_outcome_are_part_of_its_row(rows: Rows, files: dict[str, Any]) -> None:
    for kind in ("result", "case"):
        rows(json.dumps({**OUTCOMES[kind].to_json(), **files}))
    with pytest.raises(jsonschema.ValidationError):  # there are none for a failure
        rows(json.dumps({**OUTCOMES["unreadable"].to_json(), **files}))


@pytest.mark.parametrize("kind", OUTCOMES)
def test_the_schema_sees_a_field_that_is_lost_or_new(rows: Rows, kind: str) -> None:
    row = OUTCOMES[kind].to_json()
    for name in row:
        with pytest.raises(jsonschema.ValidationError):
            rows(json.dumps({key: value for key, value in row.items() if key != name}))
    with pytest.raises(jsonschema.ValidationError):
        rows(json.dumps({**row, "surprise": 1}))


def test_the_schema_lists_the_reasons_that_there_are() -> None:
    listed = SCHEMA["$defs"]["failure"]["properties"]["reason"]["enum"]
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ScanError) and kind is not ScanError
    }
    assert sorted(listed) == sorted(kind.code for kind in kinds)


def test_a_failure_says_where_and_why() -> None:
    row = OUTCOMES["novel frame"].to_json()
    assert row == {
        "scan": "a.dcm",
        "frame": 3,
        "sop_instance_uid": "",
        "status": "refused",
        "reason": "out-of-distribution",
        "message": "unlike",
        "attribute": "energy",
        "found": 3.25,
        "expected": "at most 2",
    }
    missing = Failure(scan="a.dcm", error=DecoderMissing("a.dcm", "install it"))
    assert (missing.to_json()["status"], missing.to_json()["frame"]) == ("error", None)


def test_only_the_slices_with_a_score_are_aggregated() -> None:
    one = case(result(), Failure(scan="a.dcm", error=NOVEL), result())
    assert len(one.scored) == 2
    assert [row["status"] for row in one.to_json()["slices"]] == ["ok", "refused", "ok"]
    assert one.to_json()["aggregation"] == "top-3-mean"


def test_a_result_without_pixels_says_the_same_and_is_small() -> None:
    whole = result()
    small = without_pixels(whole)
    assert small.to_json() == whole.to_json()
    assert small.canonical.pixels.nbytes + small.cam.nbytes == 0
    assert whole.canonical.pixels.nbytes > 0
    assert whole.cam.nbytes > 0
