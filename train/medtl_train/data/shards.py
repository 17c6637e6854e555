"""The files of the image cache: a shard holds the images of some hundred files, and never changes.

a81f….npy           canonical images, uint16, n x C x H x W; memory-mapped when it is read
a81f….index.npz     whose they are; written last, so a shard without an index is not whole
"""

import io
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from medtl_runtime.files import written_whole
from medtl_runtime.scan import Header
from medtl_train.data.decoding import Decoded, joined

INDEX = ".index.npz"

Stamp = tuple[int, int]
"""Size of a file in bytes, and when it was changed, in ns."""

_DECODERS = (
    "numpy", "pillow", "pydicom", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "python-gdcm",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """A file of which a shard holds the frames."""

    source: str
    stamp: Stamp
    """Of the file when it was read."""
    decoded: Decoded


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """A shard as it was found."""

    made_by: str
    """`pixel_path` of the code that wrote it."""
    kept: tuple[Kept, ...]


def remove_shard(index: Path) -> None:
    """Remove the files of a shard; who has mapped them keeps what is mapped."""
    for path in (index, _pixels_of(index)):
        with suppress(OSError):
            path.unlink()


def write_shard(folder: Path, kept: Mapping[str, tuple[Stamp, Decoded]]) -> Path:
    """Write what files hold, by source, and return the path of the index.

    Raises
    ------
    OutputNotWritten
        The disk is full, or the folder cannot be written to.
    """
    whole = joined(decoded for _, decoded in kept.values())
    index = folder / f"{secrets.token_hex(8)}{INDEX}"
    with written_whole(_pixels_of(index)) as part, part.open("wb") as file:
        np.save(file, whole.pixels)
    about = {"made_by": pixel_path(), "files": list(_entries(kept))}
    with written_whole(index) as part, part.open("wb") as file:
        np.savez(
            file,
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
            thumbnails=whole.thumbnails,
            statistics=whole.statistics,
        )
    return index


def _entries(kept: Mapping[str, tuple[Stamp, Decoded]]) -> Iterator[dict[str, Any]]:
    for source, (stamp, decoded) in kept.items():
        yield {
            "source": source,
            "stamp": stamp,
            "header": _header_to_json(decoded.header),
            "digests": decoded.digests,
        }


def read_shard(index: Path) -> Shard | None:
    """Open a shard; None where it is gone or damaged, which costs no more than decoding again."""
    try:
        with np.load(index, allow_pickle=False) as found:
            about = json.loads(found["about"].tobytes())
            thumbnails, statistics = found["thumbnails"], found["statistics"]
        # A view without np.memmap's own bookkeeping, which takes time at each index.
        pixels = np.asarray(np.load(_pixels_of(index), mmap_mode="r", allow_pickle=False))
        kept, first = [], 0
        for entry in about["files"]:
            rows = slice(first, first + len(entry["digests"]))
            decoded = Decoded(
                header=_header_from_json(entry["header"]),
                pixels=pixels[rows],
                digests=tuple(entry["digests"]),
                thumbnails=thumbnails[rows],
                statistics=statistics[rows],
            )
            kept.append(Kept(source=entry["source"], stamp=tuple(entry["stamp"]), decoded=decoded))
            first = rows.stop
        if first != len(pixels):
            return None
        return Shard(made_by=about["made_by"], kept=tuple(kept))
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile):
        return None


def _pixels_of(index: Path) -> Path:
    return index.with_name(index.name.removesuffix(INDEX) + ".npy")


def _header_to_json(header: Header) -> dict[str, Any]:
    return {
        field.name: getattr(header, field.name)
        for field in fields(Header)
        if getattr(header, field.name) != field.default
    }


_NO_HEADER = Header()


def _header_from_json(data: dict[str, Any]) -> Header:
    if not data:
        return _NO_HEADER
    return Header(**{name: _tuples(value) for name, value in data.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@cache
def pixel_path() -> str:
    """Return a digest of the code that makes pixels: of this version, and what it decodes with.

    All of the runtime's modules take part. Which of them can change a pixel is not worth a list
    that may fall behind.
    """
    ours = [path for path in files("medtl_runtime").iterdir() if path.name.endswith(".py")]
    ours.append(files("medtl_train.data") / "decoding.py")
    text = io.BytesIO()
    for path in sorted(ours, key=lambda path: path.name):
        text.write(path.read_bytes())
    for package in _DECODERS:
        with suppress(PackageNotFoundError):
            text.write(f"{package} {version(package)}\n".encode())
    return sha256(text.getvalue()).hexdigest()
