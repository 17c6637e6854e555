"""Zip archives, DICOMDIR indexes and standard input: what holds several scans, or has no path.

Nothing is unpacked to the disk. The directory of an archive is read once; where a member lies goes
with its `Source`, so that it is read later, in another process if need be, without the directory.
"""

import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from medtl_runtime.errors import ScanError, ScanNotFound, ScanTooLarge, ScanUnreadable
from medtl_runtime.limits import (
    MOST_BYTES,
    MOST_DIRECTORY_BYTES,
    MOST_MEMBERS,
    Budget,
    BudgetedFile,
    check_bytes,
    inflate,
    open_file,
    raise_if_spent,
    read_all,
)
from medtl_runtime.scan import Member, Source

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a member: signature, and the lengths of name and extra field (APPNOTE 4.3.7)."""

_ENCRYPTED = 0x1

_INDEX = "DICOMDIR"


def members(path: Path) -> Iterator[Source | ScanError]:
    """Yield the files in a zip archive, in its order, without hidden ones and DICOMDIR indexes.

    Raises
    ------
    ScanUnreadable
        The archive is damaged.
    ScanTooLarge
        It has more than `MOST_MEMBERS` members.
    """
    with open_file(path, str(path)) as file:
        found = _directory(file, str(path))
    for member in found:
        yield Source(name=f"{path}#{member.name}", path=path, member=member)


def _directory(file: BinaryIO, name: str) -> list[Member]:
    """Return the members that an archive lists."""
    try:
        budget = Budget(name, what="archive's directory", most_bytes=MOST_DIRECTORY_BYTES)
        infos = zipfile.ZipFile(cast(BinaryIO, _DirectoryFile(file, budget))).infolist()
    except ScanError:
        raise
    except Exception as cause:  # zipfile lets many kinds through on damaged archives
        raise ScanUnreadable(name, "damaged zip archive") from cause
    if len(infos) > MOST_MEMBERS:
        raise ScanTooLarge(
            name,
            f"an archive of {len(infos)} members; at most {MOST_MEMBERS} are taken in",
            attribute="members",
            found=len(infos),
            expected=f"at most {MOST_MEMBERS}",
        )
    return [
        Member(
            name=info.filename,
            offset=info.header_offset,
            method=info.compress_type,
            compressed=info.compress_size,
            size=info.file_size,
            crc=info.CRC,
            encrypted=bool(info.flag_bits & _ENCRYPTED),
        )
        for info in infos
        if not info.is_dir() and _is_shown(info.filename)
    ]


class _DirectoryFile(BudgetedFile):
    """The end of an archive, which zipfile reads without saying how much that is."""

    def read(self, size: int = -1) -> bytes:
        return super().read(MOST_DIRECTORY_BYTES if size < 0 else size)


def _is_shown(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and parts[-1].upper() != _INDEX


def read_member(archive: Path | bytes, member: Member, name: str) -> bytes:
    """Return the bytes of a member; ``name`` is how errors speak of it.

    Raises
    ------
    ScanUnreadable
        It is damaged, encrypted, or compressed in another way than by deflate.
    ScanTooLarge
        It holds more than `MOST_BYTES`.
    OSError
        The file system's own.
    """
    if member.encrypted:
        raise ScanUnreadable(name, "encrypted in its archive")
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ScanUnreadable(name, "compressed in its archive in another way than by deflate")
    check_bytes(max(member.size, member.compressed), name)
    if member.offset < 0:
        raise ScanUnreadable(name, "damaged zip archive")
    with open_file(archive, name) as file:
        file.seek(member.offset)
        start = file.read(_LOCAL_HEADER.size)
        if len(start) < _LOCAL_HEADER.size or not start.startswith(b"PK\x03\x04"):
            raise ScanUnreadable(name, "damaged zip archive")
        _, name_length, extra_length = _LOCAL_HEADER.unpack(start)
        file.seek(name_length + extra_length, io.SEEK_CUR)
        data = file.read(member.compressed)
    if member.method == zipfile.ZIP_DEFLATED:
        data = inflate(data, member.size, name)
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise ScanUnreadable(name, "damaged in its archive")
    return data


# --- standard input


def standard_input(name: str) -> Iterator[Source | ScanError]:
    """Yield what standard input holds: one file, or the members of a zip archive.

    Raises
    ------
    ScanTooLarge
        More than `MOST_BYTES`, or so much in all members together.
    ScanUnreadable
        Nothing, or a damaged archive.
    """
    data = read_all(sys.stdin.buffer, name)
    if not data:
        raise ScanUnreadable(name, "standard input is empty")
    if not data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield Source(name=name, path=None, content=data)
        return
    left = MOST_BYTES
    for member in _directory(io.BytesIO(data), name):
        inside = f"{name}#{member.name}"
        left -= member.size
        check_bytes(MOST_BYTES - left, name)
        try:
            content = read_member(data, member, inside)
        except ScanError as error:
            yield error
            continue
        yield Source(name=inside, path=None, content=content)


# --- DICOMDIR


def listed(index: Path) -> Iterator[Source | ScanError]:
    """Yield the images that a DICOMDIR lists (PS3.3 Annex F), in its order.

    Only IMAGE records are followed: others are reports, presentation states and the like. File IDs
    are upper case, but discs are often copied to lower case or with the version ";1" of ISO 9660;
    such files are found.

    Raises
    ------
    ScanUnreadable, ScanTooLarge
        The index is damaged or too large.
    """
    name = str(index)
    folders: dict[Path, dict[str, Path]] = {}
    for parts in _file_ids(index):
        path = index.parent.joinpath(*parts)
        if not _is_below(parts):
            yield ScanUnreadable(name, "refers to a file outside its folder")
            continue
        found = _find(index.parent, parts, folders)
        if found is None:
            yield ScanNotFound(str(path), "listed by the DICOMDIR, but not there")
        elif not found.resolve().is_relative_to(index.parent.resolve()):
            yield ScanUnreadable(name, "refers to a file outside its folder")
        else:
            yield Source(name=str(found), path=found)


def _file_ids(index: Path) -> list[tuple[str, ...]]:
    from pydicom.multival import MultiValue

    name = str(index)
    try:
        ids = [
            record["ReferencedFileID"].value
            for record in _records(index, name)
            if record.get("DirectoryRecordType") == "IMAGE" and "ReferencedFileID" in record
        ]
        several = [one if isinstance(one, MultiValue | list) else [one] for one in ids]
        return [tuple(str(part) for part in one if part) for one in several]
    except (ScanError, FileNotFoundError, PermissionError):
        raise
    except Exception as cause:
        raise_if_spent(cause)
        raise ScanUnreadable(name, f"damaged DICOMDIR ({type(cause).__name__})") from cause


def _records(index: Path, name: str) -> "Iterable[Dataset]":
    from pydicom.dataelem import RawDataElement
    from pydicom.filereader import read_partial
    from pydicom.tag import Tag

    from medtl_runtime.sequences import parse_items

    budget = Budget(name)
    with open_file(index, name) as file:
        budgeted = cast(BinaryIO, BudgetedFile(file, budget))
        dataset = read_partial(budgeted, specific_tags=[Tag("DirectoryRecordSequence")])
    element = dataset.get_item("DirectoryRecordSequence")
    if not isinstance(element, RawDataElement):  # of undefined length: parsed already
        return dataset["DirectoryRecordSequence"].value
    if len(element.value or b"") < element.length:
        raise ScanUnreadable(name, "the DICOMDIR is cut short")
    tags = [Tag("DirectoryRecordType"), Tag("ReferencedFileID")]
    return parse_items(element, tags, budget, dataset.original_character_set)


def _is_below(parts: tuple[str, ...]) -> bool:
    """Whether components name a file below a folder, and no way out of it."""
    odd = {"", ".", ".."}
    return bool(parts) and not any(
        part in odd or "/" in part or "\\" in part or ":" in part or "\0" in part for part in parts
    )


def _find(
    folder: Path, parts: tuple[str, ...], folders: dict[Path, dict[str, Path]]
) -> Path | None:
    """Return the file of a file ID, whatever its case; ``folders`` remembers what was listed."""
    path = folder
    for part in parts:
        if path not in folders:
            listing = sorted(path.iterdir()) if path.is_dir() else []
            folders[path] = {_plain(entry.name): entry for entry in listing}
        found = folders[path].get(_plain(part))
        if found is None:
            return None
        path = found
    return path if path.is_file() else None


def _plain(name: str) -> str:
    return name.casefold().partition(";")[0].rstrip(".")
