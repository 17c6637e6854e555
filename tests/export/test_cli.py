import os
import subprocess
import sys
from pathlib import Path

import pytest


def medtl_export(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medtl_export.cli", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_has_examples_and_imports_no_torch(tmp_path: Path) -> None:
    script = """
import sys
sys.argv = ["medtl-export", "--help"]
from medtl_export.cli import main
try:
    main()
finally:
    print("LOADED", [m for m in ("torch", "onnx", "onnxruntime") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "medtl-export runs/liver --quantize" in done.stdout
    assert "LOADED []" in done.stdout


def test_a_run_becomes_a_file_in_models(run: Path, tmp_path: Path) -> None:
    done = medtl_export(run, "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "parity: max |Δlogit|" in done.stdout
    assert (tmp_path / "models" / "liver.onnx").is_file()


def test_quantised_figures_are_side_by_side(run: Path, tmp_path: Path) -> None:
    done = medtl_export(run, "--quantize", "--max-drop", "1", "-o", "m.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for shown in ("fp32", "int8", "validation auroc", "latency, ms", "times as fast", "m.onnx"):
        assert shown in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 2, "no such run"),
        (["."], 2, "holds no best.pt"),
        (["nowhere", "--max-drop", "2"], 2, "max-drop"),
        (["nowhere", "--no-such-option"], 2, "No such option"),
    ],
)
def test_bad_arguments_answer_with_one_line_and_exit_code_2(
    arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    done = medtl_export(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_extra_names_the_install_command(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys; sys.modules['onnxscript'] = None\n")
    done = subprocess.run(
        [sys.executable, "-m", "medtl_export.cli", "runs/x"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert 'pip install "medtl[cpu,export]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_file_gives_defaults_and_an_option_wins(run: Path, tmp_path: Path) -> None:
    (tmp_path / "export.toml").write_text('output = "from-config.onnx"\nquiet = true\n')
    done = medtl_export(run, "--config", "export.toml", "-o", "named.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "named.onnx").is_file()
    assert not (tmp_path / "from-config.onnx").exists()
