"""Opens whatever comes: the format is told by the first bytes, never by the file's name."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import ScanError, ScanNotFound, ScanUnreadable
from medtl_runtime.limits import open_file
from medtl_runtime.scan import Scan, Source

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    Readable = str | Path | Source | Dataset | NDArray

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
NPY = b"\x93NUMPY"
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
"""An archive with members, and one without."""

STDIN = "-"


def read_scan(source: "Readable", name: str | None = None) -> Scan:
    """Read one scan.

    Parameters
    ----------
    source
        The path of a DICOM, PNG, JPEG or NPY file; a `Source`, as `expand` yields them; a
        ``pydicom.Dataset``; or an array, H x W or H x W x 3 (see `images.scan_of_array` for what
        its values mean).
    name
        How errors and results speak of it; the path by default.

    Raises
    ------
    ScanNotFound, ScanUnreadable, ScanWithoutPixels, ScanTooLarge, ScanUnfit
        As their names say. Pixels are decoded later, so `Scan.frames` can raise as well.
    """
    if isinstance(source, Source):
        return _read_source(source, name or source.name)
    if isinstance(source, str | Path):
        return _read_file(Path(source), name or str(source))
    if isinstance(source, np.ndarray):
        from medtl_runtime.images import scan_of_array

        return scan_of_array(source, name or "array")
    from medtl_runtime import dicom

    if not dicom.is_dataset(source):
        kind = type(source).__name__
        raise TypeError(f"a scan is a path, a pydicom.Dataset or an array, not {kind}")
    return dicom.scan_of(cast("Dataset", source), name or "dataset")


def read_header(source: Source) -> "Dataset":
    """Return all attributes of a DICOM source but its pixels, for objects that refer to it.

    Raises
    ------
    ScanNotFound, ScanUnreadable
        It has changed since it was read as a scan.
    """
    import pydicom

    try:
        with _file_errors(source.name), open_file(_file_of(source), source.name) as opened:
            return pydicom.dcmread(opened, stop_before_pixels=True, force=True)
    except ScanError:
        raise
    except Exception as cause:  # pydicom lets many kinds through on damaged files
        raise ScanUnreadable(source.name, "its header cannot be read again") from cause


def _read_source(source: Source, name: str) -> Scan:
    with _file_errors(name):
        file = _file_of(source)
    return _read_file(file, name)


def _file_of(source: Source) -> Path | bytes:
    if source.content is not None:
        return source.content
    assert source.path is not None
    if source.member is None:
        return source.path
    from medtl_runtime.archives import read_member

    return read_member(source.path, source.member, source.name)


def _read_file(file: Path | bytes, name: str) -> Scan:
    with _file_errors(name):
        with open_file(file, name) as opened:
            start = opened.read(8)
        if not start:
            raise ScanUnreadable(name, "the file is empty")
        if start.startswith(ZIP):
            raise ScanUnreadable(name, "a zip archive; those in folders and archives stay closed")
        if start == PNG or start.startswith(JPEG):
            from medtl_runtime.images import read_picture

            return read_picture(file, name)
        if start.startswith(NPY):
            from medtl_runtime.images import read_npy

            return read_npy(file, name)
        from medtl_runtime.dicom import read_dicom

        return read_dicom(file, name)


@contextmanager
def _file_errors(name: str) -> Iterator[None]:
    """Name the scan in what the file system has to say."""
    try:
        yield
    except ScanError:
        raise
    except FileNotFoundError as cause:
        raise ScanNotFound(name, "no such file") from cause
    except OSError as cause:
        raise ScanUnreadable(name, cause.strerror or "cannot be read") from cause


def expand(patterns: Iterable[str]) -> Iterator[Source | ScanError]:
    """Return what files, folders, globs and archives hold, in order, each once.

    - a folder stands for all files below it, without hidden ones; where it holds a DICOMDIR, for
      the images that this index lists, if it lists any;
    - a zip archive that is named stands for its members, without hidden ones;
    - a DICOMDIR that is named stands for the images that it lists;
    - ``-`` stands for what standard input holds: one file, or a zip archive.

    What names nothing, or cannot be looked at, comes as an error in its place, so that the rest can
    go on.
    """
    seen: set[tuple[Path | None, str]] = set()
    for pattern in patterns:
        nothing = True
        try:
            for found in _expand_one(pattern):
                nothing = False
                if isinstance(found, Source):
                    inside = found.name if found.path is None or found.member else ""
                    if (found.path, inside) in seen:
                        continue
                    seen.add((found.path, inside))
                yield found
        except ScanError as error:
            nothing = False
            yield error
        except OSError as cause:  # no permission, a name that is too long
            nothing = False
            yield ScanUnreadable(pattern, cause.strerror or "cannot be read")
        if nothing:
            yield ScanNotFound(pattern, "no such file or folder, or it holds no files")


def _expand_one(pattern: str) -> Iterator[Source | ScanError]:
    if not pattern:  # Path("") would be the current folder
        return
    path = Path(pattern)
    if pattern == STDIN:
        from medtl_runtime.archives import standard_input

        yield from standard_input(pattern)
    elif path.is_dir():
        yield from _in_folder(path)
    elif path.exists():
        yield from _in_file(path)
    elif any(mark in pattern for mark in "*?["):
        import glob

        for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
            if match != STDIN:
                yield from _expand_one(match)


def _in_file(path: Path) -> Iterator[Source | ScanError]:
    if path.name.upper() == "DICOMDIR":
        from medtl_runtime.archives import listed

        yield from listed(path)
        return
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(4)
        if start in ZIP:
            from medtl_runtime.archives import members

            yield from members(path)
            return
    yield source_of(path)


def _in_folder(folder: Path) -> Iterator[Source | ScanError]:
    index = next((path for path in folder.iterdir() if path.name.upper() == "DICOMDIR"), None)
    if index is not None and index.is_file():
        from medtl_runtime.archives import listed

        try:
            found = list(listed(index))
            if not found:
                raise ScanUnreadable(str(index), "the DICOMDIR lists no images")
            yield from found
            return
        except ScanError as error:  # of the index; the files may be well
            yield error
    yield from map(source_of, files_below(folder))


def source_of(path: Path) -> Source:
    """Return the source that is the file itself."""
    return Source(name=str(path), path=path)


def files_below(folder: Path) -> list[Path]:
    """Return all files below ``folder``, sorted, without hidden ones and DICOMDIR indexes."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name.upper() != "DICOMDIR"
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
