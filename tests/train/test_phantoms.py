"""Phantoms are valid CT, reproducible, and give their label away by the lesion alone."""

import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import config
from pydicom.pixels import apply_modality_lut
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medtl_runtime.errors import OutputExists, OutputNotWritten, UsageError
from medtl_train.phantoms import (
    ORGANS,
    SCANNERS,
    draw_anatomy,
    draw_lesions,
    plan_studies,
    render,
    render_image,
    to_dataset,
    write_studies,
)

PATIENTS, IMAGES, SIZE = 12, 2, 64
FILLED = """
    SOPClassUID SOPInstanceUID ImageType StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID
    Modality Manufacturer PatientName PatientID PatientSex StudyDate StudyTime ContentDate
    ContentTime StudyID SeriesNumber InstanceNumber AcquisitionNumber PatientPosition PixelSpacing
    ImageOrientationPatient ImagePositionPatient SliceThickness KVP RescaleIntercept RescaleSlope
    WindowCenter WindowWidth SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated
    BitsStored HighBit PixelRepresentation PixelData
"""
PRESENT = "PatientBirthDate ReferringPhysicianName AccessionNumber PositionReferenceIndicator"
HEADER = """
    Manufacturer ManufacturerModelName KVP ConvolutionKernel SliceThickness PixelSpacing
    ReconstructionDiameter BitsStored PixelRepresentation RescaleIntercept WindowCenter WindowWidth
    PatientAge PatientSex BodyPartExamined StudyDate ImagePositionPatient
"""


@pytest.fixture
def strict_pydicom() -> Iterator[None]:
    before = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.RAISE
    yield
    config.settings.reading_validation_mode = before


@pytest.fixture(scope="module", params=list(ORGANS))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp(request.param)
    return write_studies(out, organ=request.param, patients=PATIENTS, images=IMAGES, size=SIZE)


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    return float((positive[:, None] > negative[None]).mean())


def test_the_same_seed_writes_the_same_bytes(written: list[Path], tmp_path: Path) -> None:
    organ = written[0].name.split("-")[0]
    again = write_studies(tmp_path, organ=organ, patients=PATIENTS, images=IMAGES, size=SIZE)
    assert [path.name for path in again] == [path.name for path in written]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]


def test_another_seed_gives_other_patients(written: list[Path], tmp_path: Path) -> None:
    organ = written[0].name.split("-")[0]
    others = write_studies(tmp_path, organ=organ, patients=2, images=1, size=SIZE, seed=1)
    for keyword in ("PatientID", "StudyInstanceUID", "SOPInstanceUID", "PixelData"):
        here = {pydicom.dcmread(path)[keyword].value for path in written}
        there = {pydicom.dcmread(path)[keyword].value for path in others}
        assert not here & there, keyword


def test_more_patients_do_not_change_the_first_ones() -> None:
    few = plan_studies("lung", patients=7, images=1, size=SIZE, seed=3)
    many = plan_studies("lung", patients=30, images=1, size=SIZE, seed=3)
    assert many[:7] == few


def test_half_of_the_patients_have_lesions_and_names_do_not_tell_which(written: list[Path]) -> None:
    folders = defaultdict(set)
    for path in written:
        assert re.fullmatch(r"(lung|liver)-\d{4}-\d{2}\.dcm", path.name)
        folders[pydicom.dcmread(path).PatientID].add(path.parent.name)
    assert all(len(labels) == 1 for labels in folders.values())
    assert Counter(*zip(*folders.values(), strict=True)) == {"healthy": 6, "lesion": 6}
    lesions = [s.lesion for s in plan_studies("lung", patients=200, images=1, size=64, seed=0)]
    assert 30 < sum(lesions[::2]) < 70  # an even number says nothing either


def test_both_labels_have_the_same_headers(written: list[Path]) -> None:
    headers = {"healthy": Counter(), "lesion": Counter()}
    for path in written:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        headers[path.parent.name][
            tuple(str(dataset[keyword].value) for keyword in HEADER.split())
        ] += 1
    assert headers["healthy"] == headers["lesion"]
    assert len({header[0] for header in headers["lesion"]}) == len(SCANNERS)


@pytest.mark.parametrize("organ", ORGANS)
def test_the_mean_of_an_image_does_not_give_its_label_away(organ: str) -> None:
    means = {False: [], True: []}
    for study in plan_studies(organ, patients=160, images=1, size=SIZE, seed=7):
        means[study.lesion].append(render_image(study, draw_lesions(study), 0).mean())
    assert 0.3 < auroc(np.array(means[True]), np.array(means[False])) < 0.7


@pytest.mark.parametrize("organ", ORGANS)
def test_a_lesion_lies_wholly_inside_its_organ_and_stands_out(organ: str) -> None:
    least, most = ORGANS[organ].lesion_hu
    for study in plan_studies(organ, patients=20, images=3, size=128, seed=2):
        lesions = draw_lesions(study)
        assert bool(lesions) == study.lesion
        for image in range(study.images if lesions else 0):
            anatomy = draw_anatomy(study, study.level(image), study.size)
            healthy = render_image(study, [], image)
            difference = render_image(study, lesions[:1], image) - healthy
            # The point spread carries a trace of it further.
            assert np.abs(difference[~anatomy.organ]).max() < 0.03 * least
            # Against parenchyma, since a lesion replaces the vessels it grows over.
            over = healthy + difference - anatomy.parenchyma_hu
            core = np.abs(difference) > 0.5 * least
            assert 0.5 * least < np.median(over[core]) < 1.3 * most
            assert 0.02 < np.sqrt(core.mean() / np.pi) < 0.09


@pytest.mark.parametrize("organ", ORGANS)
def test_a_lesion_is_the_only_difference_between_the_labels(organ: str) -> None:
    pairs = [
        [render(organ, lesion, np.random.default_rng(seed)) for lesion in (False, True)]
        for seed in range(10)
    ]
    for healthy, diseased in pairs:
        assert healthy.shape == (128, 128)
        assert healthy.dtype == diseased.dtype == np.float32
        assert 0 < np.count_nonzero(healthy != diseased) < 0.12 * healthy.size


@pytest.mark.parametrize("organ", ORGANS)
def test_images_of_a_patient_are_alike_and_patients_differ(organ: str) -> None:
    studies = plan_studies(organ, patients=8, images=3, size=SIZE, seed=4)
    images = [[render_image(study, [], image).ravel() for image in (0, 1)] for study in studies]
    within = [np.corrcoef(first, second)[0, 1] for first, second in images]
    between = [np.corrcoef(a[0], b[0])[0, 1] for a, b in pairwise(images)]
    assert min(within) > max(between)
    assert max(within) < 0.9999


def test_a_strict_reader_accepts_every_element(written: list[Path], strict_pydicom: None) -> None:
    for path in written:
        dataset = pydicom.dcmread(path)
        assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.SOPClassUID == CTImageStorage
        assert dataset.HighBit == dataset.BitsStored - 1
        for element in dataset.iterall():
            assert element.VR != "UI" or element.value.is_valid
        assert all(dataset[keyword].value not in (None, "") for keyword in FILLED.split())
        assert all(keyword in dataset for keyword in PRESENT.split())
        assert len(str(dataset.PatientID)) <= 64


def test_identifiers_are_shared_where_they_should_be_and_nowhere_else(written: list[Path]) -> None:
    datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in written]
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == len(datasets)
    keywords = "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"
    per_patient = {
        tuple(str(dataset[keyword].value) for keyword in keywords) for dataset in datasets
    }
    assert len(per_patient) == PATIENTS
    assert all(len(set(column)) == PATIENTS for column in zip(*per_patient, strict=True))


def test_the_modality_lut_gives_back_the_rendered_values() -> None:
    studies = plan_studies("lung", patients=6, images=1, size=SIZE, seed=0)
    axis = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    outside = np.hypot(*np.meshgrid(axis, axis)) > 0.5
    for study in studies:
        hu = render_image(study, draw_lesions(study), 0)
        dataset = to_dataset(hu, study, 0)
        read = apply_modality_lut(dataset.pixel_array, dataset)
        padded = outside if "PixelPaddingValue" in dataset else np.zeros_like(outside)
        assert (dataset.pixel_array[padded] == -2000).all()
        np.testing.assert_allclose(read[~padded], np.maximum(hu, -1024)[~padded], atol=0.51)
    assert {study.scanner.padding for study in studies} == {None, -2000}


@pytest.mark.parametrize("organ", ORGANS)
def test_dciodvfy_finds_nothing_to_complain_about(organ: str, tmp_path: Path) -> None:
    checker = shutil.which("dciodvfy")
    if checker is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    paths = write_studies(tmp_path, organ=organ, patients=2 * len(SCANNERS), images=1, size=SIZE)
    for path in paths:
        done = subprocess.run(
            [checker, "-new", str(path)], capture_output=True, text=True, check=False
        )
        said = (done.stdout + done.stderr).splitlines()
        assert "CTImage" in said
        assert not [line for line in said if line.startswith(("Error", "Warning"))]


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(OutputExists, match="--overwrite"):
        write_studies(tmp_path, organ="lung", patients=2, images=1, size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwriting_replaces_phantoms_and_nothing_else(tmp_path: Path) -> None:
    write_studies(tmp_path, organ="lung", patients=4, images=2, size=SIZE)
    kept = tmp_path / "lesion" / "mine.dcm"
    kept.write_bytes(b"not a phantom")
    paths = write_studies(tmp_path, organ="liver", patients=2, images=1, size=SIZE, overwrite=True)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*paths, kept}


@pytest.mark.parametrize(
    ("argument", "value"),
    [("organ", "brain"), ("patients", 1), ("images", 0), ("size", 16), ("seed", -1)],
)
def test_an_argument_out_of_range_is_named(argument: str, value: object, tmp_path: Path) -> None:
    arguments = {"organ": "lung", "patients": 2, "images": 1, argument: value}
    with pytest.raises(UsageError, match=argument):
        write_studies(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "lesion").write_text("a file where a folder should be")
    with pytest.raises(OutputNotWritten, match=re.escape(str(tmp_path))):
        write_studies(tmp_path, organ="lung", patients=2, images=1, size=SIZE, overwrite=True)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_says_how_many_files_it_wrote_and_fails_in_one_line(tmp_path: Path) -> None:
    command = ["-m", "medtl_train.phantoms", str(tmp_path)]
    command += ["--patients", "4", "--images", "2", "--size", "64"]
    done = run_python(*command)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"4 files in {tmp_path / 'healthy'}",
        f"4 files in {tmp_path / 'lesion'}",
    ]
    for refused in (run_python(*command), run_python(*command, "--organ", "brain")):
        assert refused.returncode == 2
        assert refused.stdout == ""
        assert len(refused.stderr.splitlines()) == 1
    assert run_python(*command, "--overwrite").stdout == done.stdout


def test_help_shows_each_example_on_its_own_line() -> None:
    lines = run_python("-m", "medtl_train.phantoms", "--help").stdout.splitlines()
    assert "    python -m medtl_train.phantoms demo/lung --organ lung" in lines


def test_phantoms_do_without_torch() -> None:
    check = "import sys, medtl_train.phantoms.__main__; sys.exit('torch' in sys.modules)"
    done = run_python("-c", check)
    assert done.returncode == 0, done.stderr
