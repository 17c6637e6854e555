"""Writes outputs so that a name never holds half a file."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medtl_runtime.errors import MedtlError, OutputExists, OutputNotWritten


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise `OutputExists` when ``path`` is there and may not be overwritten."""
    try:
        exists = path.exists()
    except OSError as cause:  # such as a name that is too long
        raise OutputNotWritten(path, cause) from cause
    if exists and not overwrite:
        raise OutputExists(path)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to; rename it to ``path`` when the block succeeds.

    The rename is atomic on one file system (POSIX rename, Windows MoveFileEx), so a reader sees
    the old file or the whole new one. When the block fails, the half-written file is removed.

    Raises
    ------
    OutputNotWritten
        The disk is full, the folder cannot be made or is not writable.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(path)
    except MedtlError:
        raise
    except OSError as cause:
        raise OutputNotWritten(path, cause) from cause
    finally:
        with suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")
