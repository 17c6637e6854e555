"""A fixed sample of damaged scans; `benchmarks/fuzz.py` makes more of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "benchmarks/fuzz.py"


def test_each_of_300_damaged_files_gives_frames_or_a_coded_error_in_little_time_and_memory(
    tmp_path: Path,
) -> None:
    """Children read, so that a crash is counted; a finding is a crash, a hang or another error."""
    if not FUZZ.is_file():
        pytest.skip("the benchmarks are not here")
    if not Path("/proc/self/clear_refs").is_file():
        pytest.skip("this system does not tell the peak memory of a process")
    counts = tmp_path / "counts.json"
    finished = subprocess.run(
        [sys.executable, FUZZ, "--count=300", "--seed=20", "--jobs=2", f"--json={counts}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert counts.is_file(), finished.stderr
    found = json.loads(counts.read_text())
    assert found["findings"] == []
    assert found["mutations"] == sum(found["outcomes"].values()) == 300
    codes = {"scan-unreadable", "scan-too-large", "scan-without-pixels"}
    others = {"decoder-missing", "scan-unfit", "scan-not-found"}
    assert {"frames", *codes} <= set(found["outcomes"]) <= {"frames", *codes, *others}
    assert {".png", ".jpg", ".npy", ".zip", "DICOMDIR"} <= set(found["by_syntax"])
    assert len(found["by_mutation"]) == 14
    assert finished.returncode == 0
