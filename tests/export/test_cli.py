import os
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from medtl_export.intended_use import TABLE, edits
from medtl_runtime.intended_use import Rule

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def medtl_export(run_module: Run) -> Run:
    """Return what runs the command with arguments, in a folder."""
    return partial(run_module, "medtl_export.cli")


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


def test_the_help_shows_a_table_of_the_intended_use_that_is_right(
    tmp_path: Path, medtl_export: Run
) -> None:
    done = medtl_export("--help", cwd=tmp_path)
    shown = done.stdout.partition("[intended_use]")[2].partition("Examples:")[0]
    table = tomllib.loads("[intended_use]" + textwrap.dedent(shown))[TABLE]
    assert edits(table) == {
        "Rows": None,
        "PatientAge": Rule(attribute="PatientAge", low=18, mismatch="warn", missing="allow"),
    }
    default = Rule(attribute="PatientAge")
    assert (default.mismatch, default.missing) == ("reject", "warn")


def test_a_run_becomes_a_file_in_models(run: Path, tmp_path: Path, medtl_export: Run) -> None:
    done = medtl_export(run, "--quiet", "--error-rate", "0.2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "parity: max |Δlogit|" in done.stdout
    assert "at most about 20.0% are called only something else" in done.stdout
    assert "rates hold nearly" in done.stdout
    assert (tmp_path / "models" / "liver.onnx").is_file()


def test_quantised_figures_are_side_by_side(run: Path, tmp_path: Path, medtl_export: Run) -> None:
    line = ("--quantize", "--target", "arm", "--max-drop", "none", "-o", "m.onnx")
    done = medtl_export(run, *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for shown in ("float", "int8", "auroc", "speed not measured: this is no ARM", "m.card.md"):
        assert shown in done.stdout
    assert "int8 all operators" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 2, "no such run"),
        (["."], 2, "holds no best.pt"),
        (["nowhere", "--quantize", "--max-drop", "2"], 2, "--max-drop is 2.0; expected 0 to 1"),
        (["nowhere", "--quantize", "--max-drop", "few"], 2, "--max-drop is few; expected 0 to 1"),
        (["nowhere", "--max-drop", "0.1"], 2, "--max-drop has no effect without --quantize"),
        (["nowhere", "--qat", "--threads", "2"], 2, "--qat, --threads have no effect without"),
        (["nowhere", "--target", "tpu"], 2, "tpu"),
        (["nowhere", "--quantize", "--metric", "f1"], 2, "f1"),
        (["nowhere", "--distil", "resnet18"], 2, "--distil needs --quantize"),
        (["nowhere", "--quantize", "--distil", "resnet19"], 2, "resnet19"),
        (["nowhere", "--no-such-option"], 2, "No such option"),
        (["nowhere", "--aggregation", "median"], 2, "aggregation is median; expected max"),
        (["nowhere", "--error-rate", "1"], 2, "--error-rate is 1.0; expected between 0 and 1"),
        (["nowhere", "--false-refusal-rate", "-1"], 2, "--false-refusal-rate is -1.0"),
        (["nowhere", "--sign", "no.pem"], 2, "no.pem"),
    ],
)
def test_bad_arguments_answer_with_one_line_and_exit_code_2(
    arguments: list[str], code: int, words: str, tmp_path: Path, medtl_export: Run
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


CONFIG = """
output = "from-config.onnx"
quiet = true

[intended_use]
Rows = false

[intended_use.PatientAge]
low = 18
"""


def test_a_config_file_gives_defaults_and_rules_and_an_option_wins(
    run: Path, tmp_path: Path, medtl_export: Run
) -> None:
    (tmp_path / "export.toml").write_text(CONFIG)
    done = medtl_export(run, "--config", "export.toml", "-o", "named.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "named.onnx").is_file()
    assert not (tmp_path / "from-config.onnx").exists()
    rules = done.stdout.partition("intended use: ")[2].splitlines()[0].split(", ")
    assert {"Modality", "PatientAge", "Columns"} <= set(rules)
    assert "Rows" not in rules


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[intended_use.PatientName]", "intended_use.PatientName: unknown attribute"),
        ("[intended_use.Modality]\nvalue = 1", "Modality: unknown field value"),
        ("intended_use = 3", "intended_use is 3; expected a table"),
        ("[intended-use.Modality]", "there is no option --intended-use"),
        ("[other]", "there is no option --other"),
    ],
)
def test_a_mistake_in_the_config_file_is_named(
    text: str, words: str, tmp_path: Path, medtl_export: Run
) -> None:
    (tmp_path / "export.toml").write_text(text)
    done = medtl_export("nowhere", "--config", "export.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
