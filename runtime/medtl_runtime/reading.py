"""Opens whatever comes: the format is told by the first bytes, never by the file's name."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.errors import ScanError, ScanNotFound, ScanUnreadable
from medtl_runtime.scan import Scan

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
NPY = b"\x93NUMPY"


def read_scan(source: "str | Path | Dataset | NDArray", name: str | None = None) -> Scan:
    """Read one scan.

    Parameters
    ----------
    source
        The path of a DICOM, PNG, JPEG or NPY file; a ``pydicom.Dataset``; or an array, H x W or
        H x W x 3 (see `images.scan_of_array` for what its values mean).
    name
        How errors and results speak of it; the path by default.

    Raises
    ------
    ScanNotFound, ScanUnreadable, ScanWithoutPixels, ScanUnfit
        As their names say. Pixels are decoded later, so `Scan.frames` can raise as well.
    """
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


def _read_file(path: Path, name: str) -> Scan:
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if not start:
            raise ScanUnreadable(name, "the file is empty")
        if start == PNG or start.startswith(JPEG):
            from medtl_runtime.images import read_picture

            return read_picture(path, name)
        if start.startswith(NPY):
            from medtl_runtime.images import read_npy

            return read_npy(path, name)
        from medtl_runtime.dicom import read_dicom

        return read_dicom(path, name)
    except FileNotFoundError as cause:
        raise ScanNotFound(name, "no such file") from cause
    except OSError as cause:
        raise ScanUnreadable(name, cause.strerror or "cannot be read") from cause


def expand(patterns: Iterable[str]) -> Iterator[Path | ScanError]:
    """Return the files that files, folders and globs name, in order, each once.

    A folder stands for all files below it, except hidden ones and DICOMDIR indexes. What names
    nothing, or cannot be looked at, comes as an error in its place, so that the rest can go on.
    """
    seen: set[Path] = set()
    for pattern in patterns:
        try:
            found = list(_expand_one(pattern))
        except OSError as cause:  # no permission, a name that is too long
            yield ScanUnreadable(pattern, cause.strerror or "cannot be read")
            continue
        if not found:
            yield ScanNotFound(pattern, "no such file or folder, or it holds no files")
        for path in found:
            if path not in seen:
                seen.add(path)
                yield path


def _expand_one(pattern: str) -> Iterator[Path]:
    if not pattern:  # Path("") would be the current folder
        return
    path = Path(pattern)
    if path.is_dir():
        yield from files_below(path)
    elif path.exists():
        yield path
    elif any(mark in pattern for mark in "*?["):
        import glob

        for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
            yield from _expand_one(match)


def files_below(folder: Path) -> list[Path]:
    """Return all files below ``folder``, sorted, without hidden ones and DICOMDIR indexes."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name.upper() != "DICOMDIR"
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
