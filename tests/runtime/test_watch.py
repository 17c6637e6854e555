"""Files are taken as they arrive: whole, once, and in order."""

import os
import shutil
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medtl_runtime import watch
from medtl_runtime.errors import UsageError
from medtl_runtime.watch import arrivals

SETTLE, POLL = 1.0, 0.25


class Watching:
    """Runs `arrivals` on a clock that only its waits move; a look finds what ``at`` has put there.

    ``at[seconds]`` is what happens to the folder during the wait that ends then.
    """

    def __init__(self, folder: Path, at: dict[float, Callable[[], Any]] | None = None) -> None:
        self.folder = folder
        self.now = 0.0
        self.at = dict(at or {})
        self.taken: list[tuple[float, str]] = []

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in sorted(moment for moment in self.at if moment <= self.now):
            self.at.pop(moment)()

    def arrivals(self, until: float) -> Iterator[Path]:
        return arrivals(
            self.folder,
            stop=lambda: self.now >= until,
            settle=SETTLE,
            poll=POLL,
            clock=lambda: self.now,
            sleep=self._sleep,
        )

    def run(self, until: float = 5.0) -> list[tuple[float, str]]:
        """Return when each file was taken, and its path in the folder."""
        for path in self.arrivals(until):
            self.taken.append((self.now, str(path.relative_to(self.folder))))
        return self.taken


def names(taken: list[tuple[float, str]]) -> list[str]:
    return [name for _, name in taken]


def put(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_a_file_is_taken_once_when_it_has_rested(tmp_path: Path) -> None:
    taken = Watching(tmp_path, {2.0: lambda: put(tmp_path / "a.dcm")}).run(until=20)
    assert taken == [(2.0 + SETTLE, "a.dcm")]


def test_what_is_there_at_the_start_comes_first_oldest_first_then_by_name(tmp_path: Path) -> None:
    ages = {"b.dcm": 300, "sub/d.dcm": 100, "a.dcm": 200, "c.dcm": 200}
    for name, age in ages.items():
        os.utime(put(tmp_path / name), (1_000_000 - age, 1_000_000 - age))
    late = put(tmp_path.parent / "late.dcm")
    os.utime(late, (1, 1))  # older than all, but it arrives later
    taken = Watching(tmp_path, {0.5: lambda: shutil.move(late, tmp_path / "late.dcm")}).run()
    assert names(taken) == ["b.dcm", "a.dcm", "c.dcm", "sub/d.dcm", "late.dcm"]
    assert [when for when, _ in taken] == [1.0, 1.0, 1.0, 1.0, 1.5]


def test_a_file_that_still_grows_is_left_until_it_rests(tmp_path: Path) -> None:
    path = tmp_path / "slow.dcm"
    growth = {0.5 + 0.75 * step: lambda n=step: put(path, "x" * (n + 1)) for step in range(5)}
    assert Watching(tmp_path, growth).run(until=10) == [(0.5 + 0.75 * 4 + SETTLE, "slow.dcm")]


def test_a_file_that_is_written_in_place_without_growing_is_left_too(tmp_path: Path) -> None:
    path = put(tmp_path / "sized.dcm")
    touches = {0.75 * n: lambda n=n: os.utime(path, ns=(n, n)) for n in range(1, 5)}
    assert Watching(tmp_path, touches).run(until=10) == [(0.75 * 4 + SETTLE, "sized.dcm")]


def test_an_empty_file_is_left_until_something_is_in_it(tmp_path: Path) -> None:
    path = put(tmp_path / "a.dcm", "")
    assert Watching(tmp_path).run(until=10) == []
    assert Watching(tmp_path, {4.0: lambda: put(path)}).run(until=10) == [(5.0, "a.dcm")]


@pytest.mark.parametrize("change", ["size", "time", "another file"])
def test_a_file_that_changes_comes_again(tmp_path: Path, change: str) -> None:
    path = put(tmp_path / "a.dcm", "old")
    before = path.stat()

    def alter() -> None:
        if change == "another file":  # of the same size and time
            path.rename(tmp_path / ".old")
        path.write_text("longer" if change == "size" else "new")
        later = 1 if change == "time" else 0
        os.utime(path, ns=(before.st_mtime_ns + later, before.st_mtime_ns + later))

    taken = Watching(tmp_path, {3.0: alter}).run(until=10)
    assert taken == [(1.0, "a.dcm"), (4.0, "a.dcm")]


def test_half_a_file_that_was_taken_comes_again_when_the_rest_arrives(tmp_path: Path) -> None:
    watching = Watching(tmp_path, {3.0: lambda: put(tmp_path / "a.dcm", "whole")})
    put(tmp_path / "a.dcm", "who")
    assert [path.read_text() for path in watching.arrivals(until=10)] == ["who", "whole"]


def test_new_permissions_or_another_reader_are_no_change(tmp_path: Path) -> None:
    path = put(tmp_path / "a.dcm")
    touch = {3.0: lambda: path.chmod(0o600), 4.0: path.read_text}
    assert names(Watching(tmp_path, touch).run(until=10)) == ["a.dcm"]


def test_a_file_that_is_gone_before_its_turn_is_not_taken(tmp_path: Path) -> None:
    os.utime(put(tmp_path / "first.dcm"), (1, 1))
    for name in ("gone.dcm", "rewritten.dcm", "stays.dcm"):
        put(tmp_path / name)
    taken = []
    watching = Watching(tmp_path)
    for path in watching.arrivals(until=10):
        taken.append((watching.now, path.name))
        if path.name == "first.dcm":  # while this one is handled
            (tmp_path / "gone.dcm").unlink()
            put(tmp_path / "rewritten.dcm", "half of it")
    assert taken == [(1.0, "first.dcm"), (1.0, "stays.dcm"), (2.25, "rewritten.dcm")]


def test_what_is_no_image_that_has_arrived_is_left_out(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "other.dcm")
    folder = tmp_path / "in"
    put(folder / "deep" / "er" / "a.dcm")
    for name in ("b.dcm.part", "c.TMP", ".hidden.dcm", ".hidden/d.dcm", "DICOMDIR", "x/dicomdir"):
        put(folder / name)
    (folder / "link.dcm").symlink_to(outside)
    (folder / "linked").symlink_to(outside.parent, target_is_directory=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe.dcm")
    assert names(Watching(folder).run()) == ["deep/er/a.dcm"]


def test_a_file_comes_when_it_is_renamed_from_its_temporary_name(tmp_path: Path) -> None:
    part = put(tmp_path / "a.dcm.part")
    taken = Watching(tmp_path, {5.0: lambda: part.rename(tmp_path / "a.dcm")}).run(until=10)
    assert taken == [(6.0, "a.dcm")]


def test_a_file_that_vanished_is_forgotten_and_comes_again_when_it_is_back(tmp_path: Path) -> None:
    path, away = put(tmp_path / "in" / "a.dcm"), tmp_path / "away"
    moves = {3.0: lambda: path.rename(away), 4.0: lambda: away.rename(path)}
    taken = Watching(tmp_path / "in", moves).run(until=10)
    assert taken == [(1.0, "a.dcm"), (5.0, "a.dcm")]


def test_memory_does_not_grow_with_the_files_that_have_gone(tmp_path: Path) -> None:
    def fill() -> None:
        for number in range(50):
            put(tmp_path / f"{seen + number}.dcm")

    def held() -> int:
        mine = tracemalloc.Filter(inclusive=True, filename_pattern=watch.__file__)
        return sum(block.size for block in tracemalloc.take_snapshot().filter_traces([mine]).traces)

    seen, sizes = 0, []
    fill()
    tracemalloc.start()
    try:
        for path in Watching(tmp_path).arrivals(until=1e9):
            path.unlink()
            seen += 1
            if seen % 50 == 0:
                sizes.append(held())
                if len(sizes) == 20:
                    break
                fill()
    finally:
        tracemalloc.stop()
    assert sizes[0] > 50 * 100  # what 50 files take
    assert sizes[-1] < 1.5 * sizes[0]
    assert seen == 1000


def test_it_stops_between_two_files_and_takes_no_more(tmp_path: Path) -> None:
    for number in range(5):
        put(tmp_path / f"{number}.dcm")
    taken: list[str] = []
    waits: list[float] = []
    now = iter(range(100))
    for path in arrivals(
        tmp_path, stop=lambda: len(taken) == 2, clock=lambda: next(now), sleep=waits.append
    ):
        taken.append(path.name)
    assert taken == ["0.dcm", "1.dcm"]
    assert len(waits) == 1  # none after the stop


def test_a_stop_before_the_start_takes_nothing(tmp_path: Path) -> None:
    put(tmp_path / "a.dcm")
    assert list(arrivals(tmp_path, stop=lambda: True)) == []


def test_a_slow_file_system_is_looked_at_half_of_the_time_at_most(tmp_path: Path) -> None:
    now, waits = [0.0], []

    def clock() -> float:  # a look lasts from one reading to the next
        now[0] += 2.0
        return now[0]

    list(arrivals(tmp_path, stop=lambda: len(waits) == 3, clock=clock, sleep=waits.append))
    assert waits == [2.0, 2.0, 2.0]


# --- folders that are not what they were


def test_a_folder_that_cannot_be_watched_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing cannot be watched: No such file"):
        Watching(tmp_path / "nothing").run()
    with pytest.raises(UsageError, match=r"file cannot be watched: Not a directory"):
        Watching(put(tmp_path / "file")).run()


def test_a_folder_that_vanishes_is_a_usage_error_after_what_has_arrived(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    put(folder / "a.dcm")
    watching = Watching(folder, {3.0: lambda: shutil.rmtree(folder)})
    with pytest.raises(UsageError, match=r"in cannot be watched: No such file"):
        watching.run()
    assert names(watching.taken) == ["a.dcm"]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second file system")
def test_a_share_that_drops_out_is_no_empty_folder(tmp_path: Path) -> None:
    """The link stands for a mount point: when the share is gone, the folder below it appears."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as share:
        if Path(share).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system")
        mount = tmp_path / "mount"
        mount.symlink_to(share)
        put(Path(share) / "a.dcm")

        def drop() -> None:
            mount.unlink()
            mount.mkdir()

        watching = Watching(mount, {3.0: drop})
        with pytest.raises(UsageError, match="another file system"):
            watching.run()
        assert names(watching.taken) == ["a.dcm"]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Return a folder, for a user whom permissions bind."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        os.seteuid(user)


def test_a_subfolder_without_permission_waits_and_the_rest_go_on(unprivileged: Path) -> None:
    locked = unprivileged / "locked"
    put(unprivileged / "b.dcm")
    put(locked / "a.dcm")

    def close() -> None:
        locked.chmod(0)
        put(unprivileged / "c.dcm")

    def reopen() -> None:
        locked.chmod(0o700)
        put(locked / "d.dcm")

    assert Watching(unprivileged, {3.0: close, 6.0: reopen}).run(until=10) == [
        (1.0, "b.dcm"),
        (1.0, "locked/a.dcm"),
        (4.0, "c.dcm"),
        (7.0, "locked/d.dcm"),  # and a.dcm, which was out of sight, does not come again
    ]


def test_a_folder_that_is_too_deep_is_left_and_the_rest_come(tmp_path: Path) -> None:
    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(30):
            Path("d" * 200).mkdir()
            os.chdir("d" * 200)
        Path("deep.dcm").write_text("x")
    finally:
        os.chdir(here)
    put(tmp_path / "z.dcm")
    assert names(Watching(tmp_path).run()) == ["z.dcm"]


# --- on a real clock


def test_a_slow_writer_s_file_is_taken_once_and_whole(tmp_path: Path) -> None:
    chunks = [bytes([number]) * 1000 for number in range(5)]
    done = threading.Event()

    def write() -> None:
        with (tmp_path / "slow.dcm").open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                file.flush()
                time.sleep(0.1)

    writer = threading.Thread(target=write)
    stopping = threading.Timer(2.0, done.set)
    taken = []
    writer.start()
    stopping.start()
    try:
        for path in arrivals(tmp_path, stop=done.is_set, settle=0.4, poll=0.02):
            taken.append(path.read_bytes())
    finally:
        writer.join()
        stopping.cancel()
    assert taken == [b"".join(chunks)]


def test_files_that_come_and_go_do_not_make_the_others_come_twice(tmp_path: Path) -> None:
    for number in range(200):
        put(tmp_path / f"{number:03}.dcm")
    done = threading.Event()

    def churn() -> None:
        number = 0
        while not done.is_set():
            number += 1
            put(tmp_path / f"x{number % 300}").unlink()

    threads = [threading.Thread(target=churn), threading.Timer(1.0, done.set)]
    for thread in threads:
        thread.start()
    try:
        found = arrivals(tmp_path, stop=done.is_set, settle=0.05, poll=0.001)
        taken = [path.name for path in found if path.suffix == ".dcm"]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert sorted(taken) == [f"{number:03}.dcm" for number in range(200)]
