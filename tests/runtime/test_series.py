"""Whole series as cases: real ones, and made ones for the exact tolerances."""

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest

from medtl_runtime.errors import SeriesUnfit
from medtl_runtime.reading import read_scan
from medtl_runtime.scan import Frame, Header, Position, Scan
from medtl_runtime.series import Case, group

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def never() -> Iterator[Frame]:
    raise AssertionError("grouping decodes no pixels")


def scan_at(*heights: float, source: str = "", orientation=AXIAL, **fields: Any) -> Scan:
    """Return a scan with one frame at each of the heights, in mm along z."""
    positions = tuple(Position(origin=(-100, -90, z), orientation=orientation) for z in heights)
    values = {
        "modality": "CT",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "series_instance_uid": "1.2.3",
        "rows": 512,
        "columns": 512,
        "pixel_spacing": (0.7, 0.7),
        "positions": positions,
    } | fields
    return Scan(
        source=source or f"{heights}.dcm",
        frame_count=max(1, len(heights)),
        decode=lambda *_: never(),
        header=Header(**values),
    )


def stack(*heights: float) -> list[Scan]:
    return [scan_at(z) for z in heights]


def one_case(scans: Sequence[Scan]) -> Case:
    (case,) = group(scans)
    assert isinstance(case, Case), case
    return case


def refusal(scans: Sequence[Scan]) -> SeriesUnfit:
    (unfit,) = group(scans)
    assert isinstance(unfit, SeriesUnfit), unfit
    return unfit


def heights(case: Case) -> list[float | None]:
    return [one.position_mm for one in case.slices]


def instance_numbers(case: Case) -> list[int]:
    return [
        int(pydicom.dcmread(one.scan.source, specific_tags=["InstanceNumber"]).InstanceNumber)
        for one in case.slices
    ]


@pytest.fixture
def ct(shipped: Path) -> list[Scan]:
    """Return a shipped series of five slices, 2.5 mm apart, numbered against their normal."""
    folder = shipped / "dicomdirtests/98892001/CT5N"
    return [read_scan(path) for path in sorted(folder.iterdir())]


@pytest.fixture
def head(collection: Path) -> list[Scan]:
    """Return 48 oblique slices, 0.9 mm apart, numbered along their normal."""
    return [read_scan(path) for path in sorted((collection / "series/head_mr_48").iterdir())]


class TestRealSeries:
    def test_a_series_comes_in_the_order_of_its_geometry(self, ct: list[Scan], shipped: Path):
        case = one_case(ct)
        assert heights(case) == pytest.approx([-1.2375, 1.2625, 3.7625, 6.2625, 8.7625])
        assert instance_numbers(case) == [10, 9, 8, 7, 6]
        assert case.spacing_mm == pytest.approx(2.5)
        assert case.warnings == ()
        folder = shipped / "dicomdirtests/98892001/CT5N"
        assert case.name == f"{folder}#{ct[0].header.series_instance_uid}"

    def test_oblique_slices_come_in_the_order_of_their_geometry(self, head: list[Scan]):
        case = one_case(head)
        assert instance_numbers(case) == list(range(73, 121))
        assert case.spacing_mm == pytest.approx(0.9, abs=1e-6)
        assert case.warnings == ()

    def test_the_order_of_the_files_does_not_matter(self, head: list[Scan]):
        expected = [one.scan for one in one_case(head).slices]
        assert [one.scan for one in one_case(head[::-1]).slices] == expected
        for seed in range(3):
            shuffled = random.Random(seed).sample(head, len(head))
            assert [one.scan for one in one_case(shuffled).slices] == expected

    @pytest.mark.parametrize("missing", [1, 20, 46])
    def test_a_missing_slice_is_an_irregular_gap(self, head: list[Scan], missing: int):
        unfit = refusal(head[:missing] + head[missing + 1 :])
        assert unfit.attribute == "ImagePositionPatient"
        assert unfit.found == pytest.approx([0.9, 0.9, 1.8])
        assert "irregular series" in unfit.reason

    def test_a_slice_that_comes_twice_is_refused(self, head: list[Scan]):
        unfit = refusal([*head, head[7]])
        assert "1 of 49 slices lie where another one does" in unfit.reason
        assert (unfit.found, unfit.expected) == ("48 positions", "49 positions")

    def test_slices_of_two_ends_of_a_scan_are_irregular(self, shipped: Path):
        folder = shipped / "dicomdirtests/77654033/CT2"
        unfit = refusal([read_scan(path) for path in folder.iterdir()])
        assert unfit.found == pytest.approx([1.25, 1.25, 202.5])

    def test_localizers_in_three_directions_are_a_mixed_series(self, shipped: Path):
        folder = shipped / "dicomdirtests/98892003/MR2"
        scans = [read_scan(folder / name) for name in ("4950", "4981", "5011")]
        unfit = refusal(scans)
        assert unfit.attribute == "ImageOrientationPatient"
        assert "mixed series" in unfit.reason

    def test_a_folder_of_several_series_gives_each_of_them(self, shipped: Path):
        folder = shipped / "dicomdirtests/98892001"
        scans = [read_scan(path) for path in sorted(folder.rglob("*")) if path.is_file()]
        cases = group(scans)
        assert len(cases) == len({scan.header.series_instance_uid for scan in scans})
        sliced = [case for case in cases if isinstance(case, Case)]
        assert [len(case.slices) for case in sliced if len(case.slices) > 1] == [5]

    def test_the_frames_of_an_enhanced_object_are_slices(self, real: Callable[[str], Path]):
        case = one_case([read_scan(real("6_1.dcm"))])
        assert len(case.slices) == 6
        assert case.spacing_mm == pytest.approx(2.4, abs=1e-5)
        assert case.name == str(real("6_1.dcm"))
        assert case.warnings == ()

    def test_several_stacks_in_an_enhanced_object_are_refused(self, real: Callable[[str], Path]):
        unfit = refusal([read_scan(real("IM_0027_fMAP.dcm"))])
        assert "32 of 64 slices lie where another one does" in unfit.reason

    def test_a_second_echo_in_another_file_is_refused(self, real: Callable[[str], Path]):
        unfit = refusal([read_scan(real(name)) for name in ("6_1.dcm", "6_2.dcm")])
        assert (unfit.found, unfit.expected) == ("6 positions", "12 positions")

    def test_a_cine_loop_keeps_the_order_of_its_frames_and_says_so(self, shipped: Path):
        case = one_case([read_scan(shipped / "examples_ybr_color.dcm")])
        assert [one.frame for one in case.slices] == list(range(30))
        assert set(heights(case)) == {None}
        assert case.spacing_mm is None
        (warning,) = case.warnings
        assert "ImagePositionPatient is missing" in warning

    @pytest.mark.parametrize("name", ["emri_small.dcm", "sm_image.dcm"])
    def test_frames_in_space_without_positions_are_no_cine_loop(
        self, real: Callable[[str], Path], name: str
    ):
        assert "missing in 1 of 1 files" in refusal([read_scan(real(name))]).reason

    def test_two_radiographs_are_no_series(self, real: Callable[[str], Path]):
        unfit = refusal([read_scan(real(name)) for name in ("RG3_J2KR.dcm", "RG3_J2KI.dcm")])
        assert "missing in 2 of 2 files" in unfit.reason

    def test_one_radiograph_is_a_case_of_one_slice(self, real: Callable[[str], Path]):
        case = one_case([read_scan(real("RG3_J2KR.dcm"))])
        (only,) = case.slices
        assert (only.frame, only.position_mm, case.spacing_mm) == (0, None, None)
        assert case.warnings == ()


class TestWhatASeriesNeeds:
    def test_a_picture_forms_no_series(self, tmp_path: Path):
        from PIL import Image

        paths = [tmp_path / "a.png", tmp_path / "b.png"]
        for path in paths:
            Image.new("L", (8, 8)).save(path)
        refused = group([read_scan(path) for path in paths])
        assert [str(one) for one in refused] == [
            f"{path}: not DICOM; only DICOM images form a series" for path in paths
        ]

    def test_each_file_without_a_series_uid_is_refused_by_itself(self):
        scans = [scan_at(z, series_instance_uid="") for z in (0, 1)]
        unfit = group([*scans, *stack(0, 1)])
        assert [type(one) for one in unfit] == [SeriesUnfit, SeriesUnfit, Case]
        assert isinstance(unfit[1], SeriesUnfit)
        assert unfit[1].source == scans[1].source
        assert unfit[1].attribute == "SeriesInstanceUID"

    def test_cases_come_in_the_order_in_which_their_series_appear(self):
        scans = [
            scan_at(z, series_instance_uid=uid)
            for z, uid in [(1, "b"), (0, "a"), (0, "b"), (1, "a")]
        ]
        cases = group(scans)
        assert [case.series_instance_uid for case in cases if isinstance(case, Case)] == ["b", "a"]

    def test_an_unfit_series_does_not_stop_the_others(self):
        bad = [scan_at(z, series_instance_uid="bad") for z in (0, 1, 3)]
        first, second = group([*bad, *stack(0, 1, 2)])
        assert isinstance(first, SeriesUnfit)
        assert isinstance(second, Case)

    def test_nothing_gives_no_case(self):
        assert group([]) == []

    @pytest.mark.parametrize(
        ("attribute", "fields", "found"),
        [
            ("Modality", {"modality": "MR"}, ["CT", "MR"]),
            ("Modality", {"modality": ""}, ["CT", "missing"]),
            ("Rows x Columns", {"rows": 256}, ["512 x 512", "256 x 512"]),
            ("FrameOfReferenceUID", {"frame_of_reference_uid": "1.9"}, "2 values"),
            ("StudyInstanceUID", {"study_instance_uid": "1.9"}, "2 values"),
            ("PatientID", {"patient_id": "Planted^Name"}, "2 values"),
            ("SOPClassUID", {"sop_class_uid": "1.9"}, ["missing", "1.9"]),
            (
                "PhotometricInterpretation",
                {"photometric_interpretation": "RGB"},
                ["missing", "RGB"],
            ),
            ("ImageType", {"image_type": ("DERIVED", "PRIMARY")}, ["missing", "DERIVED"]),
        ],
    )
    def test_a_mixed_series_is_refused(self, attribute: str, fields: dict[str, Any], found: object):
        unfit = refusal([*stack(0, 1, 2), scan_at(3, **fields)])
        assert (unfit.attribute, unfit.found) == (attribute, found)
        assert unfit.reason == f"mixed series: {attribute} of 1 images differs from that of 3"
        assert unfit.status == "refused"

    @pytest.mark.parametrize(
        ("spacing", "fits"),
        [((0.7, 0.7005), True), ((0.7, 0.702), False), ((0.9, 0.9), False), (None, False)],
    )
    def test_another_pixel_spacing_makes_a_mixed_series(
        self, spacing: tuple[float, float] | None, fits: bool
    ):
        scans = [*stack(0, 1), scan_at(2, pixel_spacing=spacing)]
        if fits:
            one_case(scans)
        else:
            assert refusal(scans).attribute == "PixelSpacing"

    def test_frames_that_differ_in_pixel_spacing_are_a_mixed_series(self):
        scan = scan_at(0, 1, 2, pixel_spacing=None, frame_spacings=((0.7, 0.7), (0.9, 0.7)))
        unfit = refusal([scan])
        assert (unfit.attribute, unfit.found) == ("PixelSpacing", [[0.7, 0.7], [0.9, 0.7]])
        one_case([scan_at(0, 1, 2, pixel_spacing=None)])

    def test_images_of_another_kind_but_the_same_acquisition_stay_together(self):
        kinds = [("ORIGINAL", "PRIMARY", "AXIAL"), ("ORIGINAL", "SECONDARY")]
        one_case([scan_at(z, image_type=kinds[z % 2]) for z in range(4)])

    def test_two_files_of_one_instance_are_refused(self):
        uids = ["1.1", "1.2", "1.2", "1.3"]
        unfit = refusal([scan_at(z, sop_instance_uid=uid) for z, uid in enumerate(uids)])
        assert unfit.attribute == "SOPInstanceUID"
        assert unfit.reason == "1 of 4 files have the SOPInstanceUID of another"

    @pytest.mark.parametrize(
        ("shifts", "outcome"),
        [
            ((0, 0, 0, 0, 0), "regular"),
            ((0, 0.5, 1, 1.5, 2), "regular"),  # a tilted gantry
            ((0, 0, 0.009, 0, 0), "regular"),
            ((0, 0.05, 0.05, 0.05, 0.05), "warned of"),
            ((0, 0, 0.2, 0, 0), "refused"),
            ((0, 0, 200, 200, 200), "refused"),
            ((0, 200, 0, 200, 0), "refused"),
        ],
    )
    def test_slices_that_jump_sideways_are_irregular(self, shifts: Sequence[float], outcome: str):
        scans = []
        for z, shift in enumerate(shifts):
            place = Position(origin=(-100 + 0.6 * shift, 0.8 * shift, z), orientation=AXIAL)
            scans.append(scan_at(z, positions=(place,)))
        (case,) = group(scans[::-1])
        if outcome == "refused":
            assert isinstance(case, SeriesUnfit)
            assert (case.attribute, "beside the line" in case.reason) == (
                "ImagePositionPatient",
                True,
            )
        else:
            assert isinstance(case, Case)
            assert len(case.warnings) == (outcome == "warned of")

    def test_one_slice_without_a_position_refuses_the_series(self):
        unfit = refusal([*stack(0, 1), scan_at(source="no-position")])
        assert unfit.attribute == "ImagePositionPatient"
        assert "missing in 1 of 3 files" in unfit.reason

    def test_fewer_positions_than_frames_are_refused(self):
        loop = dataclasses.replace(scan_at(0), frame_count=3)
        assert "missing in 1 of 1 files" in refusal([loop]).reason

    def test_a_cine_loop_among_other_files_is_refused(self):
        loop = scan_at(0, 1, 2, positions=())
        assert len(one_case([loop]).slices) == 3
        assert "missing in 1 of 2 files" in refusal([loop, scan_at(5)]).reason

    @pytest.mark.parametrize("height", [float("nan"), float("inf"), -1e300])
    def test_a_position_that_is_no_number_is_refused(self, height: float):
        assert refusal(stack(0, height, 2)).reason == "ImagePositionPatient is out of range"

    def test_no_patient_data_gets_into_the_reason(self):
        fields = {
            "patient_id": "4711",
            "study_instance_uid": "1.2.99",
            "frame_of_reference_uid": "1.8",
        }
        for name, value in fields.items():
            unfit = refusal([*stack(0, 1), scan_at(2, **{name: value})])
            assert value not in f"{unfit.reason} {unfit.found} {unfit.expected}"


class TestGeometry:
    def test_frames_of_several_files_are_sorted_together(self):
        case = one_case([scan_at(3, 1, source="a"), scan_at(0, 2, source="b")])
        assert [(one.scan.source, one.frame) for one in case.slices] == [
            ("b", 0), ("a", 1), ("b", 1), ("a", 0),
        ]  # fmt: skip
        assert heights(case) == [0, 1, 2, 3]

    def test_frames_of_one_file_are_sorted(self):
        assert [one.frame for one in one_case([scan_at(3, 1, 2)]).slices] == [1, 2, 0]

    def test_the_position_is_measured_along_the_normal(self):
        positions = [Position(origin=(x, 7, 9), orientation=SAGITTAL) for x in (4, 0, 2)]
        scans = [scan_at(0, source=str(p.origin[0]), positions=(p,)) for p in positions]
        case = one_case(scans)  # the normal of these directions is -x
        assert [one.scan.source for one in case.slices] == ["4", "2", "0"]
        assert heights(case) == [-4, -2, 0]

    @pytest.mark.parametrize(
        ("departure", "outcome"), [(0.009, "fits"), (0.011, "warns"), (0.099, "warns")]
    )
    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_gap_may_depart_a_little(self, departure: float, outcome: str, sign: int):
        case = one_case(stack(0, 1, 2, 3, 4 + sign * departure))
        assert case.spacing_mm == pytest.approx(1)
        assert (case.warnings == ()) == (outcome == "fits")
        if outcome == "warns":
            assert f"{departure:.1%} off the median; expected within 1%" in case.warnings[0]

    @pytest.mark.parametrize("last", [4.101, 3.899, 5.0, 3.01])
    def test_a_gap_that_departs_more_is_refused(self, last: float):
        unfit = refusal(stack(0, 1, 2, 3, last))
        assert "irregular series" in unfit.reason
        assert unfit.expected == "gaps within 10% of the median"

    def test_a_missing_slice_among_four_is_found(self):
        assert refusal(stack(0, 1, 3)).found == [1, 1.5, 2]

    @pytest.mark.parametrize(("apart", "fits"), [(0.0, False), (0.0009, False), (0.0011, True)])
    def test_two_slices_are_apart_from_a_micrometre_on(self, apart: float, fits: bool):
        (case,) = group([scan_at(0), scan_at(apart, source="other")])
        assert isinstance(case, Case) == fits

    @pytest.mark.parametrize(
        ("orientation", "fits"),
        [
            ((1.0009, 0, 0, 0, 1, 0), True),
            ((1.0011, 0, 0, 0, 1, 0), False),
            ((1, 0, 0, 0, 0.9989, 0), False),
            ((1, 0, 0, 0.0009, 1, 0), True),
            ((1, 0, 0, 0.0011, 1, 0), False),
            ((0, 0, 0, 0, 0, 0), False),
            ((1, 0, 0, 1, 0, 0), False),
            ((1, 0, 0, 0, float("nan"), 0), False),
            ((1, 0, 0, 0, float("inf"), 0), False),
            ((1e300, 0, 0, 1e300, 1, 0), False),
        ],
    )
    def test_directions_must_be_orthogonal_unit_vectors(
        self, orientation: tuple[float, ...], fits: bool
    ):
        scans = [scan_at(z, orientation=orientation) for z in (0, 1, 2)]
        if fits:
            assert one_case(scans).spacing_mm == pytest.approx(1)
        else:
            unfit = refusal(scans)
            assert unfit.attribute == "ImageOrientationPatient"
            assert "no orthogonal unit vectors in 3 of 3 slices" in unfit.reason

    @pytest.mark.parametrize(
        ("orientation", "fits"),
        [
            ((1, 0.0009, 0, -0.0009, 1, 0), True),
            ((1, 0.0011, 0, -0.0011, 1, 0), False),
            (SAGITTAL, False),
            ((-1, 0, 0, 0, -1, 0), False),  # the same normal, but turned by half a circle
        ],
    )
    def test_directions_must_be_the_same(self, orientation: tuple[float, ...], fits: bool):
        scans = [*stack(0, 1, 2), scan_at(3, orientation=orientation)]
        if fits:
            one_case(scans)
        else:
            assert refusal(scans).reason == "mixed series: the orientation differs in 1 of 4 slices"


class TestNames:
    @pytest.mark.parametrize(
        ("sources", "name"),
        [
            (("a/1.dcm",), "a/1.dcm"),
            (("a/b/1.dcm", "a/b/2.dcm"), "a/b#1.2.3"),
            (("a/b/1.dcm", "a/c/2.dcm"), "a#1.2.3"),
            (("z.zip#s/1.dcm", "z.zip#s/2.dcm"), "z.zip#s#1.2.3"),
            (("1.dcm", "2.dcm"), "1.2.3"),
            (("a/1.dcm", "b/2.dcm"), "1.2.3"),
            (("/a/1.dcm", "a/2.dcm"), "1.2.3"),
        ],
    )
    def test_a_case_is_named_by_its_file_or_folder(self, sources: tuple[str, ...], name: str):
        case = one_case([scan_at(z, source=source) for z, source in enumerate(sources)])
        assert case.name == name

    def test_a_refusal_names_the_case(self):
        unfit = refusal([scan_at(z, source=f"study/{z}.dcm") for z in (0, 0)])
        assert re.match(r"study#1\.2\.3: 1 of 2 slices", str(unfit))
