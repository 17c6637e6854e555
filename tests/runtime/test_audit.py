"""The audit log grows by whole entries, and shows where its chain was broken."""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from medtl_runtime.audit import NO_HEAD, AuditLog, verify
from medtl_runtime.errors import AuditLogBroken, OutputNotWritten, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def five(path: Path) -> Path:
    """Return a log of five entries."""
    with AuditLog.open(path) as log:
        for number in range(5):
            log.append({"event": "scan", "n": number})
    return path


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


# --- writing


def test_a_line_is_compact_json_that_holds_the_hash_of_the_line_before(five: Path) -> None:
    lines = five.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    previous = "0" * 64
    for number, line in enumerate(lines, 1):
        entry = json.loads(line)
        assert list(entry) == ["sequence", "time", "event", "n", "previous"]
        assert entry["sequence"] == number
        assert entry["previous"] == previous
        assert line == json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        previous = sha256(line)


def test_the_time_is_now_in_utc(five: Path) -> None:
    for entry in entries(five):
        moment = datetime.fromisoformat(entry["time"])
        assert moment.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)


def test_append_returns_the_head_as_the_shell_computes_it(path: Path) -> None:
    with AuditLog.open(path) as log:
        heads = [log.append({"n": 1}), log.append({"n": 2}, {"n": 3})]
    first, _, third = path.read_bytes().splitlines(keepends=True)
    assert heads == [sha256(first), sha256(third)]
    if shutil.which("sha256sum"):
        command = ["sh", "-c", f"tail -n 1 '{path}' | sha256sum"]
        shell = subprocess.run(command, capture_output=True, text=True, check=True)
        assert shell.stdout.split()[0] == heads[1]


def test_several_entries_at_once_are_a_chain_too(path: Path) -> None:
    with AuditLog.open(path) as log:
        log.append(*({"n": number} for number in range(100)))
        log.append()
    assert [entry["n"] for entry in entries(path)] == list(range(100))
    assert verify(path).entries == 100


def test_an_older_log_goes_on(five: Path) -> None:
    before = five.read_bytes()
    with AuditLog.open(five) as log:
        log.append({"event": "later"})
    assert five.read_bytes().startswith(before)
    assert entries(five)[-1]["sequence"] == 6
    assert verify(five).entries == 6


def test_any_text_is_one_line(path: Path) -> None:
    finding = "a\nb\u2028c\x00 \udce5 läsion"
    with AuditLog.open(path) as log:
        log.append({"finding": finding})
    assert path.read_bytes().count(b"\n") == 1
    assert entries(path)[0]["finding"] == finding
    assert verify(path).entries == 1


def test_the_log_and_its_key_are_for_their_owner_only(path: Path) -> None:
    former = os.umask(0)
    try:
        with AuditLog.open(path):
            pass
    finally:
        os.umask(former)
    for name in ("audit.jsonl", "audit.jsonl.key"):
        assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600


def test_entries_are_in_the_file_when_append_returns(path: Path) -> None:
    """In a process that is killed at once, without any clean end."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from medtl_runtime.audit import AuditLog\n"
        "with AuditLog.open(Path(sys.argv[1])) as log:\n"
        "    log.append({'n': 1})\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert finished.returncode == -9
    assert [entry["n"] for entry in entries(path)] == [1]


def test_two_processes_write_one_chain(path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from medtl_runtime.audit import AuditLog\n"
        "sys.stdin.readline()\n"
        "with AuditLog.open(Path(sys.argv[1])) as log:\n"
        "    for number in range(50):\n"
        "        log.append({'writer': sys.argv[2], 'n': number})\n"
        "print(log.key.hex())\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, path, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for writer in writers:  # both begin when both are there, and make the log and the key
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    keys = [writer.communicate()[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert keys[0] == keys[1]
    assert verify(path).entries == 100
    for name in ("one", "two"):
        assert [e["n"] for e in entries(path) if e["writer"] == name] == list(range(50))


def test_a_full_disk_leaves_whole_entries_and_the_log_can_go_on(path: Path) -> None:
    """The kernel refuses to let a file grow, as it does on a full disk, in the middle of a line."""
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from medtl_runtime.audit import AuditLog\n"
        "from medtl_runtime.errors import OutputNotWritten\n"
        "with AuditLog.open(Path(sys.argv[1])) as log:\n"
        "    log.append({'n': 1})\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))\n"
        "    try:\n"
        "        log.append({'n': 2}, {'n': 3, 'long': 'x' * 400})\n"
        "    except OutputNotWritten as error:\n"
        "        print(error)\n"
        "    log.append({'n': 4})\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert finished.stdout == f"{path} was not written: File too large\n"
    assert [entry["n"] for entry in entries(path)] == [1, 4]
    assert verify(path).entries == 2


@pytest.mark.parametrize("reserved", ["sequence", "time", "previous"])
def test_an_entry_cannot_forge_the_chain_s_own_fields(path: Path, reserved: str) -> None:
    with AuditLog.open(path) as log:
        with pytest.raises(AssertionError):
            log.append({reserved: 7})
        log.append({"n": 1})
    assert verify(path).entries == 1


def test_nan_is_no_json_and_leaves_nothing(path: Path) -> None:
    with AuditLog.open(path) as log, pytest.raises(ValueError, match="JSON compliant"):
        log.append({"p": float("nan")})
    assert path.read_bytes() == b""


# --- opening what is no good log


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (b'{"sequence":6,"ti', r"cut short, as by a crash .* start another log, or take"),
        (b"\0" * 100, "cut short"),
        (b"\n", "no entry"),
        (b"not json\n", "no entry"),
        (b"[1]\n", "no entry"),
        (b'{"sequence":"6","time":"","previous":""}\n', "no entry"),
        (b'{"sequence":true,"time":"","previous":""}\n', "no entry"),
        (b'{"sequence":6,"time":""}\n', "no entry"),
        (b"[" * 60_000 + b"\n", "no entry"),
        (b'{"sequence":6,' + b" " * 70_000 + b'"time":"","previous":""}\n', "no entry"),
    ],
)
def test_a_damaged_end_is_refused_and_left_as_it_is(five: Path, end: bytes, expected: str) -> None:
    with five.open("ab") as file:
        file.write(end)
    before = five.read_bytes()
    with pytest.raises(AuditLogBroken, match=rf"audit\.jsonl: the last line is .*{expected}"):
        AuditLog.open(five).__enter__()
    assert five.read_bytes() == before


def test_the_torn_line_can_be_taken_off(five: Path) -> None:
    whole = five.read_bytes()
    five.write_bytes(whole + b'{"sequence":6,')
    five.write_bytes(five.read_bytes()[: len(whole)])
    with AuditLog.open(five) as log:
        log.append({"n": 5})
    assert verify(five).entries == 6


def test_a_log_that_is_cut_while_it_is_open_is_noticed(five: Path) -> None:
    with AuditLog.open(five) as log:
        lines = five.read_bytes().splitlines(keepends=True)
        os.truncate(five, len(b"".join(lines[:4])))
        with pytest.raises(AuditLogBroken, match="was cut while"):
            log.append({"n": 5})


def test_a_log_that_is_removed_while_it_is_open_is_noticed(five: Path) -> None:
    with AuditLog.open(five) as log:
        five.unlink()
        with pytest.raises(AuditLogBroken, match="was removed while"):
            log.append({"n": 5})


def test_a_log_is_made_with_its_folders(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path / "new" / "folder" / "audit.jsonl") as log:
        log.append({"n": 1})
    assert verify(tmp_path / "new" / "folder" / "audit.jsonl").entries == 1


def test_what_cannot_be_a_log_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="pipe is not a regular file"):
        AuditLog.open(tmp_path / "pipe").__enter__()
    with pytest.raises(OutputNotWritten, match="Is a directory"):
        AuditLog.open(tmp_path).__enter__()
    with pytest.raises(OutputNotWritten, match=r"file/audit.jsonl was not written"):
        AuditLog.open(tmp_path / "file" / "audit.jsonl").__enter__()


# --- the key


def test_the_key_is_made_once_and_read_again(path: Path) -> None:
    with AuditLog.open(path) as log:
        key = log.key
        log.append({"n": 1})
    written = (path.parent / "audit.jsonl.key").read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", written)
    assert key == bytes.fromhex(written)
    with AuditLog.open(path) as log:
        assert log.key == key
    assert sorted(found.name for found in path.parent.iterdir()) == [
        "audit.jsonl",
        "audit.jsonl.key",
    ]


def test_each_new_log_has_a_key_of_its_own(tmp_path: Path) -> None:
    keys = set()
    for name in "abc":
        with AuditLog.open(tmp_path / name) as log:
            keys.add(log.key)
    assert len(keys) == 3


def test_a_named_key_is_used_and_none_is_made(path: Path, tmp_path: Path) -> None:
    (tmp_path / "hospital.key").write_text("AB" * 32 + "\n")
    with AuditLog.open(path, tmp_path / "hospital.key") as log:
        assert log.key == b"\xab" * 32
    assert not (tmp_path / "audit.jsonl.key").exists()


def test_an_older_log_does_not_get_another_key(five: Path) -> None:
    (five.parent / "audit.jsonl.key").unlink()
    with pytest.raises(UsageError, match=r"audit\.jsonl\.key: the key of an older log is missing"):
        AuditLog.open(five).__enter__()
    assert not (five.parent / "audit.jsonl.key").exists()


@pytest.mark.parametrize("content", ["", "ab" * 31, "ab" * 33, "zz" * 32, "ä" * 64, "ab" * 999])
def test_a_bad_key_file_is_a_usage_error(path: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.key").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"bad\.key: expected 64 hexadecimal digits") as error:
        AuditLog.open(path, tmp_path / "bad.key").__enter__()
    assert len(content) < 10 or content not in str(error.value)


def test_a_key_file_that_cannot_be_read_is_a_usage_error(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.key: no such file"):
        AuditLog.open(path, tmp_path / "none.key").__enter__()
    with pytest.raises(UsageError, match="not a regular file"):
        AuditLog.open(path, tmp_path).__enter__()


# --- verification

Change = Callable[[list[bytes]], object]


def replaced(index: int, old: bytes, new: bytes) -> Change:
    def change(lines: list[bytes]) -> None:
        assert old in lines[index]
        lines[index] = lines[index].replace(old, new)

    return change


def swapped(lines: list[bytes]) -> None:
    lines[1], lines[2] = lines[2], lines[1]


def forged(lines: list[bytes]) -> None:
    """Change an entry, and put the right hash into the next one."""
    former = sha256(lines[1])
    lines[1] = lines[1].replace(b'"n":1', b'"n":9')
    lines[2] = lines[2].replace(former.encode(), sha256(lines[1]).encode())


BROKEN: dict[str, tuple[Change, str]] = {
    "an entry changed": (
        replaced(1, b'"n":1', b'"n":9'),
        "the chain breaks at line 3: line 2 or line 3 was changed",
    ),
    "a time changed": (
        replaced(0, b"T", b"t"),
        "the chain breaks at line 2: line 1 or line 2 was changed",
    ),
    "a hash changed": (
        replaced(3, b'"previous":"', b'"previous":"0'),
        "the chain breaks at line 4: line 3 or line 4 was changed",
    ),
    "an entry and its hash changed": (
        forged,
        "the chain breaks at line 4: line 3 or line 4 was changed",
    ),
    "the first hash changed": (
        replaced(0, b'"previous":"0', b'"previous":"1'),
        "the chain breaks at line 1: it was changed",
    ),
    "the first removed": (
        lambda lines: lines.pop(0),
        "line 1 is entry 2: entries were removed or moved",
    ),
    "one removed": (
        lambda lines: lines.pop(2),
        "line 3 is entry 4: entries were removed or moved",
    ),
    "two swapped": (swapped, "line 2 is entry 3: entries were removed or moved"),
    "one repeated": (
        lambda lines: lines.insert(2, lines[1]),
        "line 3 is entry 2: entries were repeated or moved",
    ),
    "an empty line": (
        lambda lines: lines.insert(2, b"\n"),
        "line 3 is no entry of an audit log",
    ),
    "no JSON": (replaced(2, b"{", b""), "line 3 is no entry of an audit log"),
    "no text": (
        lambda lines: lines.insert(1, b"\xff\xfe\n"),
        "line 2 is no entry of an audit log",
    ),
    "too long": (
        lambda lines: lines.insert(1, b"x" * 70_000 + b"\n"),
        "line 2 is longer than any entry",
    ),
    "torn": (lambda lines: lines.append(lines.pop()[:-20]), "line 5 is cut short"),
    "a space": (
        replaced(2, b",", b", "),
        "the chain breaks at line 4: line 3 or line 4 was changed",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_chain_names_the_line_and_what_is_wrong(five: Path, kind: str) -> None:
    change, expected = BROKEN[kind]
    lines = five.read_bytes().splitlines(keepends=True)
    assert verify(five).entries == 5
    change(lines)
    five.write_bytes(b"".join(lines))
    with pytest.raises(AuditLogBroken) as error:
        verify(five)
    assert str(error.value) == f"{five}: {expected}"


def test_every_flipped_bit_before_the_last_line_is_found(five: Path) -> None:
    whole = five.read_bytes()
    last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for position in range(last):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        five.write_bytes(damaged)
        with pytest.raises(AuditLogBroken):
            verify(five)


def test_the_head_is_the_hash_of_the_last_line(five: Path) -> None:
    verified = verify(five)
    assert verified.entries == 5
    assert verified.head == sha256(five.read_bytes().splitlines(keepends=True)[-1])
    assert verified.noted is None


def test_only_a_noted_head_shows_what_was_cut_off_at_the_end(five: Path) -> None:
    head = verify(five).head
    lines = five.read_bytes().splitlines(keepends=True)
    five.write_bytes(b"".join(lines[:3]))
    assert verify(five).entries == 3  # a good chain
    with pytest.raises(AuditLogBroken, match=rf"no line has the expected head {head[:12]}.*3 lin"):
        verify(five, head)


def test_only_a_noted_head_shows_that_the_last_line_was_changed(five: Path) -> None:
    head = verify(five).head
    five.write_bytes(five.read_bytes().replace(b'"n":4', b'"n":5'))
    assert verify(five).entries == 5
    with pytest.raises(AuditLogBroken, match="lines at the end were changed"):
        verify(five, head)


def test_only_a_noted_head_shows_that_the_log_was_written_anew(five: Path) -> None:
    head = verify(five).head
    five.unlink()
    with AuditLog.open(five) as log:
        log.append(*({"event": "scan", "n": 9} for _ in range(5)))
    assert verify(five).entries == 5
    with pytest.raises(AuditLogBroken, match="written anew"):
        verify(five, head)


def test_a_log_that_has_grown_since_its_head_was_noted_is_whole(five: Path) -> None:
    head = verify(five).head
    with AuditLog.open(five) as log:
        log.append({"n": 5}, {"n": 6})
    verified = verify(five, head.upper())
    assert (verified.entries, verified.noted) == (7, 5)
    assert verify(five, verified.head).noted == 7


def test_an_empty_log_is_whole_and_its_head_is_in_every_log(five: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    verified = verify(empty)
    assert (verified.entries, verified.head) == (0, NO_HEAD)
    assert verify(empty, NO_HEAD).noted == 0
    assert verify(five, NO_HEAD).noted == 0
    with pytest.raises(AuditLogBroken):
        verify(empty, verify(five).head)


@pytest.mark.parametrize("head", ["", "abc", "g" * 64, "a" * 65, "a" * 64 + "\n"])
def test_what_is_no_head_is_a_usage_error(five: Path, head: str) -> None:
    with pytest.raises(UsageError, match="expected 64 hexadecimal digits"):
        verify(five, head)


def test_what_cannot_be_verified_is_a_usage_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="No such file"):
        verify(tmp_path / "none.jsonl")
    for name in (".", "pipe"):
        with pytest.raises(UsageError, match="not a regular file"):
            verify(tmp_path / name)


def test_a_log_is_verified_while_it_is_written(five: Path) -> None:
    with AuditLog.open(five) as log:
        for number in range(5, 10):
            log.append({"n": number})
            assert verify(five).entries == number + 1
