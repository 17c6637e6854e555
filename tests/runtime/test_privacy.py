"""Nothing of a patient gets into a log: not into stderr, which services keep, nor the audit log.

Names, identifiers, dates and paths are planted wherever a header, a file name or the text of an
exception could carry them out. Results on stdout do name scans.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from medtl_runtime import cli
from medtl_runtime.audit import verify
from medtl_runtime.intended_use import IntendedUse, Rule

Infer = Callable[..., Any]
MakeModel = Callable[..., Path]

INSTANCE = "1.2.826.0.1.7734199.42"
PATIENT = {
    "PatientName": "QUIXLEY^ZORBA",
    "PatientID": "ZQ7734199",
    "PatientBirthDate": "19610203",
    "StudyDate": "20190817",
    "AccessionNumber": "ACC8842017",
    "InstitutionName": "Marlowdene Infirmary",
    "ReferringPhysicianName": "VANTERPOOL^OSWIN",
    "SOPInstanceUID": INSTANCE,
}
SECRETS = re.compile(
    "quixley|zorba|7734199|19610203|1961-02-03|20190817|2019-08-17|8842017|marlowdene"
    "|vanterpool|oswin",
    re.IGNORECASE,
)
FOLDER = "Quixley_Zorba_1961-02-03"
TEXT = " ".join(PATIENT.values())

# Attributes that medtl or pydicom reads, given a text that is not what they should hold.
CORRUPTED = (
    *("NumberOfFrames", "WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"),
    *("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "PatientAge"),
    *("Rows", "BitsStored", "SamplesPerPixel", "PixelRepresentation", "PixelPaddingValue"),
    *("PhotometricInterpretation", "Modality", "BodyPartExamined", "ImageType", "StudyDate"),
    *("SOPInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SpecificCharacterSet"),
    *("VOILUTFunction", "PresentationLUTShape", "PatientBirthDate", "BurnedInAnnotation"),
)


def leaks(text: str) -> list[str]:
    """Return the lines that hold a secret."""
    return [line for line in text.splitlines() if SECRETS.search(line)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, shipped: Path) -> Path:
    """Return a good file with a patient in it."""
    path = tmp_path_factory.mktemp("original") / "original.dcm"
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    for keyword, value in PATIENT.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(INSTANCE)
    dataset.save_as(path)
    return path


def corrupted(path: Path, keyword: str) -> pydicom.Dataset:
    """Return the file with an attribute that holds the patient's name instead of what it should."""
    dataset = pydicom.dcmread(path)
    tag = tag_for_keyword(keyword)
    assert tag is not None
    value = b"QUIXLEY^ZORBA 19610203"
    kind = dictionary_VR(tag).split(" or ")[0]
    dataset[tag] = RawDataElement(Tag(tag), kind, len(value), value, 0, False, True)
    return dataset


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory, original: Path, shipped: Path) -> Path:
    """Return a folder of good and bad files, its name and theirs made of a patient's data."""
    folder = tmp_path_factory.mktemp("scans") / FOLDER
    (folder / "ZQ7734199").mkdir(parents=True)
    for name in ("Quixley.dcm", "ZQ7734199/zorba-1.dcm", "ZQ7734199/zorba-2.dcm"):
        shutil.copy(original, folder / name)
    for keyword in CORRUPTED:
        corrupted(original, keyword).save_as(folder / f"Quixley-{keyword}.dcm")
    whole = original.read_bytes()
    syntax = ExplicitVRLittleEndian.encode()
    assert whole.count(syntax) == 1
    (folder / "Quixley-syntax.dcm").write_bytes(
        whole.replace(syntax, b"QUIXLEY^ZORBA 19610203"[: len(syntax)])
    )
    for size in (200, 1000, 4000):
        (folder / f"Quixley-cut-{size}.dcm").write_bytes(whole[:size])
    chance = random.Random(7734199)
    for number in range(12):
        damaged = bytearray(whole)
        for _ in range(20):
            damaged[chance.randrange(132, 2000)] ^= 1 << chance.randrange(8)
        (folder / f"Quixley-flipped-{number}.dcm").write_bytes(damaged)
    _put_others(folder, whole)
    for name in ("reportsi.dcm", "SC_rgb_rle.dcm", "MR_truncated.dcm"):
        shutil.copy(shipped / name, folder / f"Quixley-{name}")
    return folder


def _put_others(folder: Path, whole: bytes) -> None:
    """Put files of other formats there, good and bad."""
    (folder / "Quixley.txt").write_text(TEXT * 20)
    (folder / "Quixley-empty.dcm").touch()
    (folder / "Quixley-dangling.dcm").symlink_to(folder / "zorba")
    os.mkfifo(folder / "Quixley-pipe.dcm")
    header = b"{'descr': 'QUIXLEY', 'fortran_order': False, 'shape': (8, 8), }\n"
    (folder / "Quixley.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
    )
    note = PngInfo()
    note.add_text("Author", TEXT)
    png = folder / "Quixley.png"
    Image.fromarray(np.full((32, 32), 90, np.uint8)).save(png, pnginfo=note)
    (folder / "Quixley-cut.png").write_bytes(png.read_bytes()[:200])
    with zipfile.ZipFile(folder / "Quixley.zip", "w") as archive:
        archive.writestr("Quixley/zorba.dcm", whole)
        archive.writestr("Quixley/zorba.txt", TEXT)
        archive.writestr("../Quixley/zorba-out.dcm", whole)
    zipped = (folder / "Quixley.zip").read_bytes()
    (folder / "Quixley-cut.zip").write_bytes(zipped[: len(zipped) // 2])
    (folder / "Quixley-damaged.zip").write_bytes(zipped.replace(b"QUIXLEY^ZORBA", b"quixley^zorba"))


ABSENT = ("Quixley-none.dcm", "zorba*.none", "Quixley" * 60)
FEW = (
    *("Quixley.dcm", "Quixley.png", "Quixley-PatientAge.dcm", "Quixley-BodyPartExamined.dcm"),
    *("Quixley-WindowCenter.dcm", "Quixley-cut-1000.dcm", "Quixley-flipped-0.dcm", "Quixley.txt"),
    *("Quixley.npy", "Quixley-SC_rgb_rle.dcm", "Quixley-reportsi.dcm", *ABSENT),
)
"""One of each kind; so few are read in the command's own process."""


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Path:
    """Return a model that refuses some of the files for what their headers say."""
    rules = (
        Rule(attribute="Modality", values=("MR", "CT"), missing="allow"),
        Rule(attribute="BodyPartExamined", forbidden=("QUIXLEY^ZORBA 19610203",), missing="allow"),
        Rule(attribute="PatientAge", low=99, mismatch="warn", missing="warn"),
    )
    return make_model(intended_use=IntendedUse(rules=rules))


@contextlib.contextmanager
def caught_stderr(path: Path) -> Iterator[None]:
    """Write into a file what decoders and other processes print past Python."""
    before = os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


OUTPUTS: dict[str, list[str]] = {
    "table": [],
    "json": ["--json"],
    "quiet": ["--quiet"],
    "csv": ["--csv", "findings.csv"],
    "heatmap": ["--heatmap", "maps"],
    "heatmap in no folder": ["--heatmap", "file"],
    "heatmap-dicom": ["--heatmap-dicom", "captures"],
    "sr": ["--sr", "reports"],
    "series": ["--series"],
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_neither_stderr_nor_the_audit_log_holds_patient_data(
    infer: Infer, model: Path, scans: Path, tmp_path: Path, kind: str
) -> None:
    if kind in ("heatmap-dicom", "sr"):
        pytest.importorskip("highdicom")
    (tmp_path / "file").touch()
    log = tmp_path / "audit.jsonl"
    files = [scans / name for name in FEW]
    with caught_stderr(tmp_path / "stderr"):
        done = infer(*files, *OUTPUTS[kind], "--audit", log, "--model", model)
        again = infer(*files, *OUTPUTS[kind], "--audit", log, "--model", model)
    assert done.code == 3
    assert again.code in (1, 2, 3)  # its outputs are there already
    assert "internal error" not in done.err + again.err
    assert leaks(done.err + again.err) == []
    assert leaks((tmp_path / "stderr").read_text(errors="replace")) == []
    assert leaks(log.read_text()) == []
    assert verify(log).entries > 2
    if kind in ("table", "json"):  # they are there to be seen
        assert len(leaks(done.out)) >= len(FEW)
        scanned = [one for one in entries(log) if one["event"] == "scan"]
        assert {one["status"] for one in scanned} == {"ok", "error", "refused"}
        assert len(scanned) == 2 * len(FEW)


@pytest.mark.parametrize("options", [[], ["--workers", "1", "--batch-size", "4"]])
def test_a_folder_that_others_read_leaves_nothing(
    model: Path, scans: Path, tmp_path: Path, options: list[str]
) -> None:
    """In processes of their own, which may print past Python."""
    log = tmp_path / "audit.jsonl"
    command = [sys.executable, "-m", "medtl_runtime.cli", scans, "--audit", log, "--json"]
    done = subprocess.run(
        [*command, *options, "--model", model], capture_output=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 3
    assert leaks(done.stderr.decode(errors="replace")) == []
    assert leaks(log.read_text()) == []
    outcomes = done.stdout.splitlines()
    assert len(outcomes) > len(CORRUPTED) + 20
    assert [one["event"] for one in entries(log)].count("scan") == len(outcomes)


def test_the_reasons_of_refusals_are_there_without_what_was_found(
    infer: Infer, model: Path, scans: Path, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    names = (scans / name for name in FEW)
    done = infer(*names, "--json", "--audit", log, "--model", model)
    rows = [json.loads(line) for line in done.out.splitlines()]
    refused = {row["attribute"]: row for row in rows if row["status"] == "refused"}
    assert SECRETS.search(json.dumps(refused["BodyPartExamined"]["found"]))
    written = [one for one in entries(log) if one.get("attribute") == "BodyPartExamined"]
    assert [(one["status"], one["reason"]) for one in written] == [("refused", "scan-out-of-scope")]
    assert written[0]["instance"] is not None


@pytest.mark.parametrize("content", ["whole", "cut"])
def test_a_scan_from_standard_input_leaves_nothing(
    model: Path, original: Path, tmp_path: Path, content: str
) -> None:
    whole = original.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "medtl_runtime.cli", "-", "--audit", "a.jsonl", "--model", model],
        input=whole if content == "whole" else whole[:1000] + TEXT.encode(),
        capture_output=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == (0 if content == "whole" else 3)
    assert leaks(done.stderr.decode(errors="replace")) == []
    log = tmp_path / "a.jsonl"
    assert leaks(log.read_text()) == []
    (one,) = [entry for entry in entries(log) if entry["event"] == "scan"]
    assert one["status"] == ("ok" if content == "whole" else "error")


def test_a_watched_folder_leaves_nothing(model: Path, scans: Path, tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in FEW:
        if name not in ABSENT:
            shutil.copy(scans / name, folder)
    count = len(FEW) - len(ABSENT)
    log = tmp_path / "audit.jsonl"
    command = [sys.executable, "-m", "medtl_runtime.cli", "--watch", folder, "--audit", log]
    with (
        (tmp_path / "stderr").open("wb") as stderr,
        subprocess.Popen(
            [*command, "--model", model], stdout=subprocess.DEVNULL, stderr=stderr, cwd=tmp_path
        ) as running,
    ):
        try:
            limit = time.monotonic() + 30
            while running.poll() is None and time.monotonic() < limit:
                if log.exists() and log.read_bytes().count(b'"event":"scan"') >= count:
                    break
                time.sleep(0.1)
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(timeout=20)
    assert leaks((tmp_path / "stderr").read_text(errors="replace")) == []
    assert leaks(log.read_text()) == []
    events = [one["event"] for one in entries(log)]
    assert (events[0], events[-1]) == ("start", "stop")
    assert events.count("scan") >= count


def test_every_option_that_writes_is_among_these_tests() -> None:
    """Add a new option to the tests above, or to those that write nothing of a scan."""
    covered = {word for options in OUTPUTS.values() for word in options if word.startswith("--")}
    covered |= {"--audit", "--batch-size", "--model", "--watch", "--workers"}
    without_scans = {
        *(
            "--device",
            "--threads",
            "--codes",
            "--head",
            "--site",
            "--no-site",
            "--require-signature",
        ),
        *("--info", "--selftest", "--schema", "--overwrite", "--config"),
        *("--version", "--help", "-h", "--audit-key"),
    }
    command = cli.infer
    options = {
        name for parameter in command.params for name in parameter.opts if name.startswith("-")
    }
    assert options - covered - without_scans == set()
