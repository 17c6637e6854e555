"""The command medtl-infer: what it prints, writes and exits with."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medtl_runtime.intended_use import IntendedUse, Rule
from medtl_runtime.modelfile import SelfTest, file_digest
from medtl_runtime.reading import files_below

Infer = Callable[..., Any]
Rows = Callable[[str], list[dict[str, Any]]]
MakeModel = Callable[..., Path]

GREY = np.full((32, 32), 200, np.uint8)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "grey.png"
    Image.fromarray(GREY).save(path)
    return path


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# --- results


def test_the_table_shows_a_row_for_each_scan(
    infer: Infer, tiny_model: Path, shipped: Path, png: Path
) -> None:
    done = infer(shipped / "MR_small.dcm", "grey.png", "--model", tiny_model)
    assert done.code == 0
    assert done.err.startswith("tiny on ONNX Runtime")
    table = [line.split() for line in done.out.splitlines() if line.strip()]
    assert table[0] == ["scan", "finding", "p(dark)", "p(bright)", "ms"]
    mr, grey = table[2], table[3]
    assert mr[0] == str(shipped / "MR_small.dcm")
    assert mr[1] == "dark"
    assert grey[:2] == ["grey.png", "bright"]
    assert float(grey[2]) + float(grey[3]) == pytest.approx(1, abs=0.002)
    footer = done.out.splitlines()[-1]
    assert footer.startswith(f"model tiny 1 (fp32), {file_digest(tiny_model)[:19]}")
    assert "Research use only" in footer


def test_json_is_one_object_a_line_for_good_and_bad_scans(
    infer: Infer, rows: Rows, tiny_model: Path, shipped: Path
) -> None:
    done = infer(shipped / "MR_small.dcm", "nothing.dcm", "--json", "--model", tiny_model)
    assert done.code == 3
    good, bad = rows(done.out)
    assert good["status"] == "ok"
    assert good["scan"] == str(shipped / "MR_small.dcm")
    assert good["finding"] == "dark"
    assert good["model"]["digest"] == file_digest(tiny_model)
    assert set(good["milliseconds"]) == {"read", "prepare", "run"}
    assert bad == {
        "scan": "nothing.dcm",
        "frame": None,
        "sop_instance_uid": "",
        "status": "error",
        "reason": "scan-not-found",
        "message": "no such file or folder, or it holds no files",
        "attribute": None,
        "found": None,
        "expected": None,
    }


def test_a_file_of_several_frames_gives_a_row_for_each(
    infer: Infer, tiny_model: Path, cine: Path
) -> None:
    rows = lines(infer(cine, "--json", "--model", tiny_model).out)
    assert [row["frame"] for row in rows] == list(range(15))
    table = infer(cine, "--model", tiny_model).out
    assert "cine.dcm [0]" in table
    assert "cine.dcm [14]" in table


def test_folders_and_globs_are_expanded(
    infer: Infer, tiny_model: Path, png: Path, tmp_path: Path
) -> None:
    (tmp_path / "study" / "deep").mkdir(parents=True)
    for name in ("study/b.png", "study/deep/a.png", "study/.hidden", "x1.png", "x2.png"):
        shutil.copy(png, tmp_path / name)
    done = infer("study", "x?.png", "--json", "--model", tiny_model)
    assert done.code == 0
    names = [row["scan"] for row in lines(done.out)]
    assert names == ["study/b.png", "study/deep/a.png", "x1.png", "x2.png"]


def test_quiet_says_nothing_but_results(infer: Infer, tiny_model: Path, png: Path) -> None:
    done = infer("grey.png", "nothing", "--quiet", "--model", tiny_model)
    assert (done.code, done.err) == (3, "")
    table = done.out.splitlines()
    assert any(line.split()[:2] == ["grey.png", "bright"] for line in table)
    (row,) = (line for line in table if line.strip().startswith("nothing"))
    assert row.split()[1] == "error"
    assert row.rstrip().endswith("no such file or folder, or it holds no files")


def test_stderr_counts_failures_and_names_none(infer: Infer, tiny_model: Path, png: Path) -> None:
    done = infer("grey.png", "nothing", "--model", tiny_model)
    first, last = done.err.splitlines()
    assert first.startswith("tiny on ONNX Runtime")
    assert last == "1 of 2 could not be read or were refused"


# --- bad scans


@pytest.fixture
def bad_scans(tmp_path: Path, shipped: Path) -> dict[str, str]:
    """Return names of bad files in the working folder, and a word of the reason for each."""
    for name in ("reportsi.dcm", "waveform_ecg.dcm", "SC_rgb_rle.dcm", "MR_truncated.dcm"):
        shutil.copy(shipped / name, tmp_path / name)
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "text.dcm").write_text("not an image\n" * 40)
    whole = (shipped / "CT_small.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:20_000])
    (tmp_path / "header.dcm").write_bytes(whole[:1_000])
    damaged = bytearray((shipped / "MR_small_RLE.dcm").read_bytes())
    damaged[-2000:-1000] = bytes(1000)
    (tmp_path / "damaged.dcm").write_bytes(damaged)
    np.save(tmp_path / "nan.npy", np.full((8, 8), np.nan))
    np.save(tmp_path / "volume.npy", np.zeros((8, 8, 8), np.uint8))
    np.save(tmp_path / "float.npy", np.zeros((8, 8), np.float32))
    Image.fromarray(GREY).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    return {
        "nothing.dcm": "no such file",
        "nothing*.dcm": "no such file",
        "reportsi.dcm": "without an image (SR)",
        "waveform_ecg.dcm": "without an image",
        "SC_rgb_rle.dcm": "colour image",
        "MR_truncated.dcm": "cut short",
        "empty.dcm": "empty",
        "text.dcm": "neither DICOM nor PNG, JPEG or NPY",
        "cut.dcm": "cut short",
        "header.dcm": "cut short",
        "damaged.dcm": "cannot be decoded",
        "nan.npy": "NaN",
        "volume.npy": "8 x 8 x 8",
        "float.npy": "without a window",
        "cut.png": "damaged PNG",
    }


def test_each_bad_scan_is_one_row_with_its_reason_and_the_rest_go_on(
    infer: Infer, rows: Rows, tiny_model: Path, bad_scans: dict[str, str], png: Path
) -> None:
    between = [name for bad in bad_scans for name in (bad, "grey.png")]
    done = infer(*between, "--json", "--model", tiny_model)
    assert done.code == 3
    found = rows(done.out)
    good = [row for row in found if row["status"] == "ok"]
    assert [row["scan"] for row in good] == ["grey.png"]  # named many times, it is one file
    bad = {row["scan"]: row["message"] for row in found if row["status"] != "ok"}
    assert list(bad) == list(bad_scans)
    for name, word in bad_scans.items():
        assert word in bad[name]
    assert [line for line in done.err.splitlines() if any(name in line for name in bad)] == []
    assert f"{len(bad)} of {len(found)} could not be read or were refused" in done.err


@pytest.mark.parametrize("last", ["nothing.dcm", "empty.dcm"])
def test_a_good_scan_before_a_bad_one_is_shown(
    infer: Infer, tiny_model: Path, bad_scans: dict[str, str], png: Path, last: str
) -> None:
    done = infer("grey.png", last, "--model", tiny_model)
    assert done.code == 3
    assert "grey.png" in done.out


def test_only_bad_scans_make_a_table_of_reasons(infer: Infer, tiny_model: Path) -> None:
    done = infer("nothing.dcm", "--quiet", "--model", tiny_model)
    assert (done.code, done.err) == (3, "")
    assert "no such file" in done.out
    assert "p(bright)" not in done.out


def test_a_scan_out_of_scope_is_refused_with_a_code_of_its_own(
    infer: Infer, rows: Rows, make_model: MakeModel, shipped: Path, png: Path
) -> None:
    rule = Rule(attribute="Modality", values=("CT",), missing="allow")
    model = make_model(intended_use=IntendedUse(rules=(rule,)))
    done = infer(shipped / "MR_small.dcm", "grey.png", "--json", "--model", model)
    assert done.code == 3
    refused, taken = rows(done.out)
    assert (refused["status"], refused["reason"]) == ("refused", "scan-out-of-scope")
    assert refused["message"] == "Modality is MR; expected CT"
    facts = (refused["attribute"], refused["found"], refused["expected"])
    assert facts == ("Modality", "MR", "CT")
    assert taken["status"] == "ok"


def test_every_file_of_a_folder_of_odd_files_is_a_row(
    tiny_model: Path, shipped: Path, rows: Rows
) -> None:
    """In a process of its own, so that what decoders print past Python is seen."""
    command = [sys.executable, "-m", "medtl_runtime.cli", shipped, "--model", tiny_model]
    done = subprocess.run(
        [*command, "--json", "--quiet"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (3, "")
    found = rows(done.stdout)
    assert {row["scan"] for row in found} == {str(path) for path in files_below(shipped)}
    statuses = Counter(row["status"] for row in found)
    assert statuses["ok"] > 40
    assert statuses["error"] + statuses["refused"] > 20


@pytest.mark.parametrize(
    "name", ["CT [axial].png", "[/b].png", ":smile:.png", "a b.png", "läsion.png", "[red]x.png"]
)
def test_a_name_is_shown_as_it_is(
    infer: Infer, tiny_model: Path, png: Path, tmp_path: Path, name: str
) -> None:
    if "/" in name:
        (tmp_path / name).parent.mkdir()
    shutil.copy(png, tmp_path / name)
    done = infer(tmp_path / name, "--model", tiny_model)
    assert done.code == 0
    assert f"{tmp_path / name} " in done.out


def test_control_characters_of_a_name_do_not_reach_the_terminal(
    infer: Infer, tiny_model: Path, png: Path, tmp_path: Path
) -> None:
    name = "a\x1b[31m\nb.png"
    shutil.copy(png, tmp_path / name)
    done = infer(name, f"no{name}", "--quiet", "--model", tiny_model)
    assert "\x1b" not in done.out + done.err
    assert "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b.png" in done.out
    assert done.err == ""
    (row,) = lines(infer(name, "--json", "--model", tiny_model).out)
    assert row["scan"] == name


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
@pytest.mark.parametrize(
    ("as_json", "encoding"),
    [(True, "latin-1"), (False, "utf-8")],
)
def test_a_name_that_is_no_utf_8_is_printed_on_a_strict_stdout(
    tiny_model: Path, png: Path, tmp_path: Path, as_json: bool, encoding: str
) -> None:
    name = os.fsdecode(b"sk\xe5ne.png")
    shutil.copy(png, tmp_path / name)
    command = [sys.executable, "-m", "medtl_runtime.cli", name, "--model", tiny_model]
    done = subprocess.run(
        [*command, "--json"] if as_json else command,
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
    )
    assert done.returncode == 0, done.stderr
    if as_json:
        assert json.loads(done.stdout)["scan"] == name
    assert b"bright" in done.stdout


# --- heat maps


def test_heat_maps_are_written_and_named_in_json(
    infer: Infer, tiny_model: Path, png: Path, shipped: Path, tmp_path: Path
) -> None:
    done = infer(
        "grey.png", shipped / "MR_small.dcm", "--heatmap", "maps", "--json", "--model", tiny_model
    )
    assert done.code == 0
    paths = [row["heatmap"] for row in lines(done.out)]
    assert paths == ["maps/grey.png.png", "maps/MR_small.png"]
    for path in paths:
        with Image.open(tmp_path / path) as picture:
            assert picture.size == (384, 384)
            assert picture.mode == "RGB"


def test_equal_names_in_two_folders_and_frames_get_maps_of_their_own(
    infer: Infer, tiny_model: Path, shipped: Path, cine: Path, tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(shipped / "MR_small.dcm", tmp_path / folder / "scan.dcm")
    done = infer("one", "two", cine, "--heatmap", "maps", "--model", tiny_model)
    assert done.code == 0
    names = {path.name for path in (tmp_path / "maps").iterdir()}
    frames = {"cine.png", *(f"cine-frame{n}.png" for n in range(1, 15))}
    assert names == {"scan.png", "scan-2.png", *frames}


def test_an_existing_map_is_not_overwritten_and_what_was_found_is_shown(
    infer: Infer, rows: Rows, tiny_model: Path, png: Path, shipped: Path, tmp_path: Path
) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "MR_small.png").write_text("mine")
    arguments = ["grey.png", shipped / "MR_small.dcm", "--heatmap", "maps", "--model", tiny_model]
    done = infer(*arguments, "--json")
    assert done.code == 3
    assert "MR_small" not in done.err
    grey, mr = rows(done.out)
    assert grey["heatmap"] == "maps/grey.png.png"
    assert (mr["status"], mr["heatmap"]["reason"]) == ("ok", "output-exists")
    assert (tmp_path / "maps" / "MR_small.png").read_text() == "mine"
    assert infer(*arguments, "--overwrite").code == 0
    with Image.open(tmp_path / "maps" / "MR_small.png") as picture:
        assert picture.size == (384, 384)


def test_a_folder_for_maps_that_is_a_file_costs_the_maps_and_not_the_findings(
    infer: Infer, rows: Rows, tiny_model: Path, png: Path
) -> None:
    done = infer("grey.png", "--heatmap", "grey.png", "--json", "--model", tiny_model)
    assert done.code == 3
    (row,) = rows(done.out)
    assert (row["finding"], row["heatmap"]["reason"]) == ("bright", "output-not-written")
    assert "could not be written" in done.err.splitlines()[-1]


def test_a_disk_that_fills_up_under_a_map_leaves_the_older_one_whole(
    tiny_model: Path, png: Path, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "grey.png.png").write_text("older")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "medtl_runtime.cli", "grey.png", "--model", tiny_model),
            *("--heatmap", "maps", "--overwrite", "--quiet"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["grey.png.png"]
    assert (tmp_path / "maps" / "grey.png.png").read_text() == "older"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("as_json", [True, False])
def test_results_that_do_not_fit_on_the_disk_are_one_line(
    tiny_model: Path, png: Path, tmp_path: Path, as_json: bool
) -> None:
    command = [sys.executable, "-m", "medtl_runtime.cli", "grey.png", "--model", tiny_model]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--quiet", "--json"] if as_json else [*command, "--quiet"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=tmp_path,
        )
    assert done.returncode == 1
    assert done.stderr == "error: standard output was not written: No space left on device\n"


def test_a_reader_that_has_seen_enough_is_no_failure_to_talk_about(
    tiny_model: Path, png: Path, tmp_path: Path
) -> None:
    for number in range(200):
        shutil.copy(png, tmp_path / f"{number}.png")
    command = [sys.executable, "-m", "medtl_runtime.cli", ".", "--model", tiny_model]
    with subprocess.Popen(
        [*command, "--json", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert json.loads(running.stdout.readline())["status"] == "ok"
        running.stdout.close()
        assert running.stderr.read() == ""


# --- the model


def test_info_shows_what_the_model_says_of_itself(infer: Infer, tiny_model: Path) -> None:
    done = infer("--info", "--model", tiny_model)
    assert done.code == 0
    shown = done.out.splitlines()
    assert f"digest: {file_digest(tiny_model)}" in shown
    assert "name: tiny" in shown
    assert '    classes: ["dark", "bright"]' in shown
    assert "    temperature: 1.0" in shown
    assert "    kind: header" in shown
    assert "self_test: 2 images, tolerance 0.0001" in shown


def test_info_in_json_is_the_document_of_the_file(infer: Infer, tiny_model: Path) -> None:
    (document,) = lines(infer("--info", "--json", "--model", tiny_model).out)
    assert document["schema_version"] == 4
    assert document["name"] == "tiny"
    assert len(document["self_test"]["logits"]) == 2


def test_the_self_test_passes_with_its_difference(infer: Infer, tiny_model: Path) -> None:
    done = infer("--selftest", "--model", tiny_model)
    assert done.code == 0
    assert done.out.startswith("self-test passed: largest difference ")
    (row,) = lines(infer("--selftest", "--json", "--model", tiny_model).out)
    assert row["self_test"] == "passed"
    assert row["difference"] < 1e-4


def test_a_failing_self_test_stops_before_any_scan(
    infer: Infer, make_model: MakeModel, png: Path
) -> None:
    wrong = SelfTest(seeds=(1,), logits=((50.0, -50.0),), tolerance=0.01)
    done = infer("grey.png", "--selftest", "--quiet", "--model", make_model(self_test=wrong))
    assert (done.code, done.out) == (4, "")
    (line,) = done.err.splitlines()
    assert "differs from the stored logits" in line
    assert "Do not use this model on this machine" in line


def test_the_only_model_of_the_folder_is_taken(
    infer: Infer, tiny_model: Path, png: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(tiny_model, tmp_path / "models" / "only.onnx")
    assert infer("grey.png").code == 0
    shutil.copy(tiny_model, tmp_path / "models" / "second.onnx")
    done = infer("grey.png")
    assert done.code == 4
    assert done.err == (
        "error: several models, choose one with --model: models/only.onnx, models/second.onnx\n"
    )


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "cut", "foreign", "undescribed"])
def test_a_model_that_cannot_be_used_is_one_line_and_exit_code_4(
    infer: Infer, make_model: MakeModel, tiny_model: Path, png: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"{kind}.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no model")
    elif kind == "cut":
        path.write_bytes(tiny_model.read_bytes()[:400])
    elif kind == "foreign":
        make_model(path, metadata={})
    elif kind == "undescribed":
        make_model(path, metadata={"medtl": '{"schema_version": 3}'})
    done = infer("grey.png", "--model", path)
    assert (done.code, done.out) == (4, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert str(path) in line


def test_no_model_anywhere_says_so(infer: Infer, png: Path) -> None:
    done = infer("grey.png")
    assert done.code == 4
    assert "no model in models and " in done.err


# --- usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--json"],
        ["--no-such-option"],
        ["grey.png", "--device", "tpu"],
        ["grey.png", "--threads", "0"],
        ["grey.png", "--threads", "many"],
        ["grey.png", "--model"],
    ],
)
def test_wrong_usage_is_exit_code_2_without_a_traceback(
    infer: Infer, tiny_model: Path, png: Path, arguments: list[str]
) -> None:
    done = infer(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "nothing to do: name a scan, --watch, --info or --selftest"),
        ("--csv f.csv", "nothing to do"),
        ("--info --csv f.csv", "--csv needs a scan or --watch"),
        ("--info --series", "--series needs a scan"),
        ("--selftest --audit a.jsonl", "--audit needs a scan or --watch"),
        ("--selftest --workers 2", "--workers needs a scan"),
        ("a.png --codes c.toml", "--codes needs --sr"),
        ("a.png --audit-key k", "--audit-key needs --audit"),
        ("a.png --overwrite", "--overwrite needs --heatmap or --heatmap-dicom or --sr or --csv"),
        ("a.png --site s.json --no-site", "--site and --no-site do not go together"),
        ("a.png --watch in", "--watch and a scan do not go together"),
        ("--watch in --series", "--watch and --series do not go together"),
        ("--watch in --csv f.csv", "--watch and --csv do not go together"),
        ("--watch in --batch-size 4", "--watch and --batch-size do not go together"),
        ("a.png --series --workers 2", "--series and --workers do not go together"),
        ("--watch in --heatmap in/maps", "--heatmap is inside the folder of --watch"),
        ("--watch in --audit ./in/a.jsonl", "--audit is inside the folder of --watch"),
        ("--watch . --sr reports", "--sr is inside the folder of --watch"),
        ("a.png --device tpu", "tpu"),
    ],
)
def test_options_that_cannot_be_honoured_together_are_refused_before_a_model_is_looked_for(
    infer: Infer, arguments: str, words: str
) -> None:
    done = infer(*arguments.split(), "--model", "nothing.onnx")
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert words in line


def test_the_schema_is_printed_without_a_model(infer: Infer) -> None:
    done = infer("--schema")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["title"] == "One line of medtl-infer --json"


def test_a_device_that_is_not_there_is_a_usage_error(
    infer: Infer, tiny_model: Path, png: Path
) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has an NVIDIA driver")
    done = infer("grey.png", "--device", "cuda", "--model", tiny_model)
    assert done.code == 2
    assert "--device cuda: " in done.err


# --- what is imported


def modules_after(*arguments: str | Path) -> set[str]:
    program = (
        "import sys\n"
        "from medtl_runtime.cli import main\n"
        "sys.argv = ['medtl-infer', *sys.argv[1:]]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code, ended.code\n"
        "print()\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy_and_shows_examples_and_exit_codes(infer: Infer) -> None:
    heavy = {"numpy", "onnxruntime", "pydicom", "PIL", "torch", "onnx", "rich.table"}
    assert modules_after("--help") & heavy == set()
    shown = infer("--help")
    assert shown.code == 0
    assert "medtl-infer scan.dcm" in shown.out
    assert "Exit codes: 0 all done" in shown.out


def test_a_whole_inference_never_imports_torch_or_the_training_packages(
    tiny_model: Path, shipped: Path, tmp_path: Path
) -> None:
    imported = modules_after(
        shipped / "MR_small_RLE.dcm", "--model", tiny_model, "--heatmap", tmp_path / "maps"
    )
    assert {"numpy", "onnxruntime", "pydicom", "PIL"} <= imported
    forbidden = {"torch", "torchvision", "onnx", "sklearn", "scipy", "matplotlib", "polars"}
    forbidden |= {"medtl_models", "medtl_train", "medtl_export"}
    assert imported & forbidden == set()
