"""What the three commands have in common: configuration, version, failures in one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from medtl_runtime import __version__, commands
from medtl_runtime.errors import ExtraMissing, ModelUnusable, OutputNotWritten, ScanUnreadable

Run = Callable[..., tuple[int, str, str]]


@click.command(epilog=commands.EXIT_CODES, context_settings=commands.SETTINGS)
@click.argument("names", nargs=-1)
@click.option("--max-drop", default=0.005)
@click.option("--json", "as_json", is_flag=True)
@click.option("--fail", default="")
@commands.config_option()
@commands.version_option
def show(names: tuple[str, ...], max_drop: float, as_json: bool, fail: str) -> None:
    """Print the arguments."""
    if fail == "model":
        raise ModelUnusable("m.onnx", "cut\nshort \x1b[31m")
    if fail == "bug":
        raise KeyError("SECRET^NAME")
    if fail == "interrupt":
        raise KeyboardInterrupt
    commands.show(f"{list(names) or None} {max_drop} {as_json}")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["show", *arguments])
        with pytest.raises(SystemExit) as ended:
            commands.run(show, "show")
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out.strip(), err

    return invoke


def test_without_a_configuration_the_defaults_hold(run: Run) -> None:
    assert run() == (0, "None 0.005 False", "")


def test_a_configuration_has_the_names_of_the_options_and_an_option_wins(run: Run) -> None:
    Path("c.toml").write_text('max-drop = 0.1\njson = true\nnames = ["a", "b"]\n')
    assert run("--config", "c.toml")[1] == "['a', 'b'] 0.1 True"
    assert run("--config", "c.toml", "--max-drop", "0.2", "c")[1] == "['c'] 0.2 True"
    assert run("c", "--max-drop", "0.2", "--config", "c.toml")[1] == "['c'] 0.2 True"


def test_a_dash_may_be_an_underscore_as_in_python(run: Run) -> None:
    Path("c.toml").write_text("max_drop = 0.3\n")
    assert run("--config", "c.toml")[1] == "None 0.3 False"


@pytest.mark.parametrize("text", ["no-such = 1\n", "as_json = true\n", "[max-drop]\nvalue = 1\n"])
def test_a_configuration_that_cannot_be_honoured_is_refused(run: Run, text: str) -> None:
    Path("c.toml").write_text(text)
    code, out, err = run("--config", "c.toml")
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_an_unknown_name_in_a_configuration_is_named(run: Run) -> None:
    Path("c.toml").write_text("no-such = 1\n")
    assert run("--config", "c.toml")[2] == "error: --config c.toml: there is no option --no-such\n"


def test_a_value_of_the_wrong_type_is_refused(run: Run) -> None:
    Path("c.toml").write_text('max-drop = "much"\n')
    code, _, err = run("--config", "c.toml")
    assert code == 2
    assert "max-drop" in err


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"max-drop = ", "is not TOML"), (b"\xff\xfe", "is not TOML"), (None, "No such file")],
)
def test_a_configuration_that_cannot_be_read_is_one_line(
    run: Run, data: bytes | None, words: str
) -> None:
    if data is not None:
        Path("c.toml").write_bytes(data)
    code, out, err = run("--config", "c.toml")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: --config c.toml")
    assert words in line


def test_the_version_is_shown(run: Run) -> None:
    assert run("--version") == (0, f"medtl {__version__}", "")


def test_help_is_short_or_long_and_lists_the_exit_codes(run: Run) -> None:
    code, out, _ = run("-h")
    assert (code, run("--help")[1]) == (0, out)
    for number in range(5):
        assert f"{number} " in out.split("Exit codes:")[1]


def test_a_failure_is_one_printable_line_and_its_exit_code(run: Run) -> None:
    code, out, err = run("--fail", "model")
    assert (code, out) == (4, "")
    mark = "\N{REPLACEMENT CHARACTER}"
    assert err == f"error: m.onnx is not a usable medtl model: cut{mark}short {mark}[31m\n"


def test_an_interruption_is_exit_code_130_without_a_traceback(run: Run) -> None:
    code, out, err = run("--fail", "interrupt")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_a_bug_is_told_by_its_kind_and_place_and_not_by_its_text(run: Run) -> None:
    code, out, err = run("--fail", "bug")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("internal error: KeyError in ")
    assert "SECRET" not in line


def test_who_looks_for_a_bug_gets_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTL_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["show", "--fail", "bug"])
    with pytest.raises(KeyError, match="SECRET"):
        commands.run(show, "show")


def test_wrong_usage_is_exit_code_2(run: Run) -> None:
    assert run("--no-such")[0] == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("läsion 病変.dcm", "läsion 病変.dcm"),
        ("a\tb\nc", "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"),
        ("\udcff", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_only_what_does_not_print_is_replaced(text: str, expected: str) -> None:
    assert commands.printable(text) == expected


def test_failures_go_to_stderr_and_results_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    commands.show("result")
    commands.show_error(ScanUnreadable("scan.dcm", "cut short"))
    assert capsys.readouterr() == ("result\n", "error: scan.dcm: cut short\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_stdout_is_a_failure_with_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", _Unbuffered(full))
        with pytest.raises(OutputNotWritten, match="standard output was not written: No space"):
            commands.show("result")


class _Unbuffered:
    """A text stream that keeps nothing back, so that closing it cannot fail."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def write(self, text: str) -> int:
        return self._raw.write(text.encode())

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def test_a_missing_package_names_the_extra_that_brings_it() -> None:
    commands.require_packages(["json", "numpy"], extra="train", purpose="training")
    with pytest.raises(ExtraMissing, match=r'needs the package nosuchpackage.*"medtl\[train\]"'):
        commands.require_packages(["json", "nosuchpackage"], extra="train", purpose="training")
