"""Images and labels are found in all three forms of data, or a line says what is wrong."""

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars
import pytest

from medtl_runtime.errors import ScanNotFound
from medtl_train.config import DataConfig
from medtl_train.data.labels import class_names
from medtl_train.data.samples import Sample, find_samples
from medtl_train.errors import DataUnfit

DEFAULT = DataConfig()


def all_samples(data: Path, config: DataConfig = DEFAULT) -> list[Sample]:
    return list(find_samples(data, config).samples)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def found(data: Path, config: DataConfig = DEFAULT) -> list[tuple[str, str, str]]:
    """Return (path below the folder, label, split) of all samples."""
    root = data if data.is_dir() else data.parent
    return [
        (Path(s.source).relative_to(root).as_posix(), s.label, s.split)
        for s in all_samples(data, config)
    ]


def test_a_folder_of_classes_gives_every_file_below_its_class(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.dcm", "b/study/1.dcm", "a/9.png", "a/10.png")
    assert found(tmp_path) == [
        ("a/10.png", "a", ""),
        ("a/9.png", "a", ""),
        ("b/2.dcm", "b", ""),
        ("b/study/1.dcm", "b", ""),
    ]


def test_hidden_files_and_indexes_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/.DS_Store", "a/DICOMDIR", ".git/HEAD", "notes.txt")
    touch(tmp_path, "a/.cache/2.png")
    assert found(tmp_path) == [("a/1.png", "a", "")]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
def test_folders_of_splits_above_the_classes_are_splits(tmp_path: Path, val: str) -> None:
    touch(tmp_path, "train/a/1", "train/b/2", f"{val}/a/3", f"{val}/b/4", "TEST/a/5")
    samples = found(tmp_path)
    assert {split for _, _, split in samples} == {"train", "val", "test"}
    assert ("TEST/a/5", "a", "test") in samples
    assert (f"{val}/b/4", "b", "val") in samples


def test_real_folders_of_classes_are_found_whole(real_data: Path) -> None:
    samples = all_samples(real_data / "images" / "busi")
    assert Counter(s.label for s in samples) == {"benign": 437, "malignant": 210, "normal": 133}


def test_classes_are_sorted_by_name_and_numbers_by_value(tmp_path: Path) -> None:
    touch(tmp_path, "10/x", "9/x", "2/x")
    assert class_names(s.label for s in all_samples(tmp_path)) == ("2", "9", "10")
    assert class_names(["b10", "b9", "B"]) == (
        "B",
        "b10",
        "b9",
    )


def test_classes_of_the_same_number_keep_an_order() -> None:
    names = ("1", "01", "001", "0")
    orders = {class_names(np.roll(names, k).tolist()) for k in (0, 1)}
    assert orders == {("0", "001", "01", "1")}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no folders in it; expected a folder for each class"),
        (["1.png"], "no folders in it"),
        (["a/1.png", "b/.hidden"], r"b: the class has no images"),
        (["train/a/1", "train/b/2", "other/a/3"], "side by side: other"),
        (["train/1.png", "test/a/1.png"], r"train: no folders in it"),
    ],
)
def test_folders_in_disorder_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DataUnfit, match=message):
        all_samples(tmp_path)


def test_an_empty_class_is_refused_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "healthy/1.png")
    (tmp_path / "lesion").mkdir()
    with pytest.raises(DataUnfit, match=r"lesion: the class has no images"):
        all_samples(tmp_path)


def test_data_that_are_not_there_or_of_no_known_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataUnfit, match="nowhere: no such folder"):
        all_samples(tmp_path / "nowhere")
    (tmp_path / "table.xlsx").write_bytes(b"x")
    with pytest.raises(DataUnfit, match=r"table\.xlsx: expected a folder"):
        all_samples(tmp_path / "table.xlsx")


TABLE = {
    "path": ["a.png", "sub/b.dcm", "/elsewhere/c.png"],
    "label": ["ill", "well", "ill"],
    "patient_id": ["p1", "p2", "p1"],
    "split": ["train", "Validation", "TEST"],
    "age": ["33", "44", "55"],
}


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_manifest_names_path_label_patient_and_split(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"table.{form}"
    getattr(polars.DataFrame(TABLE), f"write_{form}")(path)
    assert all_samples(path) == [
        Sample(source=str(tmp_path / "a.png"), labels=("ill",), patient="p1", split="train"),
        Sample(source=str(tmp_path / "sub/b.dcm"), labels=("well",), patient="p2", split="val"),
        Sample(source="/elsewhere/c.png", labels=("ill",), patient="p1", split="test"),
    ]


def write_csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", "file,finding,who,fold", "a.png,ill,7,test")
    config = DataConfig(
        path_column="file", label_column="finding", patient_column="who", split_column="fold"
    )
    expected = Sample(source=str(tmp_path / "a.png"), labels=("ill",), patient="7", split="test")
    assert all_samples(path, config) == [expected]


def test_patient_and_split_may_be_missing(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", "path,label", "a.png,ill", "b.png, well ")
    assert [(s.label, s.patient, s.split) for s in all_samples(path)] == [
        ("ill", "", ""),
        ("well", "", ""),
    ]


def test_patient_number_zero_is_a_patient(tmp_path: Path) -> None:
    table = {"path": ["a", "b", "c", "d"], "label": [0, 1, 0, 1], "patient_id": [0, 0, 1, None]}
    polars.DataFrame(table).write_parquet(tmp_path / "t.parquet")
    samples = all_samples(tmp_path / "t.parquet")
    assert [s.patient for s in samples] == ["0", "0", "1", ""]
    assert [s.label for s in samples] == ["0", "1", "0", "1"]


def test_not_a_number_in_a_manifest_is_no_value(tmp_path: Path) -> None:
    table = {"path": ["a", "b"], "label": ["x", "y"], "patient_id": [1.0, float("nan")]}
    polars.DataFrame(table).write_parquet(tmp_path / "t.parquet")
    assert [s.patient for s in all_samples(tmp_path / "t.parquet")] == ["1.0", ""]


@pytest.mark.parametrize("option", ["path", "label", "patient", "split"])
def test_a_column_that_was_named_must_be_there(tmp_path: Path, option: str) -> None:
    path = write_csv(tmp_path / "t.csv", "path,label,patient_id,split", "a.png,ill,7,test")
    config = DataConfig(**{f"{option}_column": "pateint"})
    with pytest.raises(DataUnfit, match="no column pateint; its columns are path, label"):
        find_samples(path, config)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label"], "the manifest has no rows"),
        (["path,label", "a.png,ill", ",ill"], "row 2: the path is missing"),
        (["path,label", "a.png,"], "row 1: label is missing; --missing-labels drop leaves"),
        (["path,label,split", "a.png,ill,training"], "row 1: split is training; expected train"),
        (["path,label", "a.png,ill,too,many"], "cannot be read"),
        (["path;label", "a.png;ill"], "no column path; its columns are path;label"),
    ],
)
def test_a_manifest_in_disorder_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write_csv(tmp_path / "t.csv", *lines)
    with pytest.raises(DataUnfit, match=re.escape(message)) as refused:
        all_samples(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(("name", "content"), [("t.csv", b""), ("t.parquet", b"PAR1 damaged")])
def test_a_damaged_manifest_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataUnfit, match="cannot be read"):
        all_samples(tmp_path / name)


def arrays(*splits: str, side: int = 8, **more: np.ndarray) -> dict[str, np.ndarray]:
    made = {}
    for k, split in enumerate(splits):
        rng = np.random.default_rng(k)
        made[f"{split}_images"] = rng.integers(0, 256, (4, side, side), dtype=np.uint8)
        made[f"{split}_labels"] = np.array([[1], [0], [1], [2]])
    return {**made, **more}


def test_an_npz_of_the_medmnist_layout_gives_images_labels_and_splits(tmp_path: Path) -> None:
    content = arrays("train", "val", "test")
    np.savez(tmp_path / "x.npz", **content)
    samples = all_samples(tmp_path / "x.npz")
    assert Counter(s.split for s in samples) == {"train": 4, "val": 4, "test": 4}
    assert [s.label for s in samples[:4]] == ["1", "0", "1", "2"]
    sample = samples[6]
    assert sample.source == f"{tmp_path / 'x.npz'}#val_images/2"
    [frame] = sample.read().frames()
    np.testing.assert_array_equal(frame.values, content["val_images"][2])


def test_real_medmnist_is_found_whole(real_data: Path) -> None:
    samples = all_samples(real_data / "breastmnist.npz")
    assert Counter(s.split for s in samples) == {"train": 546, "val": 78, "test": 156}
    assert class_names(s.label for s in samples) == ("0", "1")
    assert {s.patient for s in samples} == {""}
    named = all_samples(real_data / "mednist6k.npz")
    assert class_names(s.label for s in named) == (
        "AbdomenCT",
        "BreastMRI",
        "CXR",
        "ChestCT",
        "Hand",
        "HeadCT",
    )


def test_label_names_name_the_labels(tmp_path: Path) -> None:
    names = np.array(["normal", "benign", "malignant"])
    np.savez(tmp_path / "x.npz", **arrays("train", label_names=names))
    labels = [s.label for s in all_samples(tmp_path / "x.npz")]
    assert labels == ["benign", "normal", "benign", "malignant"]


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for value in (3, 200):
        content = arrays("train")
        content["train_images"][:] = value
        np.savez(path, **content)
        [frame] = all_samples(path)[0].read().frames()
        assert (frame.values == value).all()


def without(name: str) -> dict[str, np.ndarray]:
    content = arrays("train", "val")
    del content[name]
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (arrays("val"), "no train_images; its arrays are val_images, val_labels"),
        (without("val_labels"), "val_images without val_labels"),
        (arrays("train", train_labels=np.zeros((4, 2, 1))), "expected one row an image"),
        (arrays("train", train_labels=np.array(3)), "expected one row an image"),
        (arrays("train", train_labels=np.full((4, 3), 2)), "that are not all 0 or 1"),
        (
            arrays("train", train_labels=np.eye(4), label_names=np.array(["a"])),
            "1 label_names for 4 labels an image",
        ),
        (
            arrays("train", "val", train_labels=np.eye(4)),
            "val_labels and train_labels differ in their columns",
        ),
        (arrays("train", train_labels=np.zeros(5)), "train_images is 4 x 8 x 8, for 5 labels"),
        (arrays("train", train_labels=np.zeros(3)), "train_images is 4 x 8 x 8, for 3 labels"),
        (arrays("train", train_images=np.zeros((4, 64))), "train_images is 4 x 64"),
        (arrays("train", label_names=np.array(["a", "b"])), "label 2 has no name in label_names"),
        (
            arrays("train", train_labels=np.array([-1, 0, 1, 2]), label_names=np.array(["a"] * 3)),
            "label -1 has no name",
        ),
        (
            arrays("train", train_labels=np.array(["a", None, 1, 2], object)),
            "the array train_labels cannot be read",
        ),
    ],
)
def test_an_npz_in_disorder_is_refused(
    tmp_path: Path, content: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(DataUnfit, match=re.escape(message)) as refused:
        all_samples(tmp_path / "x.npz")
    assert str(tmp_path / "x.npz") in str(refused.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = content.find(b"NUMPY") + 200
    content[start : start + 8] = b"damaged!"
    path.write_bytes(content)


def as_npy(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.zeros(3))
    shutil.move(path.with_suffix(".npy"), path)


@pytest.mark.parametrize(
    "damage", [cut, spoil, as_npy, lambda p: p.write_bytes(b""), lambda p: p.write_text("images")]
)
def test_a_damaged_npz_is_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **arrays("train", "val"))
    damage(path)
    with pytest.raises(DataUnfit, match=re.escape(str(path))):
        all_samples(path)


def test_a_file_that_is_gone_is_a_scan_not_found(tmp_path: Path) -> None:
    with pytest.raises(ScanNotFound):
        Sample(source=str(tmp_path / "gone.png"), labels=("a",)).read()


def test_several_columns_are_several_answers(tmp_path: Path) -> None:
    lines = ["path,edema,age,sex,site", "a.png,1,44.0,f,north", "b.png,,,,", "c.png,No,50,m,south"]
    path = write_csv(tmp_path / "t.csv", *lines)
    config = DataConfig(label_column="edema:binary,age:value=a", covariates="sex")
    found = find_samples(path, config)
    assert [(q.name, q.kind) for q in found.questions] == [
        ("edema", "binary"),
        ("age", "regression"),
    ]
    assert [s.labels for s in found.samples] == [("present", "44"), ("", ""), ("absent", "50")]
    assert [s.covariates for s in found.samples] == [
        {"sex": "f", "site": "north"},
        {"sex": "", "site": ""},
        {"sex": "m", "site": "south"},
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "edema:binary,age:value", "missing_labels": "refuse"}, "row 2: edema is"),
        ({"label_column": "age"}, "row 2: age is missing; --missing-labels drop"),
        ({"label_column": "sex:binary"}, "row 1: sex is f; expected 0 or 1"),
        (
            {"label_column": "edema:binary,age:value", "covariates": "sex",
             "missing_covariates": "refuse"},
            "row 2: sex is missing; --missing-covariates",
        ),
        ({"label_column": "edema:binary,age:value", "covariates": "height"}, "no column height"),
        ({"label_column": "edema:binary", "site_column": "clinic"}, "no column clinic"),
    ],
)  # fmt: skip
def test_a_cell_that_is_missing_or_no_answer_is_refused_with_its_row(
    tmp_path: Path, options: dict, message: str
) -> None:
    path = write_csv(tmp_path / "t.csv", "path,edema,age,sex", "a.png,1,44,f", "b.png,,,")
    with pytest.raises(DataUnfit, match=message):
        find_samples(path, DataConfig(**options))


def test_columns_of_an_npz_are_findings_that_may_occur_together(tmp_path: Path) -> None:
    labels = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]])
    names = np.array(["nodule", "mass", "hernia"])
    np.savez(tmp_path / "x.npz", **arrays("train", train_labels=labels, label_names=names))
    found = find_samples(tmp_path / "x.npz", DEFAULT)
    assert [(q.name, q.kind) for q in found.questions] == [(n, "binary") for n in names]
    assert found.samples[1].labels == ("absent", "present", "present")
    del names
    np.savez(tmp_path / "y.npz", **arrays("train", train_labels=labels))
    unnamed = find_samples(tmp_path / "y.npz", DEFAULT)
    assert [q.name for q in unnamed.questions] == ["finding0", "finding1", "finding2"]
    config = DataConfig(label_column="a:value,b:binary,c:grades")
    told = find_samples(tmp_path / "y.npz", config)
    assert told.samples[1].labels == ("0", "present", "1")


def test_grades_of_an_npz_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = np.array(["normal", "benign", "malignant"])
    np.savez(tmp_path / "x.npz", **arrays("train", label_names=names))
    [question] = find_samples(tmp_path / "x.npz", DataConfig(label_column=":grades")).questions
    assert (question.kind, question.order) == ("ordinal", tuple(names))


def test_folders_may_be_grades(tmp_path: Path) -> None:
    touch(tmp_path, "2/x", "0/x", "1/x")
    config = DataConfig(label_column="birads:grades")
    found = find_samples(tmp_path, config)
    assert [(q.name, q.kind) for q in found.questions] == [("birads", "ordinal")]
    touch(tmp_path, "many/x")
    with pytest.raises(DataUnfit, match="birads is many; expected a number"):
        find_samples(tmp_path, config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "a,b"}, "folders give one label; --label-column asks for 2"),
        ({"covariates": "sex"}, "--covariates names columns of a manifest"),
    ],
)
def test_what_folders_do_not_have_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    touch(tmp_path, "a/1", "b/1")
    with pytest.raises(DataUnfit, match=message):
        find_samples(tmp_path, DataConfig(**options))


def test_external_data_are_one_split_whatever_theirs_are(tmp_path: Path) -> None:
    touch(tmp_path / "own", "a/1", "b/1")
    touch(tmp_path / "other", "train/a/1", "train/b/2", "test/a/3", "test/b/3")
    found = find_samples(tmp_path / "own", DataConfig(external=str(tmp_path / "other")))
    assert Counter(s.split for s in found.samples) == {"": 2, "external": 4}
    with pytest.raises(DataUnfit, match="the data that are trained on"):
        find_samples(tmp_path / "own", DataConfig(external=str(tmp_path / "own")))


def test_external_data_with_other_questions_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays("train"))
    np.savez(tmp_path / "y.npz", **arrays("train", train_labels=np.eye(4)))
    with pytest.raises(
        DataUnfit, match=r"answers finding0 \(binary\).*; expected label \(multiclass\)"
    ):
        find_samples(tmp_path / "x.npz", DataConfig(external=str(tmp_path / "y.npz")))
