"""Files that are written for outcomes: their names, their order, and what stops one of them."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import UID

from medtl_runtime import Predictor
from medtl_runtime.companions import Companion, HeatMaps, Names, Reports, SecondaryCaptures
from medtl_runtime.decision import plain_decision
from medtl_runtime.errors import OutputExists, OutputNotWritten, ScanError, ScanUnfit
from medtl_runtime.heads import Head
from medtl_runtime.inference import Sourced
from medtl_runtime.reading import expand, read_scan
from medtl_runtime.results import CaseResult, Failure
from medtl_runtime.scan import Source
from medtl_runtime.series import Case, group
from medtl_runtime.testing import FakeEngine, describe

HEADS = (Head(name="label", classes=("negative", "positive")),)


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(engine=FakeEngine(describe()))


def outcomes(predictor: Predictor, *paths: Path | str) -> Iterator[Sourced]:
    for source in expand(map(str, paths)):
        assert isinstance(source, Source)
        for outcome in predictor.outcomes(source):
            yield outcome, {outcome.scan: source}


def write_all(companion: Companion, found: Iterator[Sourced]) -> list[list[Path]]:
    written = [companion.write(*one) for one in found]
    companion.finish()
    return written


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def series(folder: Path, shipped: Path, count: int = 3) -> list[Path]:
    """Write a small regular series and return its files."""
    folder.mkdir()
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    for number in range(count):
        dataset.SOPInstanceUID = f"1.2.3.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
        dataset.ImagePositionPatient = [0, 0, 2 * number]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.save_as(folder / f"{number}.dcm")
    return sorted(folder.iterdir())


# --- names


@pytest.mark.parametrize(
    ("scan", "frame", "name"),
    [
        ("a.dcm", None, "a.png"),
        ("folder/deep/a.dcm", 0, "a.png"),
        ("a.dcm", 7, "a-frame7.png"),
        ("grey.png", 0, "grey.png.png"),
        ("cd.zip#one/two/a.dcm", 0, "a.png"),
        ("study#1.2.840.9", None, "1.2.840.9.png"),
        ("-", 0, "-.png"),
        (".dcm", 0, "scan.png"),
        ("cd.zip#../../out.dcm", 0, "out.png"),
        ("cd.zip#..", 0, "...png"),
    ],
)
def test_a_file_is_named_after_its_scan_and_stays_in_the_folder(
    tmp_path: Path, scan: str, frame: int | None, name: str
) -> None:
    path = Names(tmp_path, ".png", overwrite=False).take(scan, frame)
    assert path == tmp_path / name
    assert path.resolve().parent == tmp_path.resolve()


def test_no_two_images_of_a_run_have_one_name(tmp_path: Path) -> None:
    names = Names(tmp_path, ".png", overwrite=True)
    scans = ["a/x.dcm", "b/x.dcm", "x-2.dcm", "c/x.dcm", "x"]
    found = [names.take(scan).name for scan in scans]
    assert found == ["x.png", "x-2.png", "x-2-2.png", "x-3.png", "x-4.png"]


def test_a_file_of_an_earlier_run_is_refused_replaced_or_passed_by(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    refusing = Names(tmp_path, ".png", overwrite=False)
    for _ in range(2):  # the second frame, too
        with pytest.raises(OutputExists):
            refusing.take("a.dcm")
    assert Names(tmp_path, ".png", overwrite=True).take("a.dcm").name == "a.png"
    assert Names(tmp_path, ".png", overwrite=False, number=True).take("a.dcm").name == "a-2.png"
    both = Names(tmp_path, ".png", overwrite=True, number=True)
    assert both.take("a.dcm").name == "a.png"


# --- heat maps


def test_each_frame_gets_a_picture_and_a_failure_none(
    predictor: Predictor, cine: Path, shipped: Path, tmp_path: Path
) -> None:
    maps = HeatMaps(Names(tmp_path / "maps", ".png", overwrite=False))
    found = outcomes(predictor, cine, shipped / "MR_truncated.dcm")
    written = write_all(maps, found)
    assert written[-1] == []
    assert [len(paths) for paths in written[:-1]] == [1] * 15
    assert names_in(tmp_path / "maps") == {
        "cine.png",
        *(f"cine-frame{number}.png" for number in range(1, 15)),
    }


def test_each_slice_of_a_case_gets_a_picture(
    predictor: Predictor, shipped: Path, tmp_path: Path
) -> None:
    (case,) = group(map(read_scan, series(tmp_path / "series", shipped)))
    assert isinstance(case, Case)
    result = predictor.case(case)
    maps = HeatMaps(Names(tmp_path / "maps", ".png", overwrite=False))
    assert [path.name for path in maps.write(result, {})] == ["0.png", "1.png", "2.png"]
    for path in (tmp_path / "maps").iterdir():
        with Image.open(path) as picture:
            assert picture.size == (384, 384)


# --- DICOM


def captures(folder: Path) -> SecondaryCaptures:
    return SecondaryCaptures(Names(folder, ".heatmap.dcm", overwrite=False))


def reports(folder: Path, codes: Path | None = None) -> Reports:
    pytest.importorskip("highdicom")
    return Reports(Names(folder, ".sr.dcm", overwrite=False), HEADS, plain_decision(HEADS), codes)


def test_a_secondary_capture_lies_in_the_study_of_its_source(
    predictor: Predictor, shipped: Path, tmp_path: Path
) -> None:
    ((path,),) = write_all(captures(tmp_path), outcomes(predictor, shipped / "MR_small.dcm"))
    assert path.name == "MR_small.heatmap.dcm"
    source, capture = pydicom.dcmread(shipped / "MR_small.dcm"), pydicom.dcmread(path)
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        assert capture[keyword].value == source[keyword].value, keyword
    assert capture.SeriesInstanceUID != source.SeriesInstanceUID
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert np.ptp(capture.pixel_array) > 0


def test_a_report_of_a_scan_is_about_all_its_frames_and_written_once(
    predictor: Predictor, cine: Path, shipped: Path, tmp_path: Path
) -> None:
    companion = reports(tmp_path)
    found = outcomes(predictor, cine, shipped / "MR_small.dcm")
    written = [companion.write(*one) for one in found]
    assert written == [[tmp_path / "cine.sr.dcm"]] * 15 + [[tmp_path / "MR_small.sr.dcm"]]
    assert names_in(tmp_path) == {"cine.sr.dcm"}  # the other may have frames to come
    assert companion.finish() == 0
    assert names_in(tmp_path) == {"cine.sr.dcm", "MR_small.sr.dcm"}
    report = pydicom.dcmread(tmp_path / "cine.sr.dcm")
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (image,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert image.ReferencedSOPInstanceUID == pydicom.dcmread(cine).SOPInstanceUID
    assert str(report.to_json()).count("image 15") == 1
    assert companion.finish() == 0


def test_the_report_of_a_case_is_about_all_its_slices(
    predictor: Predictor, shipped: Path, tmp_path: Path
) -> None:
    paths = series(tmp_path / "series", shipped)
    (case,) = group(map(read_scan, paths))
    assert isinstance(case, Case)
    result = predictor.case(case, keep=False)
    assert isinstance(result, CaseResult)
    sources = {str(path): Source(name=str(path), path=path) for path in paths}
    companion = reports(tmp_path / "out")
    (path,) = companion.write(result, sources)
    report = pydicom.dcmread(path)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    images = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert {one.ReferencedSOPInstanceUID for one in images} == {f"1.2.3.{n}" for n in range(3)}


def test_codes_from_a_file_stand_for_the_classes(
    predictor: Predictor, shipped: Path, tmp_path: Path
) -> None:
    codes = tmp_path / "codes.toml"
    codes.write_text('[classes.negative]\nvalue = "17621005"\nscheme = "SCT"\nmeaning = "Normal"\n')
    companion = reports(tmp_path / "out", codes)
    ((path,),) = write_all(companion, outcomes(predictor, shipped / "MR_small.dcm"))
    assert "17621005" in str(pydicom.dcmread(path))


def test_a_scan_in_an_archive_has_its_header_read_again(
    predictor: Predictor, shipped: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "cd.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(shipped / "MR_small.dcm", "one/MR.dcm")
    ((path,),) = write_all(captures(tmp_path / "out"), outcomes(predictor, tmp_path / "cd.zip"))
    assert path.name == "MR.heatmap.dcm"
    assert pydicom.dcmread(path).PatientID == pydicom.dcmread(shipped / "MR_small.dcm").PatientID


@pytest.mark.parametrize("kind", [captures, reports])
def test_what_has_no_place_in_a_study_is_refused_for_that_scan_alone(
    predictor: Predictor, shipped: Path, tmp_path: Path, kind
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((8, 8), np.uint8))
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    del dataset.StudyInstanceUID
    dataset.save_as(tmp_path / "b.dcm")
    shutil.copy(shipped / "MR_small.dcm", tmp_path / "c.dcm")
    companion = kind(tmp_path / "out")
    written: list[str] = []
    for outcome, sources in outcomes(
        predictor, *(tmp_path / n for n in ("a.npy", "b.dcm", "c.dcm"))
    ):
        assert not isinstance(outcome, Failure)
        try:
            written += [path.name for path in companion.write(outcome, sources)]
        except ScanUnfit as error:
            written.append(error.attribute or error.reason)
    assert companion.finish() == 0
    assert written[:2] == [
        "a DICOM output can only be written for a DICOM image",
        "StudyInstanceUID",
    ]
    assert names_in(tmp_path / "out") == {written[2]}


def test_a_source_that_is_gone_meanwhile_is_a_failure_of_that_file(
    predictor: Predictor, shipped: Path, tmp_path: Path
) -> None:
    shutil.copy(shipped / "MR_small.dcm", tmp_path / "a.dcm")
    ((outcome, sources),) = outcomes(predictor, tmp_path / "a.dcm")
    (tmp_path / "a.dcm").unlink()
    with pytest.raises(ScanError):
        captures(tmp_path / "out").write(outcome, sources)


def test_a_report_that_cannot_be_written_at_the_end_is_counted(
    predictor: Predictor, shipped: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").touch()
    companion = reports(tmp_path / "out")
    written = [companion.write(*one) for one in outcomes(predictor, shipped / "MR_small.dcm")]
    assert written == [[tmp_path / "out" / "MR_small.sr.dcm"]]
    assert companion.finish() == 1
    with pytest.raises(OutputNotWritten):
        write_all(captures(tmp_path / "out"), outcomes(predictor, shipped / "MR_small.dcm"))
