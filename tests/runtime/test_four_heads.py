"""A model file of four kinds of heads, from a scan to rows, tables, reports and a site file."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from medtl_runtime import Predictor
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.decision import Decision, HeadDecision, Margin, OperatingPoint, Triage
from medtl_runtime.heads import Head
from medtl_runtime.modelfile import file_digest
from medtl_runtime.novelty import EmbeddingReference, NoveltyCutoffs
from medtl_runtime.site import read_site, site_path

Infer = Callable[..., Any]
Rows = Callable[[str], list[dict[str, Any]]]

HEADS = (
    Head(name="organ", classes=("liver", "spleen", "kidney")),
    Head(name="oedema", kind="binary", classes=("absent", "present")),
    Head(name="grade", kind="ordinal", classes=("1", "2", "3")),
    Head(name="age", kind="regression", unit="a", mean=50.0, std=10.0),
)
DECISION = Decision(
    heads=(
        HeadDecision(temperature=1.5),
        HeadDecision(
            operating_point=OperatingPoint(rule="threshold", positive="present", threshold=0.4),
            triage=Triage(error_rate=0.2, thresholds=(0.45, 0.45), images=50),
        ),
        HeadDecision(operating_point=OperatingPoint(rule="median")),
        HeadDecision(
            operating_point=OperatingPoint(rule="value"),
            interval=Margin(coverage=0.8, half_width=4.0, images=50),
        ),
    ),
    novelty=NoveltyCutoffs(energy=20.0, mahalanobis=25.0, false_refusal_rate=0.1, images=50),
)
REFERENCE = EmbeddingReference(
    means=np.array([[0.5]], np.float32),
    directions=np.empty((0, 1), np.float32),
    variances=np.empty(0, np.float32),
    residual=0.04,
    images=100,
)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file whose columns grow with the brightness, from -4 to 4 times less a half."""
    return make_model(
        tmp_path_factory.mktemp("four") / "four.onnx",
        heads=HEADS,
        decision=DECISION,
        embedding_reference=REFERENCE,
        aggregation=Aggregation(rule="mean"),
    )


def grey(level: float) -> np.ndarray:
    return np.full((32, 32), level, np.uint8)


WEIGHTS = np.linspace(-4, 4, 7)


def test_the_file_loads_and_each_head_reads_its_own_columns(model: Path) -> None:
    result = Predictor(model, device="cpu", threads=1)(grey(204))  # 0.8 of the full scale
    logits = WEIGHTS * (0.8 - 0.5)
    np.testing.assert_allclose(result.logits, logits, atol=1e-4)
    np.testing.assert_allclose(result.cam.mean((1, 2)), result.logits, atol=1e-5)
    found = result.answers
    assert found["organ"].finding == "kidney"
    assert found["oedema"].probabilities == pytest.approx({"absent": 0.5, "present": 0.5}, abs=1e-4)
    assert (found["oedema"].finding, found["oedema"].prediction_set) == (
        None,
        ("absent", "present"),
    )
    assert found["grade"].finding == "2"  # 0.40, 0.19 and 0.41: the median is in the middle
    assert found["age"].value == pytest.approx(50 + 10 * 4 * 0.3, abs=1e-3)


def test_rows_of_json_keep_to_the_schema(
    infer: Infer, rows: Rows, model: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", grey(204))
    done = infer("a.npy", "--json", "--model", model)
    assert done.code == 0
    (row,) = rows(done.out)
    assert list(row["answers"]) == ["organ", "oedema", "grade", "age"]
    assert row["finding"] is None
    assert row["answers"]["age"]["interval"] == pytest.approx(
        {"low": 58.0, "high": 66.0, "coverage": 0.8}, abs=1e-3
    )


def test_the_energy_of_several_heads_refuses_as_well(infer: Infer, model: Path) -> None:
    predictor = Predictor(model, device="cpu", threads=1)
    result = predictor(grey(204))
    assert result.novelty is not None
    parts = np.logaddexp.reduce(result.logits[:3]), *np.logaddexp(0, result.logits[3:6])
    assert result.novelty.energy == pytest.approx(-sum(map(float, parts)), abs=1e-5)


def test_csv_has_the_columns_of_every_head(infer: Infer, model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", grey(204))
    (tmp_path / "b.npy").write_bytes(b"no image")
    done = infer("a.npy", "b.npy", "--csv", "out.csv", "--quiet", "--model", model)
    assert done.code == 3
    with (tmp_path / "out.csv").open(newline="") as file:
        first, failed = csv.DictReader(file)
    assert list(first)[-17:] == [
        *("organ.finding", "organ.prediction_set"),
        *("p(organ=liver)", "p(organ=spleen)", "p(organ=kidney)"),
        *("oedema.finding", "oedema.prediction_set", "p(oedema=absent)", "p(oedema=present)"),
        *("grade.finding", "grade.prediction_set", "p(grade=1)", "p(grade=2)", "p(grade=3)"),
        *("age.value", "age.low", "age.high"),
    ]
    assert (first["organ.finding"], first["oedema.finding"]) == ("kidney", "")
    assert json.loads(first["oedema.prediction_set"]) == ["absent", "present"]
    assert float(first["age.value"]) == pytest.approx(62, abs=1e-3)
    assert float(first["age.low"]) == pytest.approx(58, abs=1e-3)
    assert float(first["p(grade=3)"]) == pytest.approx(0.413, abs=1e-3)
    assert (first["finding"], failed["organ.finding"], failed["status"]) == ("", "", "error")


def test_the_table_has_a_column_for_each_head(infer: Infer, model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", grey(204))
    (tmp_path / "b.npy").write_bytes(b"no image")
    done = infer("a.npy", "b.npy", "--model", model)
    header, _, first, failed, *_ = (line for line in done.out.splitlines() if line.strip())
    assert header.split() == ["scan", "status", "organ", "oedema", "grade", "age", "ms", "note"]
    assert "kidney 0." in first
    assert "abstained" in first
    assert "62 a (58 to 66)" in first
    assert "oedema: it cannot exclude absent or present" in first
    assert failed.split()[:2] == ["b.npy", "error"]


def test_info_shows_each_head_with_its_decision(infer: Infer, model: Path) -> None:
    done = infer("--info", "--model", model)
    assert done.code == 0
    lines = [line.strip() for line in done.out.splitlines()]
    for line in ("organ:", "age:", "kind: regression", "unit: a", "half_width: 4.0"):
        assert line in lines
    document = json.loads(infer("--info", "--json", "--model", model).out)
    assert [head["name"] for head in document["heads"]] == [head.name for head in HEADS]
    assert len(document["decision"]["heads"]) == 4


def test_the_self_test_is_about_all_columns(infer: Infer, model: Path) -> None:
    assert infer("--selftest", "--model", model).code == 0


def test_heat_maps_show_the_head_that_is_asked_for(
    infer: Infer, model: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", grey(204))
    for name, shown in ((None, "organ=kidney"), ("age", "age above 50 a"), ("grade", "grade=2")):
        options = ["--head", name] if name else []
        done = infer("a.npy", "--heatmap", f"maps-{name}", *options, "--model", model)
        assert done.code == 0
        with Image.open(tmp_path / f"maps-{name}" / "a.npy.png") as picture:
            assert picture.info["medtl:class"] == shown
    done = infer("a.npy", "--heatmap", "maps", "--head", "lung", "--model", model)
    assert done.code == 2
    assert "--head lung: the model has no such head; expected organ, oedema" in done.err
    done = infer("a.npy", "--head", "age", "--model", model)
    assert "--head needs --heatmap or --heatmap-dicom" in done.err


def test_reports_and_codes_are_by_head(
    infer: Infer, model: Path, shipped: Path, tmp_path: Path
) -> None:
    pytest.importorskip("highdicom")
    codes = tmp_path / "codes.toml"
    entry = 'value = "1"\nscheme = "SCT"\nmeaning = "x"\n'
    codes.write_text(f'[classes."oedema=present"]\n{entry}[values.age]\n{entry}')
    scan = shipped / "CT_small.dcm"
    done = infer(scan, "--sr", "reports", "--model", model, "--codes", codes)
    assert done.code == 0
    report = pydicom.dcmread(tmp_path / "reports" / "CT_small.sr.dcm")
    assert report.SOPClassUID.name == "Comprehensive 3D SR Storage"
    codes.write_text(f"[classes.present]\n{entry}")
    done = infer(scan, "--sr", "more", "--model", model, "--codes", codes)
    assert done.code == 2
    assert "classes.present is no class of the model; expected organ=liver" in done.err


def test_the_audit_log_has_the_answer_of_each_head(
    infer: Infer, model: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", grey(204))
    assert infer("a.npy", "--audit", "log.jsonl", "--model", model).code == 0
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = [text for text in map(json.dumps, entries) if '"answers"' in text]
    assert len(found) == 1
    assert '"organ": "kidney"' in found[0]
    assert '"oedema": null' in found[0]


def labelled(folder: Path, count: int = 60) -> Path:
    """Write images and a manifest whose labels follow the brightness, with some noise."""
    rng = np.random.default_rng(0)
    rows = ["path,organ,oedema,grade,age"]
    for number in range(count):
        level = rng.uniform(0.2, 0.8)
        np.save(folder / f"{number}.npy", grey(255 * level))
        noisy = level + rng.normal(0, 0.08)
        organ = HEADS[0].classes[int(np.clip(noisy * 5 - 1, 0, 2))]
        oedema = "present" if noisy + rng.normal(0, 0.1) > 0.5 else "absent"
        grade = 1 + int(np.clip(noisy * 5 - 1, 0, 2))
        age = "" if number % 3 == 0 else f"{50 + 40 * (level - 0.5) + rng.normal(0, 2):.2f}"
        rows.append(f"{number}.npy,{organ},{oedema},{grade},{age}")
    manifest = folder / "cases.csv"
    manifest.write_text("\n".join(rows))
    return manifest


def test_every_head_is_fitted_to_the_cases_of_a_site(
    infer: Infer, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(
        tmp_path / "four.onnx", heads=HEADS, decision=DECISION, embedding_reference=REFERENCE
    )
    manifest = labelled(tmp_path)
    options = ["--data", manifest, "--model", model, "--workers", 1]
    done = infer("calibrate", *options, "--criterion", "cost=5:1", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    heads = document["account"]["heads"]
    assert list(heads) == ["organ", "oedema", "grade", "age"]
    assert heads["age"]["cases"] == 40
    assert sum(heads["grade"]["cases"].values()) == 60
    assert heads["oedema"]["criterion"].startswith("least cost, 5 for a missed case")
    assert heads["organ"]["criterion"] is None
    site = read_site(site_path(model), file_digest(model), HEADS).decision
    organ, oedema, grade, age = site.heads
    assert organ.temperature not in (1, 1.5)
    assert oedema.operating_point.chosen.endswith("on 60 local images")
    assert oedema.triage is not None
    assert oedema.triage.error_rate == 0.2
    assert grade.operating_point.rule == "median"
    assert age.interval is not None
    assert (age.interval.coverage, age.interval.images) == (0.8, 40)
    assert age.interval.half_width < 6
    for when in ("before", "after"):
        assert heads["age"][when]["mean_absolute_error"] < 3
        assert heads["grade"][when]["accuracy"] > 0.4
    assert heads["age"]["after"]["covered"] >= 0.8
    predictor = Predictor(model, device="cpu", threads=1, refuse_novel=False)
    fitted = predictor(grey(204)).answers["age"].interval
    assert fitted is not None
    assert fitted.high - fitted.low == pytest.approx(2 * age.interval.half_width)


def test_a_head_without_labels_keeps_its_decision_and_the_table_is_by_head(
    infer: Infer, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(
        tmp_path / "four.onnx", heads=HEADS, decision=DECISION, embedding_reference=REFERENCE
    )
    manifest = labelled(tmp_path)
    lines = [line.split(",") for line in manifest.read_text().splitlines()]
    manifest.write_text("\n".join(f"{one[0]},{one[2]}" for one in lines))
    options = ["--data", manifest, "--model", model, "--workers", 1, "--false-refusal-rate", 0]
    done = infer("calibrate", *options)
    assert done.code == 0, done.err
    assert "oedema, 60 cases (absent" in done.out
    assert "organ: no case is labelled for it; it keeps its decision" in done.err
    site = read_site(site_path(model), file_digest(model), HEADS).decision
    assert (site.heads[0], *site.heads[2:]) == (DECISION.heads[0], *DECISION.heads[2:])
    assert site.heads[1] != DECISION.heads[1]
    done = infer("calibrate", *options, "--positive", "tumour", "--overwrite")
    assert "--positive is no class; the classes are absent, present" in done.err
    done = infer("calibrate", *options, "--error-rate", 0.001, "--overwrite")
    assert "--error-rate 0.001 takes 999 cases of each class" in done.err
