"""What medtl-infer does with scans: in folders, archives, series, or as they arrive."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydicom.uid import UID

from medtl_runtime.aggregation import Aggregation
from medtl_runtime.audit import verify
from medtl_runtime.decision import Decision, HeadDecision, NoveltyCutoffs, OperatingPoint, Triage
from medtl_runtime.intended_use import IntendedUse, Rule
from medtl_runtime.modelfile import file_digest
from medtl_runtime.novelty import EmbeddingReference
from medtl_runtime.signature import sign
from medtl_runtime.site import Unit, site_path, write_site

Infer = Callable[..., Any]
MakeModel = Callable[..., Path]
Rows = Callable[[str], list[dict[str, Any]]]

GREY = np.full((32, 32), 120, np.uint8)
WHITE = np.full((32, 32), 255, np.uint8)


def series(folder: Path, shipped: Path, count: int = 4) -> Path:
    """Write a small regular series, its files in another order than its slices."""
    folder.mkdir()
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    for number in range(count):
        dataset.SOPInstanceUID = f"1.2.3.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
        dataset.ImagePositionPatient = [0, 0, 2 * number]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.save_as(folder / f"{count - number}.dcm")
    return folder


@pytest.fixture(scope="module")
def watchful_model(make_model: MakeModel) -> Path:
    """Return a model that warns, abstains on grey images and refuses white ones as novel."""
    grey = EmbeddingReference(
        means=np.full((1, 1), 0.25, np.float32),
        directions=np.zeros((0, 1), np.float32),
        variances=np.zeros(0, np.float32),
        residual=0.1,
        images=50,
    )
    rules = (
        Rule(attribute="Modality", values=("MR", "CT"), missing="allow"),
        Rule(attribute="BodyPartExamined", values=("LIVER",), mismatch="warn", missing="warn"),
    )
    cutoffs = NoveltyCutoffs(energy=50, mahalanobis=4, false_refusal_rate=0.02, images=50)
    triage = Triage(error_rate=0.1, thresholds=(0.3, 0.3), images=50)
    return make_model(
        decision=Decision(heads=(HeadDecision(temperature=1.5, triage=triage),), novelty=cutoffs),
        embedding_reference=grey,
        intended_use=IntendedUse(rules=rules),
        aggregation=Aggregation(rule="mean"),
    )


# --- every status, as JSON, table and CSV


@pytest.fixture
def mixed(tmp_path: Path, shipped: Path) -> list[str]:
    """Return names of files in the working folder, one for each status."""
    np.save(tmp_path / "ok.npy", GREY // 4)
    np.save(tmp_path / "abstained.npy", GREY)
    np.save(tmp_path / "novel.npy", WHITE)
    shutil.copy(shipped / "SC_rgb_rle.dcm", tmp_path / "scope.dcm")
    np.save(tmp_path / "unfit.npy", np.zeros((8, 8), np.float32))
    (tmp_path / "empty.dcm").touch()
    names = ("ok.npy", "abstained.npy", "novel.npy", "scope.dcm", "unfit.npy", "empty.dcm")
    return [*names, "nothing.dcm"]


REASONS = {
    "ok.npy": ("ok", None),
    "abstained.npy": ("abstained", None),
    "novel.npy": ("refused", "out-of-distribution"),
    "scope.dcm": ("refused", "scan-out-of-scope"),
    "unfit.npy": ("refused", "scan-unfit"),
    "empty.dcm": ("error", "scan-unreadable"),
    "nothing.dcm": ("error", "scan-not-found"),
}


@pytest.mark.parametrize("options", [(), ("--workers", "2"), ("--batch-size", "2")])
def test_each_scan_has_a_status_and_a_reason_here_and_in_other_processes(
    infer: Infer, rows: Rows, watchful_model: Path, mixed: list[str], options: tuple[str, ...]
) -> None:
    done = infer(*mixed, "--json", *options, "--model", watchful_model)
    assert done.code == 3
    found = rows(done.out)
    assert {row["scan"]: (row["status"], row.get("reason")) for row in found} == REASONS
    assert [row["scan"] for row in found] == mixed
    ok, abstained, novel, scope = found[:4]
    assert ok["finding"] == "dark"
    assert ok["prediction_set"] == ["dark"]
    assert [one["attribute"] for one in ok["warnings"]] == ["BodyPartExamined"]
    assert ok["novelty"]["mahalanobis"] < 4
    assert (abstained["finding"], abstained["prediction_set"]) == (None, ["dark", "bright"])
    assert (novel["attribute"], novel["expected"]) == ("mahalanobis", "at most 4")
    assert novel["found"] == pytest.approx((1 - 0.25) ** 2 / 0.1, rel=1e-3)
    assert (scope["attribute"], scope["found"]) == ("Modality", "OT")
    assert done.err.splitlines()[-1] == "5 of 7 could not be read or were refused"


def test_table_and_csv_say_the_same(
    infer: Infer, watchful_model: Path, mixed: list[str], tmp_path: Path
) -> None:
    done = infer(*mixed, "--csv", "found.csv", "--quiet", "--model", watchful_model)
    assert (done.code, done.err) == (3, "")
    table = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    text = (tmp_path / "found.csv").read_text(encoding="utf-8")
    cells = {row["scan"]: row for row in csv.DictReader(io.StringIO(text))}
    for name, (status, reason) in REASONS.items():
        shown = "dark" if status == "ok" else status
        assert table[name].split()[1] == shown
        assert (cells[name]["status"], cells[name]["reason"]) == (status, reason or "")
    assert "cannot exclude dark or bright" in table["abstained.npy"]
    assert "BodyPartExamined is missing; expected LIVER" in table["ok.npy"]
    assert "unlike the training data" in table["novel.npy"]
    assert cells["scope.dcm"]["found"] == "OT"


# --- folders, archives, standard input


def test_a_folder_is_read_by_other_processes_and_named_in_order(
    infer: Infer, rows: Rows, tiny_model: Path, tmp_path: Path, shipped: Path, cine: Path
) -> None:
    (tmp_path / "study").mkdir()
    for number in range(18):
        np.save(tmp_path / "study" / f"{number:02}.npy", GREY + number)
    shutil.copy(cine, tmp_path / "study" / "cine.dcm")
    shutil.copy(shipped / "MR_truncated.dcm", tmp_path / "study" / "cut.dcm")
    done = infer("study", "--json", "--model", tiny_model)
    assert done.code == 3
    found = rows(done.out)
    names = [f"study/{number:02}.npy" for number in range(18)] + ["study/cine.dcm"] * 15
    assert [row["scan"] for row in found] == [*names, "study/cut.dcm"]
    assert [row["frame"] for row in found[18:33]] == list(range(15))
    assert done.err.splitlines()[1:] == ["1 of 34 could not be read or were refused"]
    alone = rows(infer("study/07.npy", "--json", "--model", tiny_model).out)[0]
    assert found[7]["logits"] == pytest.approx(alone["logits"], abs=1e-4)


def test_an_archive_gives_a_row_for_each_member(
    infer: Infer, rows: Rows, tiny_model: Path, tmp_path: Path, shipped: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "cd.zip", "w") as archive:
        archive.write(shipped / "MR_small.dcm", "one/MR")
        archive.write(shipped / "reportsi.dcm", "two/report.dcm")
    done = infer("cd.zip", "--json", "--heatmap", "maps", "--model", tiny_model)
    assert done.code == 3
    good, bad = rows(done.out)
    assert (good["scan"], good["heatmap"]) == ("cd.zip#one/MR", "maps/MR.png")
    assert (bad["scan"], bad["reason"]) == ("cd.zip#two/report.dcm", "scan-without-pixels")


@pytest.mark.parametrize("kind", ["file", "archive", "nothing"])
def test_standard_input_holds_a_file_or_an_archive(
    infer: Infer,
    rows: Rows,
    tiny_model: Path,
    shipped: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = b"" if kind == "nothing" else (shipped / "MR_small.dcm").read_bytes()
    if kind == "archive":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("MR.dcm", content)
        content = packed.getvalue()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    done = infer("-", "--json", "--model", tiny_model)
    (row,) = rows(done.out)
    assert row["scan"] == ("-#MR.dcm" if kind == "archive" else "-")
    assert row["status"] == ("error" if kind == "nothing" else "ok")
    assert done.code == (3 if kind == "nothing" else 0)


# --- series


def test_a_series_is_one_row_with_its_slices_in_the_order_of_space(
    infer: Infer, rows: Rows, watchful_model: Path, tmp_path: Path, shipped: Path
) -> None:
    series(tmp_path / "study", shipped)
    np.save(tmp_path / "study" / "a.npy", GREY)
    (tmp_path / "study" / "b.dcm").touch()
    arguments = ("study", "--series", "--json", "--csv", "found.csv", "--model", watchful_model)
    done = infer(*arguments)
    assert done.code == 3
    found = {row["scan"]: row for row in rows(done.out)}
    uid = str(pydicom.dcmread(tmp_path / "study" / "1.dcm").SeriesInstanceUID)
    case = next(row for row in found.values() if "slices" in row)
    assert case["series_instance_uid"] == uid
    assert case["aggregation"] == "mean"
    assert [one["scan"] for one in case["slices"]] == [f"study/{n}.dcm" for n in (4, 3, 2, 1)]
    dark = [one["probabilities"]["dark"] for one in case["slices"]]
    assert case["probabilities"]["dark"] == pytest.approx(np.mean(dark), abs=1e-5)
    assert found["study/a.npy"]["reason"] == "series-unfit"
    assert found["study/b.dcm"]["reason"] == "scan-unreadable"
    assert len(read_csv(tmp_path / "found.csv")) == len(found) + 4


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_a_series_with_a_gap_is_refused_with_the_facts(
    infer: Infer, rows: Rows, tiny_model: Path, tmp_path: Path, shipped: Path
) -> None:
    (series(tmp_path / "study", shipped, 6) / "3.dcm").unlink()
    done = infer("study", "--series", "--json", "--model", tiny_model)
    (row,) = rows(done.out)
    assert (done.code, row["status"], row["reason"]) == (3, "refused", "series-unfit")
    assert row["attribute"] == "ImagePositionPatient"
    assert "is a slice missing?" in row["message"]
    assert "study" not in done.err


def test_a_real_series_of_the_head_is_one_case(
    infer: Infer, rows: Rows, tiny_model: Path, collection: Path
) -> None:
    folder = collection / "series" / "head_mr_48"
    done = infer(folder, "--series", "--json", "--model", tiny_model)
    assert done.code == 0
    (case,) = rows(done.out)
    assert len(case["slices"]) == 48
    assert case["scan"] == f"{folder}#{case['series_instance_uid']}"
    highest = max(one["probabilities"]["bright"] for one in case["slices"])
    dark = max(one["probabilities"]["dark"] for one in case["slices"])
    assert case["probabilities"]["bright"] == pytest.approx(highest / (highest + dark), abs=1e-5)


# --- DICOM outputs


def test_reports_and_captures_are_written_and_named_in_the_rows(
    infer: Infer, rows: Rows, tiny_model: Path, tmp_path: Path, shipped: Path
) -> None:
    pytest.importorskip("highdicom")
    series(tmp_path / "study", shipped, 3)
    np.save(tmp_path / "picture.npy", GREY)
    outputs = ("--sr", "reports", "--heatmap-dicom", "captures", "--heatmap", "maps")
    arguments = ("study/1.dcm", "picture.npy", *outputs, "--json", "--model", tiny_model)
    done = infer(*arguments)
    assert done.code == 3
    scan, picture = rows(done.out)
    assert scan["sr"] == "reports/1.sr.dcm"
    assert scan["secondary_capture"] == "captures/1.heatmap.dcm"
    for kind in ("sr", "secondary_capture"):
        written = pydicom.dcmread(tmp_path / scan[kind])
        assert (
            written.StudyInstanceUID == pydicom.dcmread(tmp_path / "study/1.dcm").StudyInstanceUID
        )
        assert picture[kind]["reason"] == "scan-unfit"
    assert picture["heatmap"] == "maps/picture.npy.png"
    assert "2 files could not be written" in done.err
    again = infer(*arguments)
    assert again.code == 3
    assert {row["heatmap"]["reason"] for row in rows(again.out)} == {"output-exists"}
    assert infer(*arguments[:1], *arguments[2:], "--overwrite").code == 0


def test_a_series_has_one_report_and_a_capture_for_each_slice(
    infer: Infer, rows: Rows, tiny_model: Path, tmp_path: Path, shipped: Path
) -> None:
    pytest.importorskip("highdicom")
    series(tmp_path / "study", shipped, 3)
    (tmp_path / "codes.toml").write_text(
        '[classes.dark]\nvalue = "17621005"\nscheme = "SCT"\nmeaning = "Normal"\n'
    )
    outputs = ("--sr", "reports", "--codes", "codes.toml", "--heatmap-dicom", "captures")
    done = infer("study", "--series", *outputs, "--json", "--model", tiny_model)
    assert done.code == 0, done.err
    (case,) = rows(done.out)
    assert case["secondary_capture"] == [f"captures/{n}.heatmap.dcm" for n in (3, 2, 1)]
    report = pydicom.dcmread(tmp_path / case["sr"])
    assert "17621005" in str(report)


def test_codes_that_do_not_fit_are_a_usage_error_before_anything_is_written(
    infer: Infer, tiny_model: Path, tmp_path: Path, shipped: Path
) -> None:
    (tmp_path / "codes.toml").write_text('[classes.cyst]\nvalue = "1"\n')
    done = infer(
        *(shipped / "MR_small.dcm", "--sr", "reports", "--codes", "codes.toml"),
        *("--model", tiny_model),
    )
    assert (done.code, done.out) == (2, "")
    assert not (tmp_path / "reports").exists()


# --- the model: loading, site file, signature


@pytest.mark.parametrize("scan", ["nothing.dcm", "grey.npy"])
def test_a_model_that_cannot_be_used_is_exit_code_4_whatever_the_scans_are(
    infer: Infer, tmp_path: Path, scan: str
) -> None:
    np.save(tmp_path / "grey.npy", GREY)
    (tmp_path / "m.onnx").write_bytes(b"no model")
    done = infer(scan, "--json", "--model", "m.onnx")
    assert done.code == 4
    assert done.err.splitlines()[-1].startswith("error: m.onnx is not a usable medtl model")
    assert "probabilities" not in done.out


def test_the_site_file_is_used_unless_it_is_declined(
    infer: Infer, rows: Rows, make_model: MakeModel, tmp_path: Path
) -> None:
    np.save(tmp_path / "grey.npy", GREY)
    model = make_model(tmp_path / "tiny.onnx")
    point = OperatingPoint(rule="threshold", positive="bright", threshold=0.01)
    fitted = {"model_digest": file_digest(model), "unit": "image", "account": {}}
    write_site(
        site_path(model), decision=Decision(heads=(HeadDecision(operating_point=point),)), **fitted
    )
    write_site(
        tmp_path / "other.json", decision=Decision(heads=(HeadDecision(temperature=9),)), **fitted
    )

    def row(*options: str) -> dict[str, Any]:
        done = infer("grey.npy", "--json", *options, "--model", model)
        assert done.code == 0
        return rows(done.out)[0]

    assert row("--no-site")["model"]["site"] is None
    assert (row("--no-site")["finding"], row()["finding"]) == ("dark", "bright")
    assert row()["model"]["site"] == file_digest(site_path(model))
    assert row("--site", "other.json")["model"]["site"] == file_digest(tmp_path / "other.json")
    info = infer("--info", "--model", model).out
    assert "threshold: 0.01" in info
    assert f"site_file: {file_digest(site_path(model))}" in info


def test_a_site_file_of_another_model_is_exit_code_4(
    infer: Infer, make_model: MakeModel, tmp_path: Path
) -> None:
    np.save(tmp_path / "grey.npy", GREY)
    model = make_model(tmp_path / "tiny.onnx")
    digest = "sha256:" + 64 * "0"
    write_site(
        site_path(model),
        model_digest=digest,
        decision=Decision(heads=(HeadDecision(),)),
        unit="image",
        account={},
    )
    done = infer("grey.npy", "--json", "--model", model)
    assert done.code == 4
    assert "--no-site" in done.err
    assert infer("grey.npy", "--json", "--no-site", "--model", model).code == 0


@pytest.mark.parametrize("unit", ["image", "series"])
def test_thresholds_of_a_site_are_for_what_they_were_fitted_to(
    infer: Infer, make_model: MakeModel, tmp_path: Path, shipped: Path, unit: Unit
) -> None:
    series(tmp_path / "study", shipped)
    model = make_model(tmp_path / "tiny.onnx")
    digest = file_digest(model)
    write_site(
        site_path(model),
        model_digest=digest,
        decision=Decision(heads=(HeadDecision(),)),
        unit=unit,
        account={},
    )
    right, wrong = ([], ["--series"]) if unit == "image" else (["--series"], [])
    assert infer("study", *right, "--json", "--model", model).code == 0
    done = infer("study", *wrong, "--json", "--model", model)
    assert (done.code, done.out) == (2, "")
    assert f"the site file was fitted to each {unit}" in done.err
    assert infer("study", *wrong, "--json", "--no-site", "--model", model).code == 0


def test_a_series_beside_files_that_cannot_be_read_says_so(
    infer: Infer, rows: Rows, tiny_model: Path, tmp_path: Path, shipped: Path
) -> None:
    series(tmp_path / "study", shipped)
    (tmp_path / "study" / "z.dcm").write_bytes(b"damaged")
    shutil.copy(shipped / "reportsi.dcm", tmp_path / "study" / "report.dcm")
    found = rows(infer("study", "--series", "--json", "--model", tiny_model).out)
    (case,) = (row for row in found if "slices" in row)
    (note,) = case["notes"]
    assert note.startswith("1 file")
    assert "missing at an end" in note


def test_only_a_model_that_the_key_has_signed_is_run(
    infer: Infer, tiny_model: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "grey.npy", GREY)
    keys = {name: Ed25519PrivateKey.generate() for name in ("ours", "theirs")}
    for name, key in keys.items():
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pem").write_bytes(public)
    (tmp_path / "signed.onnx").write_bytes(sign(tiny_model.read_bytes(), keys["ours"]))

    def run(model: str | Path, key: str):
        return infer("grey.npy", "--json", "--model", model, "--require-signature", f"{key}.pem")

    assert run("signed.onnx", "ours").code == 0
    for model, key, words in (
        ("signed.onnx", "theirs", "signed by"),
        (tiny_model, "ours", "is not signed"),
    ):
        done = run(model, key)
        assert (done.code, done.out) == (4, "")
        assert words in done.err
    assert run("signed.onnx", "nobody").code == 2


# --- the audit log


def test_the_audit_log_tells_what_was_done_and_its_chain_holds(
    infer: Infer, watchful_model: Path, mixed: list[str], tmp_path: Path
) -> None:
    for _ in range(2):
        infer(*mixed, "--json", "--audit", "log/audit.jsonl", "--model", watchful_model)
    log = tmp_path / "log" / "audit.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert verify(log).entries == len(entries) == 2 * (1 + len(mixed) + 1)
    run = entries[: len(mixed) + 2]
    assert [one["event"] for one in run] == ["start", *["scan"] * len(mixed), "stop"]
    assert run[0]["model"] == file_digest(watchful_model)
    assert [(one["status"], one["reason"]) for one in run[1:-1]] == list(REASONS.values())
    assert run[-1]["counts"] == dict(Counter(status for status, _ in REASONS.values()))
    assert "novel.npy" not in log.read_text()
    assert infer("verify", log).code == 0
    log.write_text(log.read_text().replace("refused", "ok"))
    assert infer("verify", log).code == 1


# --- a watched folder


@contextmanager
def watching(folder: Path, *options: str | Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "medtl_runtime.cli", "--watch", folder, *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def test_files_are_answered_as_they_arrive_whole_until_the_signal(
    rows: Rows, tiny_model: Path, tmp_path: Path, shipped: Path
) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    np.save(folder / "early.npy", GREY)
    log, maps = tmp_path / "audit.jsonl", tmp_path / "maps"
    maps.mkdir()
    (maps / "MR.png").write_text("of an earlier run")
    options = ("--model", tiny_model, "--audit", log, "--heatmap", "maps")
    if find_spec("highdicom"):
        options += ("--sr", "reports")
    content = (shipped / "MR_small.dcm").read_bytes()
    with watching(folder, *options) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stderr.readline().startswith("tiny on ONNX Runtime")
        lines = [running.stdout.readline()]
        (folder / "bad.dcm").write_bytes(content[:2000])
        with (folder / "MR.dcm").open("wb") as slow:  # in three parts, as over a network
            for part in (content[:3000], content[3000:6000], content[6000:]):
                slow.write(part)
                slow.flush()
                time.sleep(0.5)
        lines += [running.stdout.readline(), running.stdout.readline()]
        report = tmp_path / "reports" / "MR.sr.dcm"  # it waits for no other scan
        limit = time.monotonic() + 10
        while find_spec("highdicom") and not report.exists() and time.monotonic() < limit:
            time.sleep(0.05)
        assert report.exists() == bool(find_spec("highdicom"))
        running.send_signal(signal.SIGTERM)
        rest, err = running.communicate(timeout=20)
    assert running.returncode == 0, err
    assert rest == ""
    found = {Path(row["scan"]).name: row for row in rows("".join(lines))}
    assert set(found) == {"early.npy", "bad.dcm", "MR.dcm"}
    assert found["early.npy"]["finding"] == "dark"
    assert found["bad.dcm"]["status"] == "error"
    assert found["MR.dcm"]["status"] == "ok"
    assert found["MR.dcm"]["heatmap"] == "maps/MR-2.png"
    assert (maps / "MR.png").read_text() == "of an earlier run"
    assert "1 of 3 could not be read or were refused" in err
    assert not any(name in err for name in found)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [one["event"] for one in entries] == ["start", "scan", "scan", "scan", "stop"]
    assert entries[-1]["counts"] == {"ok": 2, "error": 1}
    assert verify(log).entries == 5


def test_a_folder_that_is_not_there_cannot_be_watched(infer: Infer, tiny_model: Path) -> None:
    done = infer("--watch", "nowhere", "--quiet", "--model", tiny_model)
    assert (done.code, done.out) == (2, "")
    assert "nowhere cannot be watched" in done.err
