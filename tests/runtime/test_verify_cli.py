"""The command medtl-infer verify: what it prints and exits with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medtl_runtime.audit import AuditLog, verify

Infer = Callable[..., Any]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    with AuditLog.open(path) as opened:
        opened.append({"n": 1}, {"n": 2}, {"n": 3})
    return path


def test_a_whole_log_shows_its_head_and_asks_to_note_it(infer: Infer, log: Path) -> None:
    done = infer("verify", log)
    assert (done.code, done.err) == (0, "")
    count, head, guidance = done.out.splitlines()
    assert count == "3 entries, each follows the one before it"
    assert head == f"head {verify(log).head}"
    assert guidance.startswith("Entries cut off at the end cannot be seen from the file alone")
    assert "--head" in guidance


def test_a_noted_head_is_found_after_the_log_has_grown(infer: Infer, log: Path) -> None:
    noted = verify(log).head
    with AuditLog.open(log) as opened:
        opened.append({"n": 4})
    done = infer("verify", log, "--head", noted)
    assert done.code == 0
    assert done.out.splitlines()[-1] == "the head that was given is that of line 3; 1 since"


def test_json_is_one_object(infer: Infer, log: Path) -> None:
    head = verify(log).head
    done = infer("verify", log, "--json")
    assert json.loads(done.out) == {"entries": 3, "head": head, "noted": None}
    done = infer("verify", log, "--json", "--head", head)
    assert json.loads(done.out) == {"entries": 3, "head": head, "noted": 3}


def test_a_broken_log_is_one_line_that_names_the_line(infer: Infer, log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + lines[2])
    for options in ([], ["--json"]):
        done = infer("verify", log, *options)
        assert (done.code, done.out) == (1, "")
        assert done.err == f"error: {log}: line 2 is entry 3: entries were removed or moved\n"


def test_a_log_that_was_cut_off_is_found_with_its_head(infer: Infer, log: Path) -> None:
    head = verify(log).head
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    assert infer("verify", log).code == 0
    done = infer("verify", log, "--head", head)
    assert (done.code, done.out) == (1, "")
    assert f"no line has the expected head {head[:12]}" in done.err


def test_what_is_no_log_or_no_head_is_a_usage_error(infer: Infer, log: Path) -> None:
    for arguments in ([], ["none.jsonl"], [log, "--head", "abc"], [log, "--nothing"]):
        done = infer("verify", *arguments)
        assert (done.code, done.out) == (2, "")


def test_help_says_what_cannot_be_seen(infer: Infer) -> None:
    done = infer("verify", "--help")
    assert done.code == 0
    assert "leaves no trace in the file" in " ".join(done.out.split())
    assert "medtl-infer verify audit.jsonl" in done.out
