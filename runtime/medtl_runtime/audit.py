"""The audit log: what a device did with which image, without saying whose image it was.

An append-only file of JSON lines. Each line holds, beside its facts:

- ``sequence``: the line's number, from 1;
- ``time``: UTC, ISO 8601;
- ``previous``: the SHA-256 of the line before it, with its line feed, so that
  ``tail -n 1 audit.jsonl | sha256sum`` gives what the next line will hold; 64 zeros in the first.

So no line can be changed, removed or moved without breaking the chain at that place, with one
exception: nothing follows the last line, and a file that was cut off after a whole line, or whose
last line was changed, is a good chain. The hash of the last line, the *head*, tells these apart,
if it was noted elsewhere, and so does it for a file that was written anew from the first line: the
chain has no secret. `verify` takes a head that was noted, and asks for it.

What the lines say is made in `audit_entries`.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from medtl_runtime.errors import AuditLogBroken, MedtlError, OutputNotWritten, UsageError

NO_HEAD = "0" * 64
"""What stands for the hash of the line before the first, and the head of an empty log."""

MOST_LINE_BYTES = 1 << 16
"""Entries are far shorter; what is longer was not written by medtl, and is not read into memory."""

_KEY_BYTES = 32
_CHAIN_FIELDS = ("sequence", "time", "previous")


class AuditLog:
    """An open audit log; several processes may write to one file.

    Use one object from one thread: the lock is between open files.
    """

    def __init__(self, path: Path, descriptor: int, key: bytes, size: int) -> None:
        self.path = path
        self.key = key
        """For `audit_entries.instance_hash`; 32 bytes."""
        self._descriptor = descriptor
        self._size = size

    @classmethod
    @contextmanager
    def open(cls, path: Path, key_file: Path | None = None) -> Iterator[Self]:
        """Open a log to go on with its chain; a new log is made, readable by its owner only.

        Only the last line is read; `verify` checks them all.

        Parameters
        ----------
        key_file
            Holds the key of the hashes, 64 hexadecimal digits. By default ``path`` with ``.key``
            behind it, which is made together with a new log.

        Raises
        ------
        AuditLogBroken
            The last line is cut short, or is no entry of an audit log.
        UsageError
            The key file cannot be used, or an older log's is missing; not a regular file.
        OutputNotWritten
            The log cannot be opened or made.
        """
        descriptor = _open(path)
        try:
            with _reported(path), _locked(descriptor):
                size = os.fstat(descriptor).st_size
                _end_of(path, descriptor, size)
                key = _key(path, key_file, is_new=not size)
            yield cls(path, descriptor, key, size)
        finally:
            os.close(descriptor)

    def append(self, *entries: Mapping[str, Any]) -> str:
        """Write entries behind each other and return the new head; they are on the disk then.

        Parameters
        ----------
        entries
            JSON values; `audit_entries` makes them.

        Raises
        ------
        AuditLogBroken
            The file was removed, cut or damaged since it was opened.
        OutputNotWritten
            The disk is full; nothing of these entries is left in the file.
        """
        with _reported(self.path), _locked(self._descriptor):
            found = os.fstat(self._descriptor)
            if not found.st_nlink:
                raise AuditLogBroken(f"{self.path}: the audit log was removed while it was written")
            if found.st_size < self._size:
                raise AuditLogBroken(f"{self.path}: the audit log was cut while it was written")
            count, head = _end_of(self.path, self._descriptor, found.st_size)
            lines = []
            for number, entry in enumerate(entries, count + 1):
                lines.append(_line(number, entry, head))
                head = _hash(lines[-1])
            self._size = _write(self._descriptor, b"".join(lines), found.st_size)
        return head


def _open(path: Path) -> int:
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return _open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)


def _open_regular(path: Path, flags: int) -> int:
    # O_NONBLOCK: a pipe would wait for its other end here.
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is not a regular file")
    return descriptor


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn the file system's errors into `OutputNotWritten`."""
    try:
        yield
    except MedtlError:
        raise
    except OSError as cause:
        raise OutputNotWritten(path, cause) from cause


@contextmanager
def _locked(descriptor: int, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    # Not lockf: a POSIX lock is lost when the process closes any other descriptor of the file.
    fcntl.flock(descriptor, kind)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _end_of(path: Path, descriptor: int, size: int) -> tuple[int, str]:
    """Return the number of the last line and its hash."""
    if not size:
        return 0, NO_HEAD
    start = max(0, size - MOST_LINE_BYTES)
    *_, before, rest = (b"\n" + os.pread(descriptor, size - start, start)).rsplit(b"\n", 2)
    if rest:
        raise AuditLogBroken(
            f"{path}: the last line is cut short, as by a crash while it was written; to go on, "
            "start another log, or take the half line off this one"
        )
    line = before + b"\n"
    entry = _parsed(line)
    if entry is None:
        raise AuditLogBroken(
            f"{path}: the last line is no entry of an audit log; keep the file, start another log"
        )
    return entry["sequence"], _hash(line)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line's entry, or None if it is not one."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or type(entry.get("sequence")) is not int:
        return None
    return entry if isinstance(entry.get("previous"), str) and "time" in entry else None


def _line(number: int, entry: Mapping[str, Any], previous: str) -> bytes:
    assert not entry.keys() & set(_CHAIN_FIELDS), "the chain's own fields"
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    chained = {"sequence": number, "time": now, **entry, "previous": previous}
    line = json.dumps(chained, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    assert len(line) <= MOST_LINE_BYTES, "an entry is short"
    return line


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _write(descriptor: int, lines: bytes, size: int) -> int:
    """Append whole lines, or nothing: half a line would end the chain. Return the new size."""
    try:
        written = 0
        while written < len(lines):
            written += os.write(descriptor, lines[written:])
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise
    return size + written


# --- the key


def _key(log: Path, named: Path | None, *, is_new: bool) -> bytes:
    path = named or log.with_name(log.name + ".key")
    try:
        return _read_key(path)
    except FileNotFoundError as cause:
        if named is None and is_new:  # the log is locked, so no other process makes another key
            return _new_key(path)
        found = "no such file" if named else "the key of an older log is missing"
        raise UsageError(f"audit key {path}: {found}") from cause
    except OSError as cause:
        raise UsageError(f"audit key {path}: {cause.strerror}") from cause


def _read_key(path: Path) -> bytes:
    with os.fdopen(_open_regular(path, os.O_RDONLY), "rb") as file:
        text = file.read(200)
    if not re.fullmatch(rb"[0-9a-fA-F]{64}\s*", text):
        raise UsageError(f"audit key {path}: expected {2 * _KEY_BYTES} hexadecimal digits")
    return bytes.fromhex(text.decode("ascii"))


def _new_key(path: Path) -> bytes:
    from medtl_runtime.files import written_whole

    key = secrets.token_bytes(_KEY_BYTES)
    with written_whole(path) as part:
        part.touch(mode=0o600, exist_ok=False)
        part.write_text(key.hex() + "\n", encoding="ascii")
    return key


# --- verification


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A log whose chain holds."""

    entries: int
    head: str
    """SHA-256 of the last line, 64 hexadecimal digits; zeros for an empty log."""
    noted: int | None
    """The line that had the expected head, 0 for the beginning; None if none was given."""


def verify(path: Path, expected_head: str | None = None) -> Verified:
    """Check every line of a log against the one before it, in constant memory.

    That nothing was cut off at the end, and the last line not changed, cannot be seen from the
    file: give the head that was noted when the log was last verified. The log may have grown since.

    Parameters
    ----------
    expected_head
        64 hexadecimal digits, the hash of any line of the log.

    Raises
    ------
    AuditLogBroken
        Names the line and what is wrong with it; or the expected head is of no line.
    UsageError
        The file cannot be read, or the head is none.
    """
    wanted = _checked_head(expected_head)
    head, count, noted = NO_HEAD, 0, 0 if wanted == NO_HEAD else None
    for number, line in enumerate(_lines(path), 1):
        if found := _fault(number, line, head):
            raise AuditLogBroken(f"{path}: {found}")
        head, count = _hash(line), number
        if head == wanted:
            noted = number
    if wanted is not None and noted is None:
        raise AuditLogBroken(
            f"{path}: no line has the expected head {wanted[:12]}…; lines at the end were changed "
            f"or cut off, or the log was written anew ({count} lines, head {head[:12]}…)"
        )
    return Verified(entries=count, head=head, noted=noted)


def _checked_head(head: str | None) -> str | None:
    if head is None:
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", head):
        raise UsageError(f"head {head}: expected 64 hexadecimal digits")
    return head.lower()


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines that were there at the start; others may be written meanwhile."""
    try:
        with os.fdopen(_open_regular(path, os.O_RDONLY), "rb") as file:
            with _locked(file.fileno(), fcntl.LOCK_SH):  # no half-written line at the end
                left = os.fstat(file.fileno()).st_size
            while left > 0 and (line := file.readline(min(left, MOST_LINE_BYTES + 1))):
                left -= len(line)
                yield line
    except OSError as cause:
        raise UsageError(f"{path}: {cause.strerror}") from cause


def _fault(number: int, line: bytes, head: str) -> str | None:
    """Return what is wrong with a line that should follow one with this hash."""
    if len(line) > MOST_LINE_BYTES:
        return f"line {number} is longer than any entry"
    if not line.endswith(b"\n"):
        return f"line {number} is cut short"
    if (entry := _parsed(line)) is None:
        return f"line {number} is no entry of an audit log"
    if (sequence := entry["sequence"]) != number:
        kind = "removed or moved" if sequence > number else "repeated or moved"
        return f"line {number} is entry {sequence}: entries were {kind}"
    if entry["previous"] == head:
        return None
    changed = f"line {number - 1} or line {number} was" if number > 1 else "it was"
    return f"the chain breaks at line {number}: {changed} changed"
