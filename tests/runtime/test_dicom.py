"""DICOM to frames, on real files; where a file is changed, one attribute of a real one is."""

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_modality_lut, apply_voi
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medtl_runtime.dicom import read_dicom
from medtl_runtime.errors import (
    ScanError,
    ScanUnfit,
    ScanUnreadable,
    ScanWithoutPixels,
)
from medtl_runtime.reading import read_scan
from medtl_runtime.recipe import FixedWindow, HeaderVoi, Recipe
from medtl_runtime.scan import Frame
from medtl_runtime.voi import LookupTable, Window

Real = Callable[[str], Path]
Changed = Callable[..., Dataset]


def frames(source: Path | Dataset) -> list[Frame]:
    return list(read_scan(source).frames())


def only(source: Path | Dataset) -> Frame:
    (frame,) = frames(source)
    return frame


def canonical(source: Path | Dataset, **recipe: Any) -> np.ndarray:
    """Return the canonical image of the first frame, at its own size."""
    frame = next(read_scan(source).frames())
    doses = FixedWindow(centre=0.5 * frame.values.max() + 1, width=frame.values.max() + 2)
    window = HeaderVoi(fallback=None if frame.value_range else doses)
    fields = {"channels": 3 if frame.is_colour else 1, "window": window} | recipe
    rows, columns = frame.values.shape[:2]
    return Recipe(size=(max(8, rows), max(8, columns)), **fields).apply(frame).pixels


# --- every file there is


def test_every_file_gives_frames_that_a_recipe_takes_or_a_scan_error(any_dicom_file: Path) -> None:
    recipe = Recipe(size=(32, 32), channels=3, window=HeaderVoi(fallback=None))
    try:
        scan = read_scan(any_dicom_file)
        found = list(scan.frames())
    except ScanError as refused:
        _require_one_line(refused, any_dicom_file)
        return
    assert len(found) == scan.frame_count
    for frame in found:
        assert frame.values.dtype == np.float32
        assert frame.values.shape[2:] in ((), (3,))
        assert np.isfinite(frame.values).all()
        try:
            assert recipe.apply(frame).pixels.shape == (3, 32, 32)
        except ScanUnfit:
            assert frame.value_range is None  # floating point or 32 bits, and no window


def _require_one_line(error: ScanError, path: Path) -> None:
    assert str(error) == f"{path}: {error.reason}"
    assert len(error.reason.splitlines()) == 1


def test_most_real_files_are_read(shipped: Path) -> None:
    """The test above would pass if nothing were."""

    def opens(path: Path) -> bool:
        try:
            return bool(frames(path))
        except ScanError:
            return False

    names = [path for path in shipped.glob("*.dcm") if opens(path)]
    assert len(names) > 50


# --- what is no image, or no longer one


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("reportsi.dcm", "SR"),
        ("test-SR.dcm", "SR"),
        ("waveform_ecg.dcm", "ECG"),
        ("rtplan.dcm", "RTPLAN"),
        ("rtstruct.dcm", "RTSTRUCT"),
        ("dicomdirtests/DICOMDIR", "unknown modality"),
        ("sr_document.dcm", "SR"),
        ("anonymous_ecg.dcm", "ECG"),
        ("sm_annotations.dcm", "ANN"),
        ("rwvm.dcm", "RWV"),
    ],
)
def test_an_object_without_an_image_is_refused_by_its_kind(
    real: Real, name: str, kind: str
) -> None:
    with pytest.raises(ScanWithoutPixels, match=f"without an image \\({kind}\\)"):
        read_scan(real(name))


@pytest.mark.parametrize("name", ["README.txt", "crayons.icc", "zipMR.gz", "test1.json"])
def test_a_file_of_another_kind_is_not_called_damaged_dicom(shipped: Path, name: str) -> None:
    with pytest.raises(ScanUnreadable, match="neither DICOM nor PNG, JPEG or NPY"):
        read_scan(shipped / name)


WHOLE = [
    "MR_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "CT_small.dcm",
    "image_dfl.dcm",
    "rtdose.dcm",
    "examples_palette.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_rle_2frame.dcm",
    "liver_1frame.dcm",
    "JPGLosslessP14SV1_1s_1f_8b.dcm",
    "emri_small.dcm",
    "HTJ2KLossless_08_RGB.dcm",
]


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_anywhere_is_unreadable_or_gives_the_whole_image(real: Real, name: str) -> None:
    data, whole = real(name).read_bytes(), frames(real(name))
    refused = 0
    for share in (0.001, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99):
        try:
            found = list(read_dicom(io.BytesIO(data[: int(len(data) * share)]), "cut").frames())
        except ScanError:
            refused += 1
        else:
            # Only what follows the pixels is missing.
            for one, other in zip(found, whole, strict=True):
                np.testing.assert_array_equal(one.values, other.values)
    assert refused >= 9


def test_an_image_cut_before_its_pixels_is_not_called_an_object_without_pixels(real: Real) -> None:
    data = real("CT_small.dcm").read_bytes()
    with pytest.raises(ScanUnreadable, match="pixel data is missing; the file may be cut short"):
        read_dicom(io.BytesIO(data[:2000]), "cut")


def test_encapsulated_pixels_cut_short_are_not_called_foreign(real: Real) -> None:
    data = real("MR_small_RLE.dcm").read_bytes()
    with pytest.raises(ScanUnreadable, match="the pixel data is cut short"):
        list(read_dicom(io.BytesIO(data[: len(data) // 2]), "cut").frames())


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "HTJ2KLossless_08_RGB.dcm",
    ],
)
def test_a_compressed_frame_cut_short_in_a_whole_file_is_not_half_an_image(
    changed: Changed, name: str
) -> None:
    dataset = changed(name)
    whole, frame = only(dataset).values, get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame])
    np.testing.assert_array_equal(only(dataset).values, whole)
    for share in (0.5, 0.8, 0.95):
        cut = frame[: int(len(frame) * share)]
        dataset.PixelData = encapsulate([cut + bytes(len(cut) % 2)])
        with pytest.raises(ScanUnreadable, match="cannot be decoded"):
            frames(dataset)


# gdcm, the only decoder of JPEG lossless here, can end the process on a damaged stream.
LEFT_TO_GDCM = {"SC_rgb_jpeg_gdcm.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm"}


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in LEFT_TO_GDCM])
def test_damaged_bytes_give_frames_or_a_scan_error(real: Real, name: str) -> None:
    data = real(name).read_bytes()
    random = np.random.default_rng(7)
    outcomes = set()
    for _ in range(25):
        damaged = bytearray(data)
        for at in random.integers(0, min(len(data), 4000), random.integers(1, 8)):
            damaged[at] = random.integers(256)
        try:
            outcomes.add(len(list(read_dicom(io.BytesIO(bytes(damaged)), "damaged").frames())))
        except ScanError as error:
            outcomes.add(type(error))
    assert len(outcomes) > 1


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        # Each of these ended the process while gdcm was the first to try.
        ("MR_small_jp2klossless.dcm", 1590, 255),
        ("SC_rgb_small_odd_jpeg.dcm", 1720, 0),
        ("MR_small_jpeg_ls_lossless.dcm", 1554, 255),
        # This one makes the RLE decoder, which is written in Rust, panic.
        ("MR_small_RLE.dcm", 1544, 255),
    ],
)
def test_one_damaged_byte_does_not_end_the_process(
    shipped: Path, tmp_path: Path, name: str, at: int, value: int
) -> None:
    data = bytearray((shipped / name).read_bytes())
    assert data[at] != value
    data[at] = value
    (tmp_path / name).write_bytes(data)
    program = (
        "import sys\n"
        "from medtl_runtime.errors import ScanError\n"
        "from medtl_runtime.reading import read_scan\n"
        "try:\n"
        "    list(read_scan(sys.argv[1]).frames())\n"
        "except ScanError:\n"
        "    pass\n"
        "print('alive')\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, tmp_path / name], capture_output=True, check=False
    )
    assert finished.returncode == 0
    assert finished.stdout == b"alive\n"


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("Rows", 0), ("Columns", 0), ("NumberOfFrames", -1), ("Rows", 60000), ("BitsStored", 0)],
)
def test_a_header_that_makes_no_sense_is_unreadable(
    changed: Changed, attribute: str, value: int
) -> None:
    with pytest.raises(ScanUnreadable):
        frames(changed("MR_small.dcm", **{attribute: value}))


@pytest.mark.parametrize("attribute", ["Rows", "Columns"])
def test_pixels_without_a_size_are_unreadable(changed: Changed, attribute: str) -> None:
    with pytest.raises(ScanUnreadable, match="without Rows and Columns"):
        read_scan(changed("MR_small.dcm", **{attribute: None}))


def test_nan_among_the_pixels_is_refused(changed: Changed) -> None:
    dataset = changed("parametric_map_float.dcm")
    pixels = np.frombuffer(dataset.FloatPixelData, "<f4").copy()
    pixels[1000] = np.nan
    dataset.FloatPixelData = pixels.tobytes()
    with pytest.raises(ScanUnreadable, match="NaN or infinity"):
        frames(dataset)


def test_a_rescale_that_leaves_float32_is_refused(changed: Changed) -> None:
    dataset = changed("CT_small.dcm", RescaleSlope="1E300")
    with np.errstate(over="ignore"), pytest.raises(ScanUnreadable, match="NaN or infinity"):
        frames(dataset)


def test_a_file_that_claims_more_than_the_memory_is_one_failure_of_many(
    shipped: Path, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    data = (shipped / "MR_small.dcm").read_bytes()
    length = (8192).to_bytes(4, "little")
    at = data.index(b"\xe0\x7f\x10\x00OW") + 8
    assert data[at : at + 4] == length
    bomb = tmp_path / "bomb.dcm"
    bomb.write_bytes(data[:at] + (0xFFFFFFF0).to_bytes(4, "little") + data[at + 4 :])
    program = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({3 << 30}, {resource.RLIM_INFINITY}))\n"
        "from medtl_runtime.errors import ScanUnreadable\n"
        "from medtl_runtime.reading import read_scan\n"
        "try:\n"
        "    list(read_scan(sys.argv[1]).frames())\n"
        "except ScanUnreadable:\n"
        "    print('refused')\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, bomb], capture_output=True, text=True, check=False
    )
    assert finished.stdout == "refused\n", finished.stderr


# --- transfer syntaxes


FAMILIES = {
    "MR_small": [
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_expb.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_padded.dcm",
    ],
    "SC_rgb_rle": ["SC_rgb_rle.dcm", "SC_rgb_rle_2frame.dcm"],
    "rtdose": ["rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"],
    "rtdose_1frame": ["rtdose_1frame.dcm", "rtdose_expb_1frame.dcm", "rtdose_rle_1frame.dcm"],
    "liver_1frame": ["liver_1frame.dcm", "liver_expb_1frame.dcm"],
    "SC_rgb_small_odd": ["SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm"],
    "SC_rgb": ["SC_rgb.dcm", "SC_rgb_rle.dcm", "SC_rgb_expb.dcm"],
    "SC_rgb_2frame": ["SC_rgb_2frame.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_expb_2frame.dcm"],
    "SC_rgb_16bit": ["SC_rgb_16bit.dcm", "SC_rgb_rle_16bit.dcm", "SC_rgb_expb_16bit.dcm"],
    "SC_rgb_32bit": ["SC_rgb_32bit.dcm", "SC_rgb_rle_32bit.dcm", "SC_rgb_expb_32bit.dcm"],
    "emri_small": [
        "emri_small.dcm",
        "emri_small_RLE.dcm",
        "emri_small_big_endian.dcm",
        "emri_small_jpeg_2k_lossless.dcm",
        "emri_small_jpeg_ls_lossless.dcm",
    ],
    "693 reversible": ["693_UNCR.dcm", "693_J2KR.dcm"],
    "693 irreversible": ["693_UNCI.dcm", "693_J2KI.dcm"],
    "MR2": ["MR2_UNCI.dcm", "MR2_J2KI.dcm"],
    "US1": ["US1_UNCR.dcm", "US1_J2KR.dcm"],
    "JPEG2000": ["JPEG2000_UNC.dcm", "JPEG2000.dcm"],
    "planar": ["color-px.dcm", "color-pl.dcm"],
    "palette": ["OBXXXX1A.dcm", "OBXXXX1A_expb.dcm", "OBXXXX1A_rle.dcm"],
    "palette, 2 frames": ["OBXXXX1A_2frame.dcm", "OBXXXX1A_expb_2frame.dcm"],
    "segmented palette": ["gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm"],
    "liver": ["liver.dcm", "liver_expb.dcm", "liver_j2k.dcm"],
    "interleave": ["JLSL_RGB_ILV0.dcm", "JLSL_RGB_ILV1.dcm", "JLSL_RGB_ILV2.dcm"],
    "SM": ["sm_image.dcm", "sm_image_jpegls.dcm", "sm_image_jpegls_nobot.dcm"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_image_in_other_transfer_syntaxes_gives_the_same_canonical_image(
    real: Real, family: str
) -> None:
    first, *others = FAMILIES[family]
    expected = canonical(real(first))
    assert expected.min() < expected.max()
    for name in others:
        np.testing.assert_array_equal(canonical(real(name)), expected, err_msg=name)


SC_RGB_ROWS = {
    5: (255, 0, 0),
    15: (255, 128, 128),
    25: (0, 255, 0),
    35: (128, 255, 128),
    45: (0, 0, 255),
    55: (128, 128, 255),
    65: (0, 0, 0),
    75: (64, 64, 64),
    85: (192, 192, 192),
    95: (255, 255, 255),
}


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("SC_rgb.dcm", 0),
        ("SC_rgb_rle.dcm", 0),
        ("SC_rgb_jpeg_gdcm.dcm", 0),
        ("SC_rgb_gdcm_KY.dcm", 2),
        ("SC_rgb_jls_lossy_line.dcm", 3),
        ("SC_rgb_jls_lossy_sample.dcm", 3),
        ("SC_rgb_jpeg_dcmtk.dcm", 6),
        ("SC_rgb_jpeg_lossy_gdcm.dcm", 6),
        ("SC_rgb_dcmtk_+eb+cr.dcm", 6),
        ("SC_rgb_dcmtk_+eb+cy+n1.dcm", 6),
        ("SC_rgb_dcmtk_+eb+cy+n2.dcm", 6),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", 6),
        ("SC_rgb_dcmtk_+eb+cy+s2.dcm", 6),
        ("SC_rgb_dcmtk_+eb+cy+s4.dcm", 6),
        ("SC_ybr_full_422_uncompressed.dcm", 6),
        ("SC_ybr_full_uncompressed.dcm", 6),
    ],
)
def test_the_colour_bars_are_rgb_whatever_the_file_stores(
    real: Real, name: str, tolerance: int
) -> None:
    frame = only(real(name))
    assert frame.quantity == "display"
    assert frame.value_range == (0, 255)
    for row, colour in SC_RGB_ROWS.items():
        assert frame.values[row, 50] == pytest.approx(colour, abs=tolerance)


def test_a_palette_is_looked_up_and_its_highest_entry_is_nearly_white(real: Real) -> None:
    frame = only(real("examples_palette.dcm"))
    assert frame.is_colour
    assert frame.quantity == "display"
    assert frame.value_range == (0, 65535)
    dataset = pydicom.dcmread(real("examples_palette.dcm"))
    red = np.frombuffer(dataset.RedPaletteColorLookupTableData, "<u2")
    np.testing.assert_array_equal(frame.values[..., 0], red[dataset.pixel_array])


def test_12_bit_jpeg_is_decoded_by_gdcm(shipped: Path) -> None:
    """Values that two other decoders of this file agree on, to one in rounding."""
    pytest.importorskip("gdcm")
    values = only(shipped / "JPGExtended.dcm").values
    assert values.shape == (1024, 256)
    assert (values[420, 140], values[230, 120]) == (244, 95)
    assert values.max() > 255
    assert abs(float(values.sum()) - 3_767_000) < 1024 * 256


def test_without_any_decoder_package_a_compressed_file_says_what_to_install(shipped: Path) -> None:
    program = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "packages = ('gdcm', 'jpeg_ls', 'pylibjpeg', 'openjpeg', 'rle', 'libjpeg')\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *a: None if name in packages else find(name, *a)\n"
        "from medtl_runtime.errors import ScanError\n"
        "from medtl_runtime.reading import read_scan\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        print(len(list(read_scan(path).frames())))\n"
        "    except ScanError as error:\n"
        "        print(type(error).__name__, error.reason)\n"
    )
    names = [
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "MR_small_RLE.dcm",
        "MR_small.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
    ]
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *(shipped / name for name in names)],
        capture_output=True,
        text=True,
        check=True,
    )
    jpeg_ls, lossless, rle, plain, baseline = finished.stdout.splitlines()
    assert jpeg_ls.startswith("DecoderMissing no decoder is installed for JPEG-LS Lossless")
    assert 'pip install "medtl[codecs]"' in jpeg_ls
    assert "pyjpegls" in jpeg_ls
    assert lossless.startswith("DecoderMissing")
    assert "python-gdcm" in lossless
    assert "libjpeg" not in jpeg_ls + lossless
    assert [rle, plain, baseline] == ["1", "1", "1"]


def test_an_unknown_transfer_syntax_is_named(changed: Changed) -> None:
    dataset = changed("MR_small.dcm")
    dataset.file_meta.TransferSyntaxUID = UID("1.2.3.4")
    with pytest.raises(ScanUnreadable, match=r"unknown transfer syntax 1\.2\.3\.4"):
        frames(dataset)


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("MR_small_implicit.dcm", ImplicitVRLittleEndian),
        ("MR_small.dcm", ExplicitVRLittleEndian),
        ("MR_small_bigendian.dcm", ExplicitVRBigEndian),
    ],
)
def test_a_file_without_preamble_and_meta_header_is_read(
    shipped: Path, tmp_path: Path, name: str, syntax: UID
) -> None:
    dataset = pydicom.dcmread(shipped / name)
    del dataset.file_meta, dataset.preamble
    bare = tmp_path / "bare"
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    with bare.open("wb") as file:
        pydicom.dcmwrite(file, dataset, implicit_vr=implicit, little_endian=little)
    assert b"DICM" not in bare.read_bytes()[:200]
    scan = read_scan(bare)
    assert scan.header.transfer_syntax_uid == syntax
    np.testing.assert_array_equal(only(bare).values, only(shipped / name).values)


def test_a_data_set_made_in_memory_is_taken_as_little_endian(real: Real) -> None:
    stored = np.arange(12, dtype="<u2").reshape(3, 4)
    dataset = Dataset()
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = stored.tobytes()
    frame = only(dataset)
    np.testing.assert_array_equal(frame.values, stored)
    assert frame.value_range == (0, 4095)


# --- header


def test_the_header_of_a_real_file_is_kept(shipped: Path) -> None:
    header = read_scan(shipped / "CT_small.dcm").header
    assert header.modality == "CT"
    assert header.patient_id == "1CT1"
    assert header.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
    assert header.sop_instance_uid == "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"
    assert header.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert header.photometric_interpretation == "MONOCHROME2"


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "IM_0027_fMAP.dcm"])
def test_a_data_set_is_not_changed_by_reading_it(real: Real, name: str) -> None:
    dataset = pydicom.dcmread(real(name))
    before = copy.deepcopy(dataset)
    first, again = frames(dataset), frames(dataset)
    assert dataset == before
    assert dataset.file_meta == before.file_meta
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


def test_frames_are_decoded_one_by_one_and_only_when_asked_for(
    shipped: Path, tmp_path: Path
) -> None:
    data = (shipped / "MR_small_RLE.dcm").read_bytes()
    path = tmp_path / "later.dcm"
    path.write_bytes(data)
    scan = read_scan(path)
    path.write_bytes(data[:2000])  # before the pixels are read
    with pytest.raises(ScanUnreadable, match="cut short"):
        list(scan.frames())
    path.unlink()
    with pytest.raises(ScanUnreadable, match="No such file"):
        list(scan.frames())


# --- modality values


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "dicomdirtests/77654033/CR1/6154",
        "dicomdirtests/77654033/CT2/17106",
        "mlut_18.dcm",
        "MR2_UNCI.dcm",
        "IM_0001",
        "bad_sequence.dcm",
    ],
)
def test_modality_values_are_those_of_pydicom_where_the_transform_is_at_the_top(
    real: Real, name: str
) -> None:
    dataset = pydicom.dcmread(real(name))
    expected = apply_modality_lut(dataset.pixel_array, dataset)
    frame = only(real(name))
    np.testing.assert_allclose(frame.values, expected, rtol=1e-6)
    assert frame.quantity == "modality"
    low, high = frame.value_range or (0, 0)
    assert low <= expected.min() < expected.max() <= high


def test_each_frame_of_an_enhanced_object_has_its_own_rescale(real: Real) -> None:
    dataset = pydicom.dcmread(real("IM_0027_fMAP.dcm"))
    assert "RescaleSlope" not in dataset
    slopes = set()
    for index, frame in enumerate(frames(real("IM_0027_fMAP.dcm"))):
        groups = dataset.PerFrameFunctionalGroupsSequence[index]
        transform = groups.PixelValueTransformationSequence[0]
        slope, intercept = float(transform.RescaleSlope), float(transform.RescaleIntercept)
        slopes.add(slope)
        stored = dataset.pixel_array[index].astype(np.float64)
        np.testing.assert_allclose(frame.values, stored * slope + intercept, rtol=1e-5, atol=1e-4)
        assert not np.allclose(frame.values, stored)
    assert len(slopes) == 2


def test_each_frame_of_an_enhanced_object_has_its_own_window(real: Real) -> None:
    dataset = pydicom.dcmread(real("6_1.dcm"))
    expected = [
        (float(groups.FrameVOILUTSequence[0].WindowCenter), "LINEAR")
        for groups in dataset.PerFrameFunctionalGroupsSequence
    ]
    windows = [frame.voi for frame in frames(real("6_1.dcm"))]
    assert all(isinstance(window, Window) for window in windows)
    assert [(w.centre, w.function) for w in windows if isinstance(w, Window)] == expected
    assert len(set(expected)) > 1


def test_a_multi_frame_object_holds_what_its_single_frames_hold(real: Real) -> None:
    found = frames(real("mf.dcm"))
    sums = sorted(float(frame.values.sum()) for frame in found)
    singles = [only(real(f"IMG000{number}.dcm")) for number in (1, 2, 3)]
    assert sums == sorted(float(frame.values.sum()) for frame in singles)
    assert sums[-1] > 0
    brightest = max(found, key=lambda frame: float(frame.values.sum()))
    single = max(singles, key=lambda frame: float(frame.values.sum()))
    np.testing.assert_array_equal(brightest.values, single.values)
    assert str(brightest.voi) == str(single.voi) == "window 1/2 LINEAR"


def test_a_shared_rescale_applies_to_every_frame(changed: Changed) -> None:
    dataset = changed("mf.dcm")
    before = frames(dataset)
    shared = dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    shared.RescaleSlope, shared.RescaleIntercept = "3", "-7"
    dataset.RescaleSlope = "1000"  # not where an enhanced object keeps it
    for one, other in zip(frames(dataset), before, strict=True):
        np.testing.assert_array_equal(one.values, 3 * other.values - 7)


@pytest.mark.parametrize(
    ("signed", "bits", "slope", "intercept", "expected"),
    [
        (0, 12, 1, -1024, (-1024, 3071)),
        (1, 12, 1, -1024, (-3072, 1023)),
        (1, 16, 2, 0, (-65536, 65534)),
        (0, 8, -1, 255, (0, 255)),
    ],
)
def test_the_value_range_is_that_of_the_stored_bits_in_modality_units(
    changed: Changed, signed: int, bits: int, slope: int, intercept: int, expected: tuple
) -> None:
    dataset = changed(
        "CT_small.dcm",
        PixelRepresentation=signed,
        BitsStored=bits,
        HighBit=bits - 1,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        PixelPaddingValue=None,
    )
    dataset.PixelData = np.zeros(dataset.Rows * dataset.Columns, "<i2").tobytes()
    assert only(dataset).value_range == expected


@pytest.mark.parametrize("name", ["parametric_map_float.dcm", "parametric_map_double_float.dcm"])
def test_floating_point_pixels_are_read_and_have_no_range(real: Real, name: str) -> None:
    frame = only(real(name))
    assert frame.value_range is None
    assert 0 < frame.values.max() < 1


# --- padding


@pytest.mark.parametrize("name", ["01.dcm", "02.dcm", "693_UNCR.dcm", "693_J2KI.dcm"])
def test_padding_is_found_on_stored_values_and_is_black_in_the_canonical_image(
    real: Real, name: str
) -> None:
    dataset = pydicom.dcmread(real(name))
    assert dataset.PixelPaddingValue == -2000
    padded = dataset.pixel_array == -2000
    assert 0 < padded.sum() < padded.size
    np.testing.assert_array_equal(only(real(name)).padding, padded)
    # Inverted, the lowest value would be white.
    dataset.PhotometricInterpretation = "MONOCHROME1"
    for source in (real(name), dataset):
        assert (canonical(source)[0][padded] == 0).all()
    assert (canonical(dataset)[0][~padded] > 0).any()


def test_padding_within_the_window_is_black_and_nothing_else_is(changed: Changed) -> None:
    plain, padded = changed("MR_small.dcm"), changed("MR_small.dcm", PixelPaddingValue=600)
    mask = plain.pixel_array == 600
    assert mask.any()
    before, after = canonical(plain)[0], canonical(padded)[0]
    assert (before[mask] > 0).all()
    assert (after[mask] == 0).all()
    np.testing.assert_array_equal(after[~mask], before[~mask])


@pytest.mark.parametrize("ends", [(500, 700), (700, 500)])
def test_a_range_limit_pads_both_ends_and_all_between(
    changed: Changed, ends: tuple[int, int]
) -> None:
    value, limit = ends
    dataset = changed("MR_small.dcm", PixelPaddingValue=value, PixelPaddingRangeLimit=limit)
    stored = dataset.pixel_array
    np.testing.assert_array_equal(only(dataset).padding, (stored >= 500) & (stored <= 700))


def test_a_padding_value_of_the_wrong_signedness_is_taken_as_its_bits(real: Real) -> None:
    dataset = pydicom.dcmread(real("693_J2KI.dcm"))
    expected = dataset.pixel_array == -2000
    del dataset.PixelPaddingValue
    dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    assert expected.any()
    np.testing.assert_array_equal(only(dataset).padding, expected)


def test_an_image_without_a_padding_value_has_no_mask(shipped: Path) -> None:
    assert only(shipped / "MR_small.dcm").padding is None


def test_floating_point_padding_has_its_own_attributes(changed: Changed) -> None:
    dataset = changed("parametric_map_float.dcm", FloatPixelPaddingValue=0.0)
    stored = dataset.pixel_array
    np.testing.assert_array_equal(only(dataset).padding, stored == 0)
    dataset.FloatPixelPaddingRangeLimit = 0.5
    limited = only(dataset).padding
    np.testing.assert_array_equal(limited, (stored >= 0) & (stored <= 0.5))
    assert limited is not None
    assert not limited.all()


def test_floating_point_padding_of_64_bits_has_its_own_attribute_too(changed: Changed) -> None:
    dataset = changed("parametric_map_double_float.dcm", DoubleFloatPixelPaddingValue=0.0)
    np.testing.assert_array_equal(only(dataset).padding, dataset.pixel_array == 0)


# --- polarity


@pytest.mark.parametrize(
    "name",
    ["dicomdirtests/77654033/CR1/6154", "RG1_J2KI.dcm", "RG3_J2KR.dcm", "dx_image.dcm"],
)
def test_monochrome1_is_one_minus_the_same_image_as_monochrome2(
    changed: Changed, name: str
) -> None:
    dataset = changed(name)
    assert dataset.PhotometricInterpretation == "MONOCHROME1"
    positive = changed(name, PhotometricInterpretation="MONOCHROME2", PresentationLUTShape=None)
    shown, other = canonical(dataset).astype(int), canonical(positive).astype(int)
    assert shown.min() < shown.max()
    assert np.abs(shown + other - 65535).max() <= 1
    np.testing.assert_array_equal(canonical(dataset, polarity="modality"), other)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", None, False),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
    ],
)
def test_monochrome1_and_inverse_each_invert_and_identity_turns_nothing_back(
    changed: Changed, photometric: str, shape: str | None, inverted: bool
) -> None:
    """Both together say one thing (PS3.3 C.8.11.3.1.2)."""
    dataset = changed(
        "MR_small.dcm", PhotometricInterpretation=photometric, PresentationLUTShape=shape
    )
    assert only(dataset).inverted is inverted


# --- VOI


def test_a_voi_lut_sequence_is_applied_as_pydicom_applies_it(real: Real) -> None:
    dataset = pydicom.dcmread(real("vlut_04.dcm"))
    expected = apply_voi(dataset.pixel_array, dataset) / 65535
    frame = only(real("vlut_04.dcm"))
    assert isinstance(frame.voi, LookupTable)
    np.testing.assert_allclose(frame.voi.apply(frame.values), expected, atol=1e-6)
    assert expected.max() == 1


def voi_lut(descriptor: list[int], data: bytes | list[int], vr: str) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", vr, data)
    return Sequence([item])


@pytest.mark.parametrize(
    ("descriptor", "data", "vr"),
    [
        ([4, 100, 8], b"\x00\x11\x22\xff", "OW"),
        ([4, 100, 8], b"\x00\x00\x11\x00\x22\x00\xff\x00", "OW"),
        ([4, 100, 8], [0, 0x11, 0x22, 0xFF], "US"),
        ([4, 100, 16], b"\x00\x00\x11\x11\x22\x22\xff\xff", "OW"),
    ],
)
def test_lut_data_comes_as_bytes_as_words_or_as_numbers(
    changed: Changed, descriptor: list[int], data: bytes | list[int], vr: str
) -> None:
    dataset = changed("MR_small.dcm", VOILUTSequence=voi_lut(descriptor, data, vr))
    voi = only(dataset).voi
    assert isinstance(voi, LookupTable)
    shown = voi.apply(np.array([0, 100, 101, 102, 103, 999], np.float32))
    np.testing.assert_allclose(shown, [0, 0, 1 / 15, 2 / 15, 1, 1], atol=1e-6)


def test_lut_words_of_a_big_endian_file_are_big_endian(changed: Changed) -> None:
    sequence = voi_lut([2, 0, 16], b"\x00\x00\x80\x00", "OW")
    voi = only(changed("MR_small_bigendian.dcm", VOILUTSequence=sequence)).voi
    assert isinstance(voi, LookupTable)
    assert voi.table.tolist() == [0, 0x8000]


def test_the_first_value_of_a_lut_is_signed_where_the_pixels_are(changed: Changed) -> None:
    sequence = voi_lut([2, 2**16 - 5, 16], [1, 2], "US")
    voi = only(changed("MR_small.dcm", VOILUTSequence=sequence)).voi
    assert isinstance(voi, LookupTable)
    assert voi.first == -5


@pytest.mark.parametrize(
    ("intercept", "first", "expected"),
    [
        (-1024, 2**16 - 1024, -1024),  # pixels are unsigned, modality values are not
        (-1024, 2**15, -(2**15)),
        (-1024, 100, 100),
        (0, 2**16 - 1024, 2**16 - 1024),
    ],
)
def test_the_first_value_of_a_voi_lut_is_signed_where_modality_values_can_be_negative(
    changed: Changed, intercept: int, first: int, expected: int
) -> None:
    dataset = changed(
        "CT_small.dcm",
        PixelRepresentation=0,
        RescaleIntercept=intercept,
        VOILUTSequence=voi_lut([2, first, 16], [1, 2], "US"),
    )
    voi = only(dataset).voi
    assert isinstance(voi, LookupTable)
    assert voi.first == expected


def test_a_voi_lut_of_negative_values_is_the_same_in_implicit_vr(changed: Changed) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [2048, -1024, 16])
    item.add_new("LUTData", "US", [32 * entry for entry in range(2048)])
    dataset = changed("CT_small.dcm", PixelRepresentation=0, RescaleIntercept=-1024)
    dataset.VOILUTSequence = Sequence([item])
    shown = []
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        dataset.file_meta.TransferSyntaxUID = syntax
        file, plain = io.BytesIO(), Dataset(copy.deepcopy(dataset))
        plain.file_meta = dataset.file_meta
        plain.save_as(file, implicit_vr=syntax.is_implicit_VR, little_endian=True)
        file = io.BytesIO()
        pydicom.dcmwrite(file, plain, enforce_file_format=True)
        frame = next(read_dicom(file.getvalue(), "scan").frames())
        assert isinstance(frame.voi, LookupTable)
        shown.append(frame.voi.apply(frame.values))
    assert shown[0].min() < shown[0].max()
    np.testing.assert_array_equal(shown[1], shown[0])


@pytest.mark.parametrize(
    "sequence",
    [
        voi_lut([300, 0, 16], b"\x00\x01" * 299, "OW"),
        voi_lut([1, 0, 16], b"", "OW"),
        voi_lut([2, 0, 0], [1, 2], "US"),
        Sequence([Dataset()]),
    ],
    ids=["cut short", "empty", "no bits", "empty item"],
)
def test_a_damaged_lut_is_unreadable(changed: Changed, sequence: Sequence) -> None:
    with pytest.raises(ScanUnreadable, match="damaged grey-scale transform"):
        frames(changed("MR_small.dcm", VOILUTSequence=sequence))


def test_a_voi_lut_wins_over_a_window(changed: Changed) -> None:
    sequence = voi_lut([2, 0, 16], [1, 2], "US")
    dataset = changed("MR_small.dcm", VOILUTSequence=sequence)
    assert "WindowCenter" in dataset
    assert isinstance(only(dataset).voi, LookupTable)


def test_the_first_of_several_windows_is_taken(real: Real) -> None:
    dataset = pydicom.dcmread(real("examples_overlay.dcm"))
    assert len(dataset.WindowCenter) == 2
    voi = only(real("examples_overlay.dcm")).voi
    assert isinstance(voi, Window)
    assert (voi.centre, voi.width) == (dataset.WindowCenter[0], dataset.WindowWidth[0])


@pytest.mark.parametrize(
    ("centres", "widths", "expected"),
    [
        ([40, 50], [0, 100], "window 50/100 LINEAR"),
        ([40], [0], "None"),
        ([40], [-5], "None"),
        ([40, 50], [100], "window 40/100 LINEAR"),
        ([], [], "None"),
    ],
)
def test_a_window_without_width_is_passed_over(
    changed: Changed, centres: list[int], widths: list[int], expected: str
) -> None:
    dataset = changed("MR_small.dcm", WindowCenter=centres, WindowWidth=widths)
    assert str(only(dataset).voi) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", "window 600/1600 LINEAR"),
        ("LINEAR_EXACT", "window 600/1600 LINEAR_EXACT"),
        ("SIGMOID", "window 600/1600 SIGMOID"),
        ("SPLINE", "None"),
    ],
)
def test_the_voi_lut_function_is_read_and_an_unknown_one_is_no_window(
    changed: Changed, function: str, expected: str
) -> None:
    assert str(only(changed("MR_small.dcm", VOILUTFunction=function)).voi) == expected


def test_a_fixed_hounsfield_window_is_the_same_on_two_scanners_with_other_rescales(
    changed: Changed,
) -> None:
    """The stored values differ, the Hounsfield units do not."""
    one = changed("CT_small.dcm")
    other = changed("CT_small.dcm", RescaleIntercept="-2048", PixelPaddingValue=None)
    shift = int(one.RescaleIntercept) + 2048
    other.PixelData = (one.pixel_array + np.int16(shift)).astype("<i2").tobytes()
    policy = FixedWindow(centre=40, width=400)
    expected = canonical(one, window=policy)
    assert expected.min() < expected.max()
    np.testing.assert_array_equal(canonical(other, window=policy), expected)
