"""The main job as a user does it, through the three commands, on small phantom studies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtl_runtime import Predictor, read_scan
from medtl_runtime.recipe import as_batch
from medtl_train.checkpoint import load_run
from medtl_train.data.listing import read_again
from medtl_train.phantoms import write_studies

BIN = Path(sys.executable).parent


def command(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = line.split()
    own_cache = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache")}
    return subprocess.run(
        [BIN / program, *arguments],
        cwd=cwd,
        env=own_cache,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which source and target were trained and the target exported."""
    root = tmp_path_factory.mktemp("journey")
    write_studies(root / "data" / "lung", organ="lung", patients=24, images=2, size=64, seed=1)
    write_studies(root / "data" / "liver", organ="liver", patients=24, images=2, size=64, seed=2)
    write_studies(root / "unseen", organ="liver", patients=4, images=1, size=64, seed=3)
    common = "--size 64 --epochs 2 --batch-size 16 --quiet"
    for line in (
        f"medtl-train data/lung --window lung --weights none {common}",
        f"medtl-train data/liver --from runs/lung --window liver {common}",
        "medtl-export runs/liver --quantize --target arm --max-drop none --quiet",
    ):
        done = command(line, root)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return root


def test_unseen_scans_get_a_finding(journey: Path) -> None:
    done = command("medtl-infer unseen --json", journey)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 4
    for row in rows:
        assert row["status"] == "ok"
        assert row["finding"] in ("healthy", "lesion")
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["model"]["precision"] == "int8"
        assert row["model"]["digest"].startswith("sha256:")


def test_a_bad_file_does_not_stop_the_rest(journey: Path) -> None:
    whole = next((journey / "unseen").rglob("*.dcm")).read_bytes()
    (journey / "broken.dcm").write_bytes(whole[: len(whole) // 2])
    done = command("medtl-infer broken.dcm unseen nowhere.dcm --json", journey)
    assert done.returncode == 3
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["status"] for row in rows] == ["error", *["ok"] * 4, "error"]
    assert [rows[0]["reason"], rows[-1]["reason"]] == ["scan-unreadable", "scan-not-found"]
    assert "2 of 6 could not be read or were refused" in done.stderr
    assert "broken" not in done.stderr  # it ends up in logs


def test_the_heatmaps_are_pictures_of_the_images(journey: Path) -> None:
    done = command("medtl-infer unseen --heatmap heatmaps", journey)
    assert done.returncode == 0, done.stderr
    pictures = sorted((journey / "heatmaps").glob("*.png"))
    assert len(pictures) == 4
    with Image.open(pictures[0]) as picture:
        assert picture.mode == "RGB"
        assert picture.text["medtl:class"] in ("healthy", "lesion")  # pyright: ignore
        assert np.asarray(picture).std() > 5


def test_the_self_test_passes(journey: Path) -> None:
    done = command("medtl-infer --selftest", journey)
    assert done.returncode == 0, done.stderr
    assert "self-test passed" in done.stdout


def test_the_tensors_of_training_are_those_of_inference_to_the_byte(journey: Path) -> None:
    recipe = load_run(journey / "runs" / "liver").about.recipe
    images, missing = read_again(journey / "runs" / "liver" / "splits.csv", "train", recipe)
    assert images
    assert not missing
    predictor = Predictor(journey / "models" / "liver.onnx", device="cpu")
    assert predictor.description.recipe == recipe
    for image in images:
        served = predictor(image.sample.source).canonical.pixels
        assert as_batch([served]).tobytes() == as_batch([image.pixels]).tobytes()
        again = recipe.apply(next(read_scan(image.sample.source).frames())).pixels
        assert again.tobytes() == image.pixels.tobytes()


def test_the_report_of_the_target_names_its_source(journey: Path) -> None:
    page = (journey / "runs" / "liver" / "report.html").read_text(encoding="utf-8")
    assert "runs/lung" in page
    summary = json.loads((journey / "runs" / "liver" / "metrics.json").read_text())
    assert summary["transfer"]["source"] == "runs/lung"
    assert summary["transfer"]["skipped"] == []  # the same classes: the head comes along
