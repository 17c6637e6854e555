"""Work in a child process that may end badly."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.pixels.utils import as_pixel_options

from medtl_runtime import isolated
from medtl_runtime.errors import ScanUnreadable
from medtl_runtime.isolated import Worker, decoding_worker
from medtl_runtime.reading import read_scan

LOSSLESS = "SC_rgb_jpeg_gdcm.dcm"

# What the tests ask of a child besides its tasks: functions of the standard library, that crash,
# hang or take memory as decoders do.
ODD_TASKS = {
    "abort": ("os", "abort"),
    "kill": ("os", "_exit"),
    "sleep": ("time", "sleep"),
    "memory": ("builtins", "bytearray"),
    "write": ("os", "write"),
    "environment": ("os", "getpid"),
    "raise": ("operator", "floordiv"),
}


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker whose child has odd tasks as well."""
    program = (
        "import sys\n"
        "from medtl_runtime import isolated\n"
        f"isolated.TASKS.update({ODD_TASKS!r})\n"
        "isolated.main()\n"
    )
    (tmp_path / "odd.py").write_text(program)
    real = subprocess.Popen

    def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return real([sys.executable, str(tmp_path / "odd.py"), command[-1]], **options)  # pyright: ignore

    monkeypatch.setattr(isolated.subprocess, "Popen", start)
    return Worker()


def frame_task(path: Path) -> tuple[bytes, str, str, dict[str, object]]:
    dataset = dcmread(path)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    options = as_pixel_options(dataset, pixel_keyword="PixelData", pixel_vr="OB")
    return frame, str(dataset.file_meta.TransferSyntaxUID), "gdcm", options


def test_a_frame_is_decoded_as_in_this_process(shipped: Path) -> None:
    pytest.importorskip("gdcm")
    worker = Worker()
    stored, photometric = worker.call("decode_frame", *frame_task(shipped / LOSSLESS))
    np.testing.assert_array_equal(stored, dcmread(shipped / LOSSLESS).pixel_array)
    assert photometric == "RGB"
    worker.close()


@pytest.mark.parametrize(("task", "argument"), [("abort", ()), ("kill", (0,)), ("kill", (9,))])
def test_a_crash_is_an_error_and_the_next_call_starts_another_child(
    worker: Worker, task: str, argument: tuple[int, ...]
) -> None:
    first = worker.call("environment")
    with pytest.raises(ScanUnreadable, match="crashed") as error:
        worker.call(task, *argument, source="scan 7")
    assert error.value.source == "scan 7"
    assert worker.call("environment") not in (first, os.getpid())
    worker.close()


def test_a_hang_ends_in_time(worker: Worker) -> None:
    worker.call("environment")
    started = time.monotonic()
    with pytest.raises(ScanUnreadable, match="took too long"):
        worker.call("sleep", 60, source="scan", seconds=0.2)
    assert time.monotonic() - started < 5
    worker.call("sleep", 0.01, source="scan", seconds=5)
    worker.close()


def test_memory_beyond_the_limit_is_an_error_of_the_task(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match="MemoryError"):
        worker.call("memory", 5 * 2**30)
    worker.close()


def test_an_exception_of_the_task_comes_back_as_text(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        worker.call("raise", 1, 0)
    assert worker.call("raise", 7, 2) == 3
    worker.close()


def test_what_a_library_prints_is_no_answer(worker: Worker) -> None:
    assert worker.call("write", 1, b"printed in C") == 12
    assert worker.call("raise", 9, 2) == 4
    worker.close()


def test_large_arguments_and_results_come_through_whole(worker: Worker) -> None:
    assert worker.call("memory", bytes(range(256)) * 40_000) == bytes(range(256)) * 40_000
    worker.close()


def test_calls_of_several_threads_take_turns(worker: Worker) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(worker.call("raise", 100 * n, 100)))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(20))
    worker.close()


def test_closing_ends_the_child_and_a_call_starts_another(worker: Worker) -> None:
    first = worker.call("environment")
    worker.close()
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert worker.call("environment") != first
    worker.close()


def test_the_child_ends_with_its_parent() -> None:
    program = (
        "import os\n"
        "from medtl_runtime.isolated import Worker\n"
        "worker = Worker()\n"
        "child = worker._started()\n"
        "print(child.pid, flush=True)\n"
        "os._exit(1)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    child = int(ended.stdout)
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the child goes on")


def test_a_worker_that_is_forgotten_ends_its_child() -> None:
    worker = Worker()
    child = worker._started()
    del worker
    assert child.poll() is not None


def test_a_fork_has_a_worker_of_its_own() -> None:
    here = decoding_worker()
    assert decoding_worker() is here
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"another" if decoding_worker() is not here else b"the same")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"another"


def test_the_child_does_not_import_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: Path
) -> None:
    pytest.importorskip("gdcm")
    for name in ("numpy", "pydicom", "gdcm", "pickle"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the scans')")
    monkeypatch.chdir(tmp_path)
    worker = Worker()
    stored, _ = worker.call("decode_frame", *frame_task(shipped / LOSSLESS))
    assert stored.shape == (100, 100, 3)
    worker.close()


def test_the_module_of_the_user_is_not_run_again(tmp_path: Path, shipped: Path) -> None:
    pytest.importorskip("gdcm")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from medtl_runtime.reading import read_scan\n"
        "print('once')\n"
        "print(next(read_scan(sys.argv[1]).frames()).values.shape)\n"
    )
    finished = subprocess.run(
        [sys.executable, script, shipped / LOSSLESS], capture_output=True, text=True, check=True
    )
    assert finished.stdout == "once\n(100, 100, 3)\n"
    assert finished.stderr == ""


def test_no_child_is_started_where_none_is_needed(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(isolated.subprocess, "Popen", fail)
    for name in ("CT_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"):
        list(read_scan(shipped / name).frames())
