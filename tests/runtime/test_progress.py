"""Progress for a log and for a terminal; it names no scan."""

import io
import re
import sys

import pytest

from medtl_runtime import progress
from medtl_runtime.progress import Progress


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show a line for each scan."""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_log_gets_lines_with_count_rate_and_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress(3) as shown:
        for _ in range(3):
            shown.advance()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    for done, line in enumerate(lines, start=1):
        assert re.fullmatch(rf"{done} of 3 scans, \d+\.\d/s, \d+ s left", line)
    assert len(lines) == 3


def test_a_short_run_writes_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2) as shown:
        shown.advance()
        shown.advance()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("impatient")
def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2, quiet=True) as shown:
        shown.advance()
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress(4) as shown:
        shown.advance()
    text = terminal.getvalue()
    assert "1/4" in text
    assert re.search(r"\d+\.\d/s", text)
    assert text.endswith("\x1b[2K")  # the line is cleared


def test_the_bar_is_taken_down_when_something_stops_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyError), Progress(4):
        raise KeyError
    assert terminal.getvalue().endswith("\x1b[2K")
