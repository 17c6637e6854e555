"""A name never holds half a file."""

import subprocess
import sys
from pathlib import Path

import pytest

from medtl_runtime.errors import OutputExists, OutputNotWritten, UsageError
from medtl_runtime.files import refuse_existing, write_text, written_whole


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_text_is_written_as_utf_8_into_folders_that_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "report.txt"
    write_text(path, "42 µm – ✓\n")
    assert path.read_bytes() == "42 µm – ✓\n".encode()
    assert contents(path.parent) == {"report.txt": "42 µm – ✓\n"}


def test_an_older_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("old and much longer")
    write_text(path, "new")
    assert contents(tmp_path) == {"report.txt": "new"}


def test_until_the_block_ends_the_older_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("old")
    with written_whole(path) as part:
        assert part.parent == path.parent  # the rename is atomic on one file system only
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_the_new_file_comes_by_a_rename_and_never_grows_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("old")
    with path.open() as reader:
        with written_whole(path) as part:
            part.write_text("new")
            written = part.stat().st_ino
        assert path.stat().st_ino == written
        assert reader.read() == "old"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, UsageError])
def test_a_block_that_fails_leaves_the_older_file_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    path = tmp_path / "report.txt"
    path.write_text("old")

    def write_half() -> None:
        with written_whole(path) as part:
            part.write_text("half")
            raise failure("stopped")

    with pytest.raises(failure, match="stopped"):
        write_half()
    assert contents(tmp_path) == {"report.txt": "old"}


def test_an_error_of_the_file_system_becomes_one_line_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"

    def fill_the_disk() -> None:
        with written_whole(path) as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputNotWritten) as error:
        fill_the_disk()
    assert str(error.value) == f"{path} was not written: No space left on device"
    assert contents(tmp_path) == {}


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputNotWritten), written_whole(tmp_path / "report.txt"):
        pass
    assert contents(tmp_path) == {}


def test_a_folder_under_the_final_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.txt").mkdir()
    with pytest.raises(OutputNotWritten, match="directory"):
        write_text(tmp_path / "report.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["report.txt"]


def test_a_file_where_a_folder_is_needed_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(OutputNotWritten):
        write_text(tmp_path / "file" / "report.txt", "new")
    assert contents(tmp_path) == {"file": "old"}


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputNotWritten, match="too long"):
        write_text(tmp_path / ("x" * 300), "new")
    with pytest.raises(OutputNotWritten, match="too long"):
        refuse_existing(tmp_path / ("x" * 300), overwrite=False)


def test_a_full_disk_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    """The kernel refuses to let a file grow, as it does on a full disk, in the middle of it."""
    pytest.importorskip("resource")
    (tmp_path / "report.txt").write_text("old")
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from medtl_runtime.errors import OutputNotWritten\n"
        "from medtl_runtime.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "for name in ('report.txt', 'new.txt'):\n"
        "    try:\n"
        "        write_text(Path(sys.argv[1]) / name, 'x' * 1_000_000)\n"
        "    except OutputNotWritten as error:\n"
        "        print(error)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    assert finished.stdout.splitlines() == [
        f"{tmp_path / 'report.txt'} was not written: File too large",
        f"{tmp_path / 'new.txt'} was not written: File too large",
    ]
    assert contents(tmp_path) == {"report.txt": "old"}


def test_what_exists_is_refused_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    refuse_existing(path, overwrite=False)
    path.touch()
    refuse_existing(path, overwrite=True)
    with pytest.raises(OutputExists, match=r"report\.txt exists; choose another name"):
        refuse_existing(path, overwrite=False)
