"""Images are decoded once: until the file, the recipe or the code changes."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from medtl_runtime.errors import OutputNotWritten, ScanError
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_train.data import cache as caches
from medtl_train.data import readers, shards
from medtl_train.data.cache import ImageCache, cache_root, read_through
from medtl_train.data.decoding import Decoded
from medtl_train.data.images import Pixels
from medtl_train.data.samples import Sample

GREY = Recipe(size=(32, 32), channels=1, window=HeaderVoi())


@pytest.fixture
def files(tmp_path: Path, write_image: Callable) -> list[Sample]:
    """Return twelve images, PNG and NPY."""
    return [
        Sample(source=str(write_image(tmp_path / f"{k}.{'png' if k % 2 else 'npy'}", k)), labels=())
        for k in range(12)
    ]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which every file is added that is decoded in this process."""
    seen: list[str] = []
    real = readers.decode_chunk

    def spy(source: str, recipe: Recipe, first: int):
        seen.append(source)
        return real(source, recipe, first)

    monkeypatch.setattr(readers, "decode_chunk", spy)
    return seen


def read(root: Path | None, samples: Iterable[Sample], recipe: Recipe = GREY, **options):
    return read_through(ImageCache(root, recipe), list(samples), recipe, **options)


def same(one: Decoded | ScanError, other: Decoded | ScanError) -> bool:
    assert isinstance(one, Decoded)
    assert isinstance(other, Decoded)
    return (
        one.digests == other.digests
        and one.header == other.header
        and one.pixels.tobytes() == other.pixels.tobytes()
        and one.thumbnails.tobytes() == other.thumbnails.tobytes()
        and one.statistics.tobytes() == other.statistics.tobytes()
    )


def all_same(some: Sequence[Decoded | ScanError], others: Sequence[Decoded | ScanError]) -> bool:
    return all(same(one, other) for one, other in zip(some, others, strict=True))


def test_the_second_start_decodes_nothing_and_finds_the_same(
    tmp_path: Path, files: list[Sample], decoded: list[str]
) -> None:
    first = read(tmp_path / "cache", files)
    assert sorted(decoded) == sorted(s.source for s in files)
    decoded.clear()
    again = read(tmp_path / "cache", files)
    assert not decoded
    assert all_same(first, again)
    assert all_same(first, read(None, files))


def test_headers_of_real_dicom_survive(tmp_path: Path, pydicom_files: Path) -> None:
    names = ("CT_small.dcm", "MR_small.dcm", "examples_palette.dcm", "rtdose.dcm")
    samples = [Sample(source=str(pydicom_files / name), labels=()) for name in names]
    recipe = Recipe(size=(32, 32), channels=3, window=HeaderVoi())
    first, again = (read(tmp_path, samples, recipe) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        if isinstance(one, ScanError):
            assert isinstance(other, ScanError)
            assert one.reason == other.reason
        else:
            assert same(one, other)
    assert sum(isinstance(one, Decoded) for one in first) >= 3


def test_images_stay_on_disk(tmp_path: Path, files: list[Sample]) -> None:
    for outcome in read(tmp_path / "cache", files):
        assert isinstance(outcome, Decoded)
        base = outcome.pixels
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap)


def test_a_file_that_changed_is_decoded_again_and_no_other(
    tmp_path: Path, files: list[Sample], decoded: list[str], write_image: Callable
) -> None:
    read(tmp_path / "cache", files)
    decoded.clear()
    changed = Path(files[4].source)
    write_image(changed, 99)
    os.utime(changed, ns=(1, 1))  # the size is the same
    fresh = read(tmp_path / "cache", files)
    assert decoded == [str(changed)]
    assert same(fresh[4], read(None, files)[4])


def test_another_recipe_has_its_own_images(
    tmp_path: Path, files: list[Sample], decoded: list[str]
) -> None:
    read(tmp_path / "cache", files)
    decoded.clear()
    larger = Recipe(size=(48, 48), channels=1, window=HeaderVoi())
    [first, *_] = read(tmp_path / "cache", files, larger)
    assert isinstance(first, Decoded)
    assert first.pixels.shape == (1, 1, 48, 48)
    assert len(decoded) == len(files)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_what_other_code_prepared_is_prepared_again_and_removed(
    tmp_path: Path, files: list[Sample], decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr(shards, "pixel_path", lambda: "older")
        read(tmp_path / "cache", files)
    old = set((tmp_path / "cache").rglob("*.npy"))
    decoded.clear()
    read(tmp_path / "cache", files)
    assert len(decoded) == len(files)
    assert not old & set((tmp_path / "cache").rglob("*.npy"))


def test_shards_in_which_nothing_holds_are_removed(
    tmp_path: Path, files: list[Sample], write_image: Callable
) -> None:
    read(tmp_path / "cache", files)
    old = list((tmp_path / "cache").rglob("*.npy"))
    for k, sample in enumerate(files):
        write_image(Path(sample.source), 50 + k)
        os.utime(sample.source, ns=(1, 1))
    read(tmp_path / "cache", files)
    assert not any(path.exists() for path in old)


def test_what_cannot_be_read_is_tried_again(tmp_path: Path, files: list[Sample]) -> None:
    bad = Path(files[3].source)
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    outcome = read(tmp_path / "cache", files)[3]
    assert isinstance(outcome, ScanError)
    bad.write_bytes(whole)
    assert isinstance(read(tmp_path / "cache", files)[3], Decoded)


def test_progress_is_counted_by_samples_whether_cached_or_not(
    tmp_path: Path, files: list[Sample]
) -> None:
    for wanted in (files[:5], files, files):
        seen = []

        def track(items, seen=seen):
            for item in items:
                seen.append(item)
                yield item

        read(tmp_path / "cache", wanted, track=track)
        assert seen == wanted


def test_a_file_that_two_rows_name_is_decoded_once(files: list[Sample], decoded: list[str]) -> None:
    outcomes = read(None, [files[0], files[1], files[0]])
    assert len(decoded) == 2
    assert outcomes[0] is outcomes[2]


def test_an_interrupted_build_goes_on_where_a_shard_ended(
    tmp_path: Path, files: list[Sample], decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_SHARD_FILES", 5)

    def stop(items):
        for k, item in enumerate(items):
            if k == 7:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "cache", files, track=stop)
    decoded.clear()
    read(tmp_path / "cache", files)
    assert sorted(decoded) == sorted(s.source for s in files[5:])


def test_a_run_that_is_killed_leaves_whole_shards(
    tmp_path: Path, files: list[Sample], decoded: list[str]
) -> None:
    script = f"""
import os, signal
from pathlib import Path
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_train.data import cache as caches
from medtl_train.data.samples import Sample
caches._SHARD_FILES = 4
recipe = Recipe(size=(32, 32), channels=1, window=HeaderVoi())
def stop(items):
    for k, item in enumerate(items):
        if k == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        yield item
samples = [Sample(source=s, labels=()) for s in {[s.source for s in files]!r}]
caches.read_through(caches.ImageCache(Path({str(tmp_path / "cache")!r}), recipe), samples, recipe,
                    track=stop)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    fresh = read(tmp_path / "cache", files)
    assert len(decoded) == 4
    assert all_same(fresh, read(None, files))


def test_two_runs_build_one_cache(tmp_path: Path, files: list[Sample], decoded: list[str]) -> None:
    notes: list[str] = []
    started, finish = threading.Event(), threading.Event()

    def slowly(items):
        for item in items:
            started.set()
            finish.wait(10)
            yield item

    def wait_no_more(note: str) -> None:
        notes.append(note)
        finish.set()

    first = threading.Thread(
        target=read, args=(tmp_path / "cache", files), kwargs={"track": slowly}
    )
    first.start()
    started.wait(10)
    outcomes = read(tmp_path / "cache", files, note=wait_no_more)
    first.join()
    assert notes == [notes[0]]
    assert "another run is filling" in notes[0]
    assert sorted(decoded) == sorted(s.source for s in files)
    assert all_same(outcomes, read(None, files))


def test_without_locks_both_runs_are_right(
    tmp_path: Path, files: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", none)
    expected = read(None, files)
    found: list[list] = []
    threads = [
        threading.Thread(target=lambda: found.append(read(tmp_path / "cache", files)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outcomes in [*found, read(tmp_path / "cache", files)]:
        assert all_same(outcomes, expected)


@pytest.mark.parametrize("name", ["*.npy", "*.index.npz"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_cache_costs_time_and_nothing_else(
    tmp_path: Path, files: list[Sample], name: str, damage: str
) -> None:
    expected = read(tmp_path / "cache", files)
    expected = read(None, files)
    for path in (tmp_path / "cache").rglob(name):
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:300])
        else:
            path.unlink()
    assert all_same(read(tmp_path / "cache", files), expected)


def test_what_killed_runs_leave_behind_is_swept_after_a_day(
    tmp_path: Path, files: list[Sample]
) -> None:
    read(tmp_path / "cache", files[:3])
    [folder] = (tmp_path / "cache").iterdir()
    old, young = folder / "aaaa.npy", folder / ".bbbb.npy.1234.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 10**6,) * 2)
    read(tmp_path / "cache", files)
    assert not old.exists()
    assert young.exists()


def test_a_full_disk_is_one_line_with_a_way_out(
    tmp_path: Path, files: list[Sample], disk_of: Callable
) -> None:
    with disk_of(4000), pytest.raises(OutputNotWritten, match="--cache none keeps images") as full:
        read(tmp_path / "cache", files)
    assert str(tmp_path / "cache") in str(full.value)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, files: list[Sample]) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputNotWritten, match="--cache names another folder"):
        read(tmp_path / "file", files)


def test_the_default_is_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root(None) == tmp_path / "medtl" / "train"
    assert cache_root("none") is None
    assert cache_root("elsewhere") == Path("elsewhere")


def test_many_files_are_read_by_processes_with_the_same_outcome(
    tmp_path: Path, files: list[Sample], decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(files[5].source).write_bytes(b"")
    expected = read(None, files)
    decoded.clear()
    monkeypatch.setattr(readers, "WORTH_PROCESSES", 1)
    outcomes = read(tmp_path / "cache", files, readers=2)
    assert not decoded  # in this process
    for k, (one, other) in enumerate(zip(outcomes, expected, strict=True)):
        if k == 5:
            assert isinstance(one, ScanError)
            assert one.reason == "the file is empty"
        else:
            assert same(one, other)


def test_a_reader_that_crashes_costs_one_file(
    files: list[Sample], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "crashing.py").write_text(
        "import os\n"
        "from medtl_train.data.decoding import decode_chunk\n"
        "def decode(source, *rest):\n"
        "    if source.endswith('3.png'):\n"
        "        os.abort()\n"
        "    if source.endswith('5.png'):\n"
        "        raise MemoryError('no room')\n"
        "    return decode_chunk(source, *rest)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(readers, "_TASK", "crashing:decode")
    monkeypatch.setattr(readers, "WORTH_PROCESSES", 1)
    outcomes = read(None, files, readers=2)
    failed = {k: one.reason for k, one in enumerate(outcomes) if isinstance(one, ScanError)}
    assert set(failed) == {3, 5}
    assert "crashed" in failed[3]
    assert "no room" in failed[5]


def test_files_of_many_frames_are_read_whole(tmp_path: Path, pydicom_files: Path) -> None:
    import pydicom

    cine = pydicom.dcmread(pydicom_files / "MR_small.dcm")
    stored = cine.pixel_array
    cine.NumberOfFrames = 40
    cine.PixelData = np.stack([np.roll(stored, n) for n in range(40)]).tobytes()
    cine.save_as(tmp_path / "cine.dcm")
    [outcome] = read(tmp_path / "cache", [Sample(source=str(tmp_path / "cine.dcm"), labels=())])
    assert isinstance(outcome, Decoded)
    assert outcome.pixels.shape == (40, 1, 32, 32)
    assert len(set(outcome.digests)) == 40


@pytest.fixture
def array_and_pixels(tmp_path: Path, files: list[Sample]) -> tuple[np.ndarray, Pixels]:
    """Return canonical images in memory, and the same from the cache."""
    images = [one.pixels[0] for one in read(tmp_path / "cache", files) if isinstance(one, Decoded)]
    return np.stack(images), Pixels(images)


@pytest.mark.parametrize(
    "index",
    [3, -1, np.int64(2), slice(2, 9, 3), slice(None), [4, 4, 0], np.array([5, 1]),
     np.arange(12) > 6, np.empty(0, int)],
)  # fmt: skip
def test_pixels_are_indexed_as_an_array_is(
    array_and_pixels: tuple[np.ndarray, Pixels], index
) -> None:
    array, pixels = array_and_pixels
    found = pixels[index]
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, array[index])


def test_pixels_are_an_array_when_asked_for(array_and_pixels: tuple[np.ndarray, Pixels]) -> None:
    array, pixels = array_and_pixels
    assert (len(pixels), pixels.shape, pixels.dtype) == (12, array.shape, array.dtype)
    assert pixels.nbytes == array.nbytes
    np.testing.assert_array_equal(np.asarray(pixels), array)
    np.testing.assert_array_equal(np.stack(list(pixels)), array)
    np.testing.assert_array_equal(np.asarray(pixels, np.float32), array.astype(np.float32))


def test_a_slice_is_no_view_of_what_is_on_disk(array_and_pixels: tuple[np.ndarray, Pixels]) -> None:
    _, pixels = array_and_pixels
    some = pixels[0:2]
    some[:] = 0
    assert pixels[0:2].any()
