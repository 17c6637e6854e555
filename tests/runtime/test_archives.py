"""Zip archives, DICOMDIR indexes and standard input."""

import io
import shutil
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medtl_runtime import archives, limits
from medtl_runtime.errors import ScanError, ScanNotFound, ScanTooLarge, ScanUnreadable
from medtl_runtime.limits import MOST_DIRECTORY_BYTES
from medtl_runtime.reading import expand, read_scan
from medtl_runtime.scan import Source


def sources(*patterns: str | Path) -> list[Source]:
    found = []
    for one in expand(map(str, patterns)):
        assert isinstance(one, Source), one
        found.append(one)
    return found


def errors(*patterns: str | Path) -> list[ScanError]:
    return [one for one in expand(map(str, patterns)) if isinstance(one, ScanError)]


@pytest.fixture
def study(tmp_path: Path, shipped: Path) -> Path:
    """A zip archive as others make them: folders, an index, what macOS adds."""
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("folder")
        archive.write(shipped / "CT_small.dcm", "folder/a.dcm", zipfile.ZIP_DEFLATED)
        archive.write(shipped / "MR_small_RLE.dcm", "b", zipfile.ZIP_STORED)
        archive.write(shipped / "SC_rgb_rle_2frame.dcm", "c", zipfile.ZIP_DEFLATED)
        archive.writestr("DICOMDIR", b"an index")
        archive.writestr("__MACOSX/folder/._a.dcm", b"a resource fork")
        archive.writestr("folder/.DS_Store", b"hidden")
    return path


# --- zip archives


def test_an_archive_stands_for_its_members_each_under_its_name(study: Path) -> None:
    assert [str(one) for one in sources(study)] == [
        f"{study}#folder/a.dcm",
        f"{study}#b",
        f"{study}#c",
    ]


def test_a_member_is_read_as_the_file_it_was(study: Path, shipped: Path) -> None:
    names = ("CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_rle_2frame.dcm")
    for source, name in zip(sources(study), names, strict=True):
        scan, alone = read_scan(source), read_scan(shipped / name)
        assert scan.source == str(source)
        assert scan.header == alone.header
        for one, other in zip(scan.frames(), alone.frames(), strict=True):
            np.testing.assert_array_equal(one.values, other.values)


def test_an_archive_is_told_by_its_bytes_and_not_by_its_name(study: Path) -> None:
    other = study.rename(study.with_name("0001.dcm"))
    assert len(sources(other)) == 3


def test_nothing_is_unpacked_to_the_disk(study: Path) -> None:
    before = sorted(study.parent.rglob("*"))
    for source in sources(study):
        list(read_scan(source).frames())
    assert sorted(study.parent.rglob("*")) == before


def test_archives_and_files_come_together_each_once(study: Path, shipped: Path) -> None:
    file = shipped / "CT_small.dcm"
    assert len(sources(study, file, study, file)) == 4


def test_a_damaged_member_is_an_error_of_its_own(study: Path) -> None:
    data = bytearray(study.read_bytes())
    at = data.index(b"DICM", data.index(b"MR_small") if b"MR_small" in data else 0)
    data[at + 600] ^= 0xFF  # within the stored member
    study.write_bytes(data)
    first, second, third = sources(study)
    read_scan(first)
    read_scan(third)
    with pytest.raises(ScanUnreadable, match="damaged in its archive") as error:
        read_scan(second)
    assert error.value.source == f"{study}#b"


def test_an_encrypted_member_is_an_error_of_its_own(study: Path) -> None:
    data = bytearray(study.read_bytes())
    at = data.index(b"PK\x01\x02") + 8
    (name,) = struct.unpack_from("<H", data, at + 20)
    assert name == len("folder/")
    at = data.index(b"PK\x01\x02", at) + 8
    data[at] |= 1
    study.write_bytes(data)
    first, second, _ = sources(study)
    with pytest.raises(ScanUnreadable, match="encrypted"):
        read_scan(first)
    read_scan(second)


def test_a_member_of_another_compression_says_so(tmp_path: Path, shipped: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.write(shipped / "CT_small.dcm", "a")
    with pytest.raises(ScanUnreadable, match="another way than by deflate"):
        read_scan(sources(path)[0])


@pytest.mark.parametrize("share", [0.2, 0.7, 0.99])
def test_an_archive_that_is_cut_short_is_one_error(study: Path, share: float) -> None:
    data = study.read_bytes()
    study.write_bytes(data[: int(len(data) * share)])
    (error,) = errors(study)
    assert isinstance(error, ScanUnreadable)
    assert error.reason == "damaged zip archive"


def test_an_empty_archive_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.zip"
    zipfile.ZipFile(path, "w").close()
    (error,) = errors(path)
    assert isinstance(error, ScanNotFound)


def test_an_archive_within_an_archive_stays_closed(tmp_path: Path, study: Path) -> None:
    path = tmp_path / "outer.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(study, "inner.zip")
    with pytest.raises(ScanUnreadable, match="a zip archive"):
        read_scan(sources(path)[0])
    (in_folder,) = [one for one in sources(tmp_path) if one.name.endswith("study.zip")]
    with pytest.raises(ScanUnreadable, match="a zip archive"):
        read_scan(in_folder)


def test_a_member_that_claims_too_much_is_refused_before_it_is_inflated(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_BYTES", 1000)
    first, second, _ = sources(study)
    for source in (first, second):
        with pytest.raises(ScanTooLarge):
            read_scan(source)


def test_a_member_that_holds_more_than_it_claims_is_not_inflated_further(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(50_000_000))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    assert struct.unpack_from("<L", data, at) == (50_000_000,)
    data[at : at + 4] = struct.pack("<L", 1000)
    path.write_bytes(data)
    with pytest.raises(ScanUnreadable, match="damaged in its archive"):
        read_scan(sources(path)[0])


def test_an_archive_of_too_many_members_is_refused(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 6)
    (error,) = errors(study)
    assert isinstance(error, ScanTooLarge)
    assert (error.attribute, error.found) == ("members", 7)


def test_an_archive_whose_directory_is_too_long_is_refused_before_it_is_parsed(
    tmp_path: Path,
) -> None:
    """1.4 million names of one letter: zipfile alone takes 11 s and 600 MiB for them."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, *[0] * 8, 1, *[0] * 6) + b"a"
    directory = entry * 1_400_000
    ends = (0, 0, 0xFFFF, 0xFFFF, len(directory), 30, 0)
    end = struct.pack("<4s4H2LH", b"PK\5\6", *ends)
    path = tmp_path / "many.zip"
    path.write_bytes(b"PK\3\4" + bytes(26) + directory + end)
    tracemalloc.start()
    (error,) = errors(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(error, ScanTooLarge)
    assert "directory" in error.reason
    assert peak < 3 * MOST_DIRECTORY_BYTES


def test_damaged_archives_give_scans_or_errors(study: Path) -> None:
    data = study.read_bytes()
    directory = data.index(b"PK\x01\x02")
    random = np.random.default_rng(11)
    outcomes = set()
    for _ in range(200):
        damaged = bytearray(data)
        for at in random.integers(directory, len(data), 3):
            damaged[at] = random.integers(256)
        study.write_bytes(damaged)
        for one in expand([str(study)]):
            if isinstance(one, ScanError):
                outcomes.add(one.code)
                continue
            try:
                outcomes.add(type(read_scan(one)).__name__)
            except ScanError as error:
                outcomes.add(error.code)
    assert outcomes >= {"Scan", "scan-unreadable"}


# --- standard input


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def pipe(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return pipe


def test_standard_input_is_one_scan(piped: Callable[[bytes], None], shipped: Path) -> None:
    piped((shipped / "CT_small.dcm").read_bytes())
    (source,) = sources("-")
    assert str(source) == "-"
    scan = read_scan(source)
    assert scan.source == "-"
    (frame,) = scan.frames()
    (again,) = scan.frames()
    np.testing.assert_array_equal(frame.values, again.values)


def test_standard_input_may_be_an_archive(piped: Callable[[bytes], None], study: Path) -> None:
    piped(study.read_bytes())
    found = sources("-")
    assert [str(one) for one in found] == ["-#folder/a.dcm", "-#b", "-#c"]
    assert [read_scan(one).header.modality for one in found] == ["CT", "MR", "OT"]


def test_empty_standard_input_says_so(piped: Callable[[bytes], None]) -> None:
    piped(b"")
    (error,) = errors("-")
    assert isinstance(error, ScanUnreadable)


def test_standard_input_without_end_is_refused(
    monkeypatch: pytest.MonkeyPatch, piped: Callable[[bytes], None]
) -> None:
    monkeypatch.setattr(limits, "MOST_BYTES", 1000)
    piped(bytes(1001))
    (error,) = errors("-")
    assert isinstance(error, ScanTooLarge)


# --- DICOMDIR


@pytest.fixture
def disc(tmp_path: Path, shipped: Path) -> Path:
    """A copy of a disc with an index: 31 images of three patients."""
    folder = tmp_path / "disc"
    shutil.copytree(shipped / "dicomdirtests", folder)
    return folder


def test_an_index_stands_for_the_images_that_it_lists_in_its_order(disc: Path) -> None:
    index = pydicom.dcmread(disc / "DICOMDIR")
    listed = [
        disc.joinpath(*record.ReferencedFileID)
        for record in index.DirectoryRecordSequence
        if record.DirectoryRecordType == "IMAGE"
    ]
    found = sources(disc / "DICOMDIR")
    assert len(found) == 31
    assert [one.path for one in found] == listed
    modalities = {read_scan(one).header.modality for one in found}
    assert modalities == {"CR", "CT", "MR"}


def test_a_folder_with_an_index_is_what_the_index_lists(disc: Path) -> None:
    (disc / "AUTORUN.EXE").write_bytes(b"MZ")
    assert sources(disc) == sources(disc / "DICOMDIR")


def test_an_image_that_is_listed_but_missing_is_an_error_in_its_place(disc: Path) -> None:
    gone = sources(disc)[3]
    assert gone.path is not None
    gone.path.unlink()
    found = list(expand([str(disc)]))
    assert len(found) == 31
    error = found[3]
    assert isinstance(error, ScanNotFound)
    assert error.source == str(gone)


def test_discs_that_were_copied_to_lower_case_or_with_versions_are_read(disc: Path) -> None:
    for path in sorted(disc.rglob("*"), reverse=True):
        if path.name != "DICOMDIR":
            version = ";1" if path.is_file() else ""
            path.rename(path.with_name(path.name.lower() + version))
    found = sources(disc)
    assert len(found) == 31
    assert read_scan(found[0]).header.is_dicom


@pytest.mark.parametrize(
    "file_id",
    [["..", "secret"], ["/etc", "passwd"], ["a/../..", "secret"], [".", "secret"], ["C:"]],
)
def test_an_index_cannot_name_files_outside_its_folder(
    disc: Path, shipped: Path, file_id: list[str]
) -> None:
    shutil.copy(shipped / "CT_small.dcm", disc.parent / "secret")
    dataset = pydicom.dcmread(disc / "DICOMDIR")
    images = [r for r in dataset.DirectoryRecordSequence if r.DirectoryRecordType == "IMAGE"]
    images[0].ReferencedFileID = file_id
    dataset.save_as(disc / "DICOMDIR")
    first = next(iter(expand([str(disc / "DICOMDIR")])))
    assert isinstance(first, ScanUnreadable)
    assert "outside its folder" in first.reason
    assert len(sources(*(one.name for one in expand([str(disc)]) if isinstance(one, Source)))) == 30


def test_an_index_cannot_lead_out_by_a_symbolic_link(disc: Path, shipped: Path) -> None:
    shutil.copy(shipped / "CT_small.dcm", disc.parent / "secret")
    first = sources(disc)[0]
    assert first.path is not None
    first.path.unlink()
    first.path.symlink_to(disc.parent / "secret")
    (error,) = errors(disc)
    assert "outside its folder" in error.reason


def test_with_a_damaged_index_a_folder_is_all_its_files(disc: Path) -> None:
    files = len([path for path in disc.rglob("*") if path.is_file() and path.name != "DICOMDIR"])
    (disc / "DICOMDIR").write_bytes((disc / "DICOMDIR").read_bytes()[:3000])
    first, *others = expand([str(disc)])
    assert isinstance(first, ScanUnreadable)
    assert len(others) == files


@pytest.mark.parametrize("defined", [True, False])
def test_an_index_of_very_many_items_is_refused(
    disc: Path, defined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_HEADER_CALLS", 50_000)
    data = (disc / "DICOMDIR").read_bytes()
    at = data.index(struct.pack("<HH", 0x0004, 0x1220))
    items = (b"\xfe\xff\x00\xe0" + bytes(4)) * 40_000
    length = struct.pack("<L", len(items) if defined else 0xFFFFFFFF)
    (disc / "DICOMDIR").write_bytes(data[: at + 4] + b"SQ\0\0" + length + items)
    (error,) = errors(disc / "DICOMDIR")
    assert isinstance(error, ScanTooLarge)


def test_an_index_of_undefined_lengths_is_read(disc: Path) -> None:
    expected = sources(disc)
    dataset = pydicom.dcmread(disc / "DICOMDIR")
    dataset["DirectoryRecordSequence"].is_undefined_length = True
    for record in dataset.DirectoryRecordSequence:
        record.is_undefined_length_sequence_item = True
    dataset.save_as(disc / "DICOMDIR")
    assert sources(disc) == expected


def test_with_an_index_that_lists_no_images_a_folder_is_all_its_files(disc: Path) -> None:
    files = len(sources(disc))
    dataset = pydicom.dcmread(disc / "DICOMDIR")
    dataset.DirectoryRecordSequence = []
    dataset.save_as(disc / "DICOMDIR")
    first, *others = expand([str(disc)])
    assert isinstance(first, ScanUnreadable)
    assert first.reason == "the DICOMDIR lists no images"
    assert len(others) >= files


def test_an_index_that_is_none_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "DICOMDIR").write_bytes(b"no index")
    (error,) = errors(tmp_path / "DICOMDIR")
    assert isinstance(error, ScanUnreadable)
