"""Labelled files of a site are found, and scored."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from medtl_runtime import Predictor
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head
from medtl_runtime.local_cases import Labelled, find_cases, score_images, score_series
from medtl_runtime.results import Result
from medtl_runtime.testing import FakeEngine, describe

HEADS = (Head(name="label", classes=("dark", "bright")),)


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def test_a_folder_is_a_class_with_all_that_lies_below(tmp_path: Path) -> None:
    files = [touched(tmp_path / name) for name in ("bright/a.dcm", "dark/b.dcm", "dark/x/c.png")]
    for name in ("dark/.hidden", "dark/DICOMDIR", ".cache/d.png"):
        touched(tmp_path / name)
    found = find_cases(tmp_path, HEADS)
    assert [(one.path, one.targets[0]) for one in found.files] == [
        (files[0], 1),
        (files[1], 0),
        (files[2], 0),
    ]
    assert found.unlabelled == 0


def test_files_beside_the_folders_are_counted(tmp_path: Path) -> None:
    for name in ("bright/a.dcm", "README.txt", "b.dcm"):
        touched(tmp_path / name)
    assert find_cases(tmp_path, HEADS).unlabelled == 2


def test_folders_that_are_no_class_are_counted_and_not_named(tmp_path: Path) -> None:
    for name in ("bright/a.dcm", "DOE^JANE/b.dcm"):
        touched(tmp_path / name)
    with pytest.raises(UsageError, match=r"1 of 2 folders are no class.* dark, bright") as caught:
        find_cases(tmp_path, HEADS)
    assert "DOE" not in str(caught.value)


def test_a_manifest_names_files_and_folders_from_where_it_lies(tmp_path: Path) -> None:
    apart = touched(tmp_path / "apart" / "far.dcm")
    for name in ("one/a.dcm", "one/b.dcm", "c.dcm"):
        touched(tmp_path / "site" / name)
    manifest = tmp_path / "site" / "cases.csv"
    manifest.write_text(
        "\ufefflabel,patient_id,path,note\n"
        "bright,7,one,\n"
        f' dark ,,"{apart}","a, b"\n'
        "dark,8,c.dcm,\n"
        "dark,8,gone.dcm,\n",
        encoding="utf-8",
    )
    found = find_cases(manifest, HEADS).files
    assert [(one.path.name, one.targets[0], one.patient) for one in found] == [
        ("a.dcm", 1, "7"),
        ("b.dcm", 1, "7"),
        ("far.dcm", 0, ""),
        ("c.dcm", 0, "8"),
        ("gone.dcm", 0, "8"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\n", "no rows"),
        ("", "no rows"),
        ("file,label\na,dark\n", "no column path"),
        ("path,class\na,dark\n", "no column label"),
        ("path,label\na.dcm,dark\nDOE.dcm,grey\n", "row 2: its label is no class"),
        ("path,label\na.dcm\n", "row 1: its label is no class"),
        ("path,label\n,dark\n", "row 1: path is missing"),
        ("path,label\na.dcm,dark\na.dcm,bright\n", "listed twice"),
        ('path,label\n"a.dcm,dark\n', "not CSV"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_by_row(
    tmp_path: Path, text: str, words: str
) -> None:
    manifest = tmp_path / "cases.csv"
    manifest.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        find_cases(manifest, HEADS)
    assert "DOE" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "cases.csv"
    manifest.write_bytes(b"path,label\n\xff\xfe,dark\n")
    with pytest.raises(UsageError, match="not CSV in UTF-8"):
        find_cases(manifest, HEADS)


@pytest.mark.parametrize("name", ["nothing", "cases.txt", "empty"])
def test_neither_folders_nor_a_manifest_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "cases.txt").write_text("path,label\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="--data"):
        find_cases(tmp_path / name, HEADS)


FOUR = (
    Head(name="liver", classes=("cyst", "healthy", "tumour")),
    Head(name="oedema", kind="binary", classes=("absent", "present")),
    Head(name="grade", kind="ordinal", classes=("1", "2", "3")),
    Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0),
)


def test_a_manifest_has_a_column_for_each_head_and_may_leave_some_empty(tmp_path: Path) -> None:
    manifest = tmp_path / "cases.csv"
    manifest.write_text(
        "path,age,oedema,grade\na.dcm,61.5,present,3\nb.dcm,,0,\nc.dcm,-1e2,absent,1\n"
    )
    found = find_cases(manifest, FOUR).files
    expected = [[np.nan, 1, 2, 61.5], [np.nan, 0, np.nan, np.nan], [np.nan, 0, 0, -100]]
    np.testing.assert_array_equal([one.targets for one in found], expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\na,cyst\n", "there is no column liver or oedema or grade or age"),
        ("path,age\na,old\n", "row 1: age is no number; expected one in a"),
        ("path,age\na,inf\n", "row 1: age is no number"),
        ("path,grade\na,4\n", "row 1: grade is no class; the classes of the model are 1, 2, 3"),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused_by_row_and_head(
    tmp_path: Path, text: str, words: str
) -> None:
    manifest = tmp_path / "cases.csv"
    manifest.write_text(text)
    with pytest.raises(UsageError, match=words):
        find_cases(manifest, FOUR)


def test_folders_cannot_say_what_several_heads_answer(tmp_path: Path) -> None:
    touched(tmp_path / "cyst" / "a.dcm")
    with pytest.raises(UsageError, match=r"columns path, liver, oedema, grade, age"):
        find_cases(tmp_path, FOUR)


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(engine=FakeEngine(describe(heads=HEADS)))


def test_each_frame_is_an_image_with_the_label_of_its_file(
    predictor: Predictor, shipped: Path, cine: Path
) -> None:
    files = [
        Labelled(path=cine, targets=(1,)),
        Labelled(path=shipped / "reportsi.dcm", targets=(0,)),
        Labelled(path=shipped / "CT_small.dcm", targets=(0,), patient="as listed"),
        Labelled(path=shipped / "gone.dcm", targets=(0,)),
    ]
    found = score_images(predictor, files, quiet=True, workers=1)
    assert [case.targets[0] for case in found.cases] == [1] * 15 + [0]
    assert [case.patient for case in found.cases[-2:]] == ["4MR1", "as listed"]
    assert found.left_out == {"scan-without-pixels": 1, "scan-not-found": 1}
    (alone,) = predictor.outcomes(shipped / "CT_small.dcm")
    assert isinstance(alone, Result)
    np.testing.assert_array_equal(found.cases[-1].logits, [alone.logits])


def test_a_series_is_a_case_of_its_slices(predictor: Predictor, shipped: Path) -> None:
    folder = shipped / "dicomdirtests/98892001/CT5N"
    files = [Labelled(path=path, targets=(1,)) for path in sorted(folder.iterdir())]
    files += [
        Labelled(path=shipped / name, targets=(0,)) for name in ("CT_small.dcm", "reportsi.dcm")
    ]
    irregular = shipped / "dicomdirtests/77654033/CT2"
    files += [Labelled(path=path, targets=(0,)) for path in irregular.iterdir()]
    found = score_series(predictor, files, quiet=True)
    assert [(case.targets, case.logits.shape) for case in found.cases] == [
        ((1,), (5, 2)),
        ((0,), (1, 2)),
    ]
    assert found.left_out == {"scan-without-pixels": 1, "series-unfit": 1}


def test_a_series_with_several_labels_is_refused(
    predictor: Predictor, shipped: Path, tmp_path: Path
) -> None:
    paths = sorted((shipped / "dicomdirtests/98892001/CT5N").iterdir())
    files = [Labelled(path=path, targets=(int(index > 2),)) for index, path in enumerate(paths)]
    with pytest.raises(UsageError, match="1 of 1 series have files of several labels"):
        score_series(predictor, files, quiet=True)


def test_the_folder_of_the_files_does_not_matter(
    predictor: Predictor, shipped: Path, tmp_path: Path
) -> None:
    paths = sorted((shipped / "dicomdirtests/98892001/CT5N").iterdir())
    moved = [shutil.copy(path, tmp_path / f"{9 - n}.dcm") for n, path in enumerate(paths)]
    both = [
        score_series(
            predictor, [Labelled(path=Path(path), targets=(0,)) for path in some], quiet=True
        )
        for some in (paths, sorted(moved))
    ]
    np.testing.assert_array_equal(both[0].cases[0].logits, both[1].cases[0].logits)
