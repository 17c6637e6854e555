"""What is opened, under which name, and which files an argument stands for."""

import io
import os
import shutil
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from medtl_runtime.errors import ScanError, ScanNotFound, ScanUnreadable
from medtl_runtime.reading import expand, files_below, read_scan
from medtl_runtime.scan import Source

GREY = np.arange(64 * 48, dtype=np.uint8).reshape(64, 48)


@pytest.fixture
def mixed(tmp_path: Path, shipped: Path) -> dict[str, Path]:
    """One file of each format, under names that say nothing or lie."""
    paths = {kind: tmp_path / f"{kind}.txt" for kind in ("dicom", "png", "jpeg", "npy")}
    shutil.copy(shipped / "MR_small.dcm", paths["dicom"])
    Image.fromarray(GREY).save(paths["png"], "PNG")
    Image.fromarray(GREY).save(paths["jpeg"], "JPEG")
    with paths["npy"].open("wb") as file:
        np.save(file, GREY)
    return paths


def test_the_format_is_told_by_the_bytes_and_not_by_the_name(mixed: dict[str, Path]) -> None:
    for kind, path in mixed.items():
        (frame,) = read_scan(path).frames()
        assert frame.values.shape == ((64, 64) if kind == "dicom" else (64, 48))
        assert frame.quantity == ("modality" if kind == "dicom" else "display")


def test_a_path_is_a_string_or_a_path_and_names_the_scan(mixed: dict[str, Path]) -> None:
    path = mixed["dicom"]
    assert read_scan(path).source == read_scan(str(path)).source == str(path)
    assert read_scan(path, name="patient 7").source == "patient 7"


def test_a_data_set_and_an_array_are_scans_too(shipped: Path) -> None:
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    assert read_scan(dataset).source == "dataset"
    assert read_scan(dataset).header.modality == "MR"
    assert read_scan(GREY).source == "array"
    assert read_scan(GREY, name="slice 3").source == "slice 3"


def test_a_data_set_inside_another_is_no_file_but_still_a_data_set() -> None:
    with pytest.raises(ScanError):
        read_scan(pydicom.Dataset())


@pytest.mark.parametrize("thing", [None, 5, b"bytes", [[1, 2], [3, 4]], io.BytesIO(b"")])
def test_anything_else_is_a_type_error(thing: object) -> None:
    with pytest.raises(TypeError, match=f"not {type(thing).__name__}"):
        read_scan(thing)  # pyright: ignore[reportArgumentType]


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ScanNotFound) as error:
        read_scan(tmp_path / "nothing.dcm")
    assert str(error.value) == f"{tmp_path / 'nothing.dcm'}: no such file"
    assert isinstance(error.value, FileNotFoundError)


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.dcm").touch()
    with pytest.raises(ScanUnreadable, match="the file is empty"):
        read_scan(tmp_path / "empty.dcm")


@pytest.mark.parametrize("data", [b"x", b"hello world\n" * 50, b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"])
def test_a_stub_of_any_format_is_unreadable(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "stub").write_bytes(data)
    with pytest.raises(ScanUnreadable):
        read_scan(tmp_path / "stub")


def test_random_bytes_are_unreadable(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    for length in (1, 10, 131, 132, 133, 200, 5000):
        (tmp_path / "noise").write_bytes(random.bytes(length))
        with pytest.raises(ScanUnreadable):
            read_scan(tmp_path / "noise")


def test_a_folder_is_not_a_scan(tmp_path: Path) -> None:
    with pytest.raises(ScanUnreadable, match="directory"):
        read_scan(tmp_path)


def test_a_name_that_is_too_long_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ScanUnreadable, match="too long"):
        read_scan(tmp_path / ("x" * 300))


def test_a_file_without_permission_says_so(mixed: dict[str, Path]) -> None:
    mixed["png"].chmod(0)
    if os.access(mixed["png"], os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ScanUnreadable, match="Permission denied"):
        read_scan(mixed["png"])


def test_a_pipe_is_refused_at_once_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ScanUnreadable, match="not a regular file"):
        read_scan(tmp_path / "pipe")
    (source,) = expand([str(tmp_path / "pipe")])
    assert isinstance(source, Source)
    with pytest.raises(ScanUnreadable, match="not a regular file"):
        read_scan(source)


def test_a_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanUnreadable, match="not a regular file"):
        read_scan("/dev/zero")


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the paths of sockets are short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(ScanUnreadable, match="not a regular file"):
            read_scan("socket")


def test_open_scans_hold_no_open_file(shipped: Path) -> None:
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("this system does not list open files")
    before = len(list(open_files.iterdir()))
    scans = [read_scan(shipped / "CT_small.dcm") for _ in range(50)]
    assert len(list(open_files.iterdir())) == before
    assert next(scans[-1].frames()).values.shape == (128, 128)


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "SC_rgb_rle_2frame.dcm", "picture.png", "array.npy"]
)
def test_many_open_scans_take_little_memory(shipped: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".png"):
        Image.fromarray(np.zeros((1000, 1000), np.uint8)).save(path)
    elif name.endswith(".npy"):
        np.save(path, np.zeros((1000, 1000), np.uint8))
    else:
        shutil.copy(shipped / name, path)
    read_scan(path)
    tracemalloc.start()
    scans = [read_scan(path) for _ in range(50)]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / len(scans) < 100_000


# --- files, folders and globs


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.dcm",
        "a.dcm",
        ".hidden",
        "study/2/x",
        "study/1/y",
        "study/.git/z",
        "study/2/dicomdir",
        "odd[1].dcm",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("empty").mkdir()
    return tmp_path


def names(*patterns: str) -> list[str]:
    found = []
    for one in expand(patterns):
        assert isinstance(one, Source), one
        assert one.path == Path(one.name)
        found.append(str(one))
    return found


def test_a_folder_stands_for_its_files_without_hidden_ones_and_indexes(tree: Path) -> None:
    assert names("study") == ["study/1/y", "study/2/x"]
    assert names(".") == ["a.dcm", "b.dcm", "odd[1].dcm", "study/1/y", "study/2/x"]
    assert [path.name for path in files_below(tree / "study")] == ["y", "x"]


def test_a_file_that_is_named_is_taken_whatever_its_name(tree: Path) -> None:
    assert names(".hidden", "odd[1].dcm") == [".hidden", "odd[1].dcm"]


def test_globs_are_expanded_and_may_name_folders(tree: Path) -> None:
    assert names("?.dcm") == ["a.dcm", "b.dcm"]
    assert names("stud*") == ["study/1/y", "study/2/x"]
    assert names("**/x") == ["study/2/x"]
    assert names("[b]*") == ["b.dcm"]


def test_what_a_glob_matches_comes_sorted(tree: Path) -> None:
    shuffled = np.random.default_rng(8).permutation(60)
    for number in shuffled:
        (tree / f"slice{number:02}").touch()
    assert names("slice*") == [f"slice{number:02}" for number in range(60)]


def test_arguments_keep_their_order_and_each_file_comes_once(tree: Path) -> None:
    assert names("b.dcm", "?.dcm", "./a.dcm", "b.dcm") == ["b.dcm", "a.dcm"]


@pytest.mark.parametrize("pattern", ["nothing.dcm", "nothing*", "empty", "", "study/nothing/"])
def test_what_names_nothing_is_an_error_in_its_place_and_the_rest_go_on(
    tree: Path, pattern: str
) -> None:
    first, error, last = expand(["a.dcm", pattern, "b.dcm"])
    assert (str(first), str(last)) == ("a.dcm", "b.dcm")
    assert isinstance(error, ScanNotFound)
    assert error.source == pattern


def test_an_argument_that_cannot_be_looked_at_is_an_error_in_its_place(tree: Path) -> None:
    error, last = expand(["x" * 300, "b.dcm"])
    assert isinstance(error, ScanUnreadable)
    assert "too long" in error.reason
    assert str(last) == "b.dcm"


def test_expanding_reads_no_file(tree: Path, real: Callable[[str], Path]) -> None:
    """All files of the tree are empty; to read one would raise."""
    assert len(names(".")) == 5
