"""Files as they arrive in a folder, each once it is whole.

By polling, not by the kernel's notifications: those report nothing that another machine writes to
a network share, which is how most scanners and gateways deliver, and they overflow under load.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from medtl_runtime.errors import UsageError

_UNFINISHED = (".part", ".tmp")

_Stamp = tuple[int, int, int]
"""Size in bytes, time of the last change in ns, inode: another stamp is another content."""


@dataclass(frozen=True, kw_only=True)
class _Sighting:
    """A file that is there."""

    stamp: _Stamp
    since: float
    """When it was first seen with this stamp, on the caller's clock."""
    given: bool = False
    """Whether it was yielded."""


def arrivals(
    folder: Path,
    *,
    stop: Callable[[], bool],
    settle: float = 1.0,
    poll: float = 0.25,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Path]:
    """Yield each file below a folder once it is whole, until told to stop.

    A file is taken as whole when its size, above 0, and its time of change have not changed for
    ``settle`` seconds. A sender that pauses for longer in the middle of a file can have half of it
    yielded; when the rest comes the file has changed, and is yielded again. So nothing has to be
    reported back for a file that turned out to be cut short. Senders that write to ``NAME.part``
    or ``NAME.tmp`` and rename it at the end are never caught in the middle.

    Those that are there at the start come too. Files that are ready at the same time come in the
    order of their time of change, then of their path. Left out are hidden files and folders,
    DICOMDIR indexes, and symbolic links: what a link in the folder leads to is either in the
    folder, and comes by itself, or does not belong to it. What is in a subfolder that cannot be
    looked at waits until it can. Memory holds one record for each file that is there.

    Parameters
    ----------
    stop
        Asked before each look and each file; True ends the iteration.
    settle, poll
        Seconds: how long a file rests before it is whole; how often to look, or as long as a look
        takes where that is more.
    clock, sleep
        Seconds that never go back, and a wait for some.

    Raises
    ------
    UsageError
        The folder is not there, cannot be read or is gone; or another file system appears in its
        place, as when a share is mounted or drops out.
    """
    device = _device(folder)
    known: dict[str, _Sighting] = {}
    while not stop():
        began = clock()
        found, closed = _look(folder, device)
        ended = clock()
        known = _updated(known, found, closed, ended)
        for path in _whole(known, began - settle):
            if stop():
                return
            there = _status(path)
            if there and _stamp(there) == known[path].stamp:  # it waited while others were handled
                known[path] = replace(known[path], given=True)
                yield Path(path)
        sleep(max(poll, ended - began))


def _look(folder: Path, device: int) -> tuple[dict[str, _Stamp], set[str]]:
    """Return the files that are there, and the paths that cannot be looked at."""
    if _device(folder) != device:
        raise UsageError(f"{folder}: another file system is mounted there now")
    found: dict[str, _Stamp] = {}
    closed: set[str] = set()
    folders = [str(folder)]
    while folders:
        path = folders.pop()
        try:
            for name in os.listdir(path):  # noqa: PTH208 - strings, for many files
                if name.startswith("."):
                    continue
                inner = os.path.join(path, name)  # noqa: PTH118 - strings, for many files
                there = _status(inner, closed)
                if there and stat.S_ISDIR(there.st_mode):
                    folders.append(inner)
                elif there and stat.S_ISREG(there.st_mode) and _is_wanted(name):
                    found[inner] = _stamp(there)
        except FileNotFoundError:  # gone since the folder above it was read
            continue
        except OSError:
            closed.add(path)
    return found, closed


def _device(folder: Path) -> int:
    """Return the number of the folder's file system; raise if the folder cannot be read."""
    try:
        with os.scandir(folder):
            return folder.stat().st_dev
    except OSError as cause:
        raise UsageError(f"{folder} cannot be watched: {cause.strerror}") from cause


def _is_wanted(name: str) -> bool:
    return not name.lower().endswith(_UNFINISHED) and name.upper() != "DICOMDIR"


def _stamp(there: os.stat_result) -> _Stamp:
    return there.st_size, there.st_mtime_ns, there.st_ino


def _status(path: str, closed: set[str] | None = None) -> os.stat_result | None:
    """Return what the file system says of a path, not of where a link leads; None if nothing."""
    try:
        return os.lstat(path)
    except OSError as cause:
        if closed is not None and not isinstance(cause, FileNotFoundError):
            closed.add(path)
        return None


def _updated(
    known: Mapping[str, _Sighting], found: Mapping[str, _Stamp], closed: set[str], now: float
) -> dict[str, _Sighting]:
    """Return what is known after a look; what is gone is forgotten, unless it is out of sight."""
    updated = {}
    for path, stamp in found.items():
        seen = known.get(path)
        same = seen is not None and seen.stamp == stamp
        updated[path] = seen if same else _Sighting(stamp=stamp, since=now)
    if closed:
        below = tuple(path + os.sep for path in closed)
        hidden = (path for path in known if path in closed or path.startswith(below))
        updated = {path: known[path] for path in hidden} | updated
    return updated


def _whole(known: Mapping[str, _Sighting], before: float) -> list[str]:
    """Return the files to yield: unchanged since ``before``, oldest first."""
    ready = [
        (seen.stamp[1], path)
        for path, seen in known.items()
        if not seen.given and seen.stamp[0] > 0 and seen.since <= before
    ]
    return [path for _, path in sorted(ready)]
