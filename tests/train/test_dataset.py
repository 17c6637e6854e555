"""Data are read, cleaned and split; what is left out is listed with its reason."""

import csv
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from medtl_runtime.errors import OutputNotWritten, UsageError
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_train.config import DataConfig
from medtl_train.data.dataset import Dataset, build_dataset, folds
from medtl_train.data.images import image_set, spread
from medtl_train.data.labels import parse_questions
from medtl_train.data.listing import read_again, write_splits
from medtl_train.data.samples import SPLITS, Found, Sample, find_samples
from medtl_train.errors import DataUnfit

GREY = Recipe(size=(32, 32), channels=1, window=HeaderVoi())


def build(
    samples: Sequence[Sample], recipe: Recipe = GREY, seed: int = 0, **options: Any
) -> Dataset:
    config = DataConfig(cache="none", **options)
    questions = parse_questions(config.label_column)
    found = Found(samples=tuple(samples), questions=questions)
    return build_dataset(found, recipe, config, seed=seed)


@pytest.fixture
def images(tmp_path: Path, write_image: Callable) -> list[Sample]:
    """Return twelve images of each of two classes."""
    return [
        Sample(
            source=str(write_image(tmp_path / label / f"{k:02}.png", 100 * c + k)), labels=(label,)
        )
        for c, label in enumerate(("a", "b"))
        for k in range(12)
    ]


def reasons(dataset: Dataset) -> dict[str, str]:
    return {Path(left.source).name: left.reason for left in dataset.excluded}


def test_phantoms_are_split_by_the_patients_of_their_headers(lung: Path) -> None:
    for seed in range(4):
        dataset = build(find_samples(lung, DataConfig()).samples, seed=seed)
        of = {name: {i.patient for i in dataset.images[name]} for name in SPLITS}
        assert sum(len(patients) for patients in of.values()) == len(set.union(*of.values())) == 24
        assert all(of[name] for name in ("train", "val", "test"))
        for name in SPLITS:
            for image in dataset.images[name]:
                header = pydicom.dcmread(image.sample.source, stop_before_pixels=True)
                assert image.patient == header.PatientID
    assert dataset.patients_known
    assert {i.header.modality for name in SPLITS for i in dataset.images[name]} == {"CT"}
    assert dataset.classes == ("healthy", "lesion")
    assert not dataset.excluded


def test_a_manifest_overrules_the_patients_of_the_headers(lung: Path) -> None:
    samples = [
        Sample(source=s.source, labels=(s.label,), patient=f"p{k // 4}")
        for k, s in enumerate(find_samples(lung, DataConfig()).samples)
    ]
    dataset = build(samples)
    assert {i.patient for name in SPLITS for i in dataset.images[name]} == {
        f"p{k}" for k in range(12)
    }


def test_images_without_a_patient_are_patients_of_their_own(images: list[Sample]) -> None:
    dataset = build(images)
    assert not dataset.patients_known
    assert len(set(dataset.split("train").patients)) == len(dataset.split("train"))


def test_arrays_agree_with_the_images(images: list[Sample]) -> None:
    dataset = build(images)
    train = dataset.split("train")
    assert train.pixels.shape == (len(train), 1, 32, 32)
    assert train.pixels.dtype == np.uint16
    assert [dataset.classes[k] for k in train.labels] == [
        Path(s).parent.name for s in train.sources
    ]
    for row, source in zip(train.pixels, train.sources, strict=True):
        [frame] = Sample(source=source, labels=("",)).read().frames()
        np.testing.assert_array_equal(row, GREY.apply(frame).pixels)


def test_without_a_test_share_there_is_no_test_split(images: list[Sample]) -> None:
    dataset = build(images, test_fraction=0)
    assert dataset.images["test"] == ()
    assert len(dataset.images["val"]) == 4  # 1 of 7 folds, in whole images of both classes


def given(samples: list[Sample], *splits: str) -> list[Sample]:
    """Deal out splits in turn."""
    return [
        Sample(source=s.source, labels=(s.label,), patient=s.patient, split=splits[k % len(splits)])
        for k, s in enumerate(samples)
    ]


def test_splits_of_the_data_are_kept(images: list[Sample]) -> None:
    dealt = given(images, "train", "test", "val")
    dataset = build(dealt)
    for name in ("train", "val", "test"):
        expected = {s.source for s in dealt if s.split == name}
        assert {i.sample.source for i in dataset.images[name]} == expected


def test_validation_is_taken_from_training_where_only_a_test_set_is_given(
    images: list[Sample],
) -> None:
    dealt = given(images, "train", "train", "test")
    dataset = build(dealt, val_fraction=0.25)
    assert {i.sample.source for i in dataset.images["test"]} == {
        s.source for s in dealt if s.split == "test"
    }
    assert len(dataset.images["val"]) == 4
    assert len(dataset.images["train"]) == 12
    assert {i.sample.label for i in dataset.images["val"]} == {"a", "b"}


def test_given_training_and_validation_need_no_test(images: list[Sample]) -> None:
    dataset = build(given(images, "train", "val"))
    assert dataset.images["test"] == ()


@pytest.mark.parametrize(
    ("splits", "share", "option"),
    [
        (("train", "val", "test"), {"test_fraction": 0.3}, "--test-fraction"),
        (("train", "val", "test"), {"val_fraction": 0.3}, "--val-fraction"),
        (("train", "val"), {"test_fraction": 0.3}, "--test-fraction"),
        (("train", "test"), {"test_fraction": 0.0}, "--test-fraction"),
    ],
)
def test_a_share_of_a_split_that_is_not_drawn_is_refused(
    images: list[Sample], splits: tuple[str, ...], share: dict, option: str
) -> None:
    with pytest.raises(DataUnfit, match=f"{option} has no effect"):
        build(given(images, *splits), **share)


def test_the_share_of_a_split_that_is_drawn_is_taken(images: list[Sample]) -> None:
    dataset = build(given(images, "train", "train", "test"), val_fraction=0.3)
    assert len(dataset.split("val")) == 4  # of 16; the default share would give 2


def test_rows_without_a_split_join_training_where_others_have_one(images: list[Sample]) -> None:
    dealt = given(images, "train", "val", "test", "")
    dataset = build(dealt)
    assert {i.sample.source for i in dataset.images["train"]} == {
        s.source for s in dealt if s.split in ("train", "")
    }


@pytest.mark.parametrize("splits", [("train", "val"), ("train", "test"), ("val", "test")])
def test_a_patient_in_two_given_splits_is_refused(images: list[Sample], splits: tuple) -> None:
    dealt = given(images, "train", "val", "test")
    torn = [next(s for s in dealt if s.split == split) for split in splits]
    mixed = [
        Sample(
            source=s.source,
            labels=(s.label,),
            split=s.split,
            patient="Doe" if s in torn else str(k),
        )
        for k, s in enumerate(dealt)
    ]
    with pytest.raises(DataUnfit, match="more than one split: Doe"):
        build(mixed)


@pytest.mark.parametrize("splits", [("test", ""), ("train", "val", "test", "")])
def test_a_patient_with_a_split_and_without_one_is_refused(
    images: list[Sample], splits: tuple[str, ...]
) -> None:
    dealt = [
        Sample(
            source=s.source, labels=(s.label,), patient=f"p{k // 4}", split=splits[k % len(splits)]
        )
        for k, s in enumerate(images)
    ]
    with pytest.raises(DataUnfit, match="more than one split: p0"):
        build(dealt)


def test_repeated_pixels_are_left_out_whatever_the_file_is_called(
    images: list[Sample], tmp_path: Path
) -> None:
    first = Path(images[0].source)
    copy = shutil.copy(first, tmp_path / "copy.png")
    with Image.open(first) as image:
        np.save(tmp_path / "other format.npy", np.asarray(image))
    more = [
        Sample(source=str(copy), labels=("a",)),
        Sample(source=str(tmp_path / "other format.npy"), labels=("a",)),
    ]
    dataset = build([*images, *more])
    expected = f"same pixels as {first}"
    assert reasons(dataset) == {"copy.png": expected, "other format.npy": expected}
    assert sum(map(len, dataset.images.values())) == 24


def test_real_dicom_in_another_encoding_is_a_duplicate(
    images: list[Sample], pydicom_files: Path
) -> None:
    names = ("MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm")
    more = [Sample(source=str(pydicom_files / name), labels=("a",)) for name in names]
    dataset = build([*images, *more])
    expected = f"same pixels as {pydicom_files / 'MR_small.dcm'}"
    assert reasons(dataset) == dict.fromkeys(names[1:], expected)


def test_every_copy_with_two_labels_is_left_out(images: list[Sample], tmp_path: Path) -> None:
    shutil.copy(images[0].source, tmp_path / "again.png")
    dataset = build([*images, Sample(source=str(tmp_path / "again.png"), labels=("b",))])
    expected = "the same pixels are labelled a and b"
    assert reasons(dataset) == {"00.png": expected, "again.png": expected}


def test_a_duplicate_is_kept_where_the_evaluation_needs_it(
    images: list[Sample], tmp_path: Path
) -> None:
    dealt = given(images, "train", "val", "test")
    shutil.copy(dealt[0].source, tmp_path / "twin.png")
    twin = Sample(source=str(tmp_path / "twin.png"), labels=("a",), split="test")
    dataset = build([*dealt, twin])
    assert reasons(dataset) == {"00.png": f"same pixels as {tmp_path / 'twin.png'}"}
    assert str(tmp_path / "twin.png") in {i.sample.source for i in dataset.images["test"]}


def truncated(path: Path, pydicom_files: Path) -> None:
    path.write_bytes((pydicom_files / "CT_small.dcm").read_bytes()[:5000])


def nan(path: Path, _: Path) -> None:
    values = np.zeros((8, 8), np.float32)
    values[3, 4] = np.nan
    np.save(path.with_suffix(".npy"), values)
    path.with_suffix(".npy").rename(path)


def half_a_png(path: Path, _: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(
        path, "PNG"
    )
    path.write_bytes(path.read_bytes()[:1500])


def in_colour(path: Path, _: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), (200, 30, 30), np.uint8)).save(path, "PNG")


def transparent(path: Path, _: Path) -> None:
    Image.fromarray(np.full((8, 8, 4), 100, np.uint8)).save(path, "PNG")


def pickled(path: Path, _: Path) -> None:
    np.save(path.with_suffix(".npy"), np.array([{}], object))
    path.with_suffix(".npy").rename(path)


BAD = {
    "zero bytes": (lambda path, _: path.write_bytes(b""), "the file is empty"),
    "text": (lambda path, _: path.write_text("no image"), "neither DICOM nor PNG, JPEG or NPY"),
    "truncated DICOM": (truncated, "cut short"),
    "truncated PNG": (half_a_png, "damaged PNG or JPEG file"),
    "a plan": (lambda path, files: shutil.copy(files / "rtplan.dcm", path), "without an image"),
    "a report": (lambda path, files: shutil.copy(files / "reportsi.dcm", path), "without an image"),
    "an ECG": (
        lambda path, files: shutil.copy(files / "waveform_ecg.dcm", path),
        "without an image",
    ),
    "pixels cut off": (
        lambda path, files: shutil.copy(files / "MR_truncated.dcm", path),
        "the pixel data is cut short",
    ),
    "NaN": (nan, "the pixels hold NaN or infinity"),
    "colour for a grey model": (in_colour, "colour image; the model expects a grey one"),
    "transparent": (transparent, "partly transparent"),
    "pickled objects": (pickled, "array of object; expected numbers"),
    "gone": (lambda *_: None, "no such file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_used_is_listed_and_left_out(
    kind: str, images: list[Sample], tmp_path: Path, pydicom_files: Path
) -> None:
    make, reason = BAD[kind]
    make(tmp_path / "odd", pydicom_files)
    dataset = build([*images, Sample(source=str(tmp_path / "odd"), labels=("b",), split="")])
    assert list(reasons(dataset)) == ["odd"]
    assert reason in reasons(dataset)["odd"]
    assert str(tmp_path) not in reasons(dataset)["odd"]  # it is listed beside its reason
    assert dataset.excluded[0].label == "b"
    assert sum(map(len, dataset.images.values())) == 24


def test_all_frames_of_a_file_are_images_of_one_patient(
    images: list[Sample], pydicom_files: Path, tmp_path: Path
) -> None:
    cine = pydicom.dcmread(pydicom_files / "MR_small.dcm")
    stored = cine.pixel_array
    cine.NumberOfFrames = 3
    cine.PixelData = np.stack([np.roll(stored, n) for n in (0, 5, 5)]).tobytes()
    cine.save_as(tmp_path / "cine.dcm")
    scan = Sample(source=str(tmp_path / "cine.dcm"), labels=("a",))
    dataset = build([*images, scan])
    frames = [i for name in SPLITS for i in dataset.images[name] if i.sample == scan]
    count = pydicom.dcmread(scan.source, stop_before_pixels=True).NumberOfFrames
    assert len(frames) + len(dataset.excluded) == count > 1
    assert len({i.split for i in frames}) == len({i.patient for i in frames}) == 1


def test_one_class_is_refused(images: list[Sample]) -> None:
    with pytest.raises(DataUnfit, match=r"one class only \(a\)"):
        build([s for s in images if s.label == "a"])


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_training_lacks_is_refused(images: list[Sample], split: str) -> None:
    dealt = given(images, "train", "val", "test")
    stranger = Sample(source=images[0].source, labels=("rare",), split=split)
    with pytest.raises(DataUnfit, match=f"class rare is in {split} and has no training images"):
        build([*dealt, stranger])


def test_a_class_that_validation_lacks_is_refused(images: list[Sample]) -> None:
    dealt = [s for s in given(images, "train", "val") if (s.label, s.split) != ("b", "val")]
    with pytest.raises(DataUnfit, match="class b has no usable validation images: the data give"):
        build(dealt)


def test_a_class_without_a_usable_image_is_refused_with_the_reason(images: list[Sample]) -> None:
    for sample in images:
        if sample.label == "b":
            Path(sample.source).write_bytes(b"")
    expected = (
        "class b has no usable training images: 12 were left out, 12 because: the file is empty"
    )
    with pytest.raises(DataUnfit, match=expected):
        build(images)


def test_too_few_patients_are_refused(images: list[Sample]) -> None:
    one_each = [Sample(source=s.source, labels=(s.label,), patient=s.label) for s in images]
    with pytest.raises(DataUnfit, match="2 patients cannot make 3 splits"):
        build(one_each)


def test_the_fingerprint_tells_pixels_labels_and_splits_and_nothing_else(
    images: list[Sample], tmp_path: Path
) -> None:
    dealt = given(images, "train", "val", "test")
    first = build(dealt).fingerprint
    assert first.startswith("sha256:")
    moved = tmp_path / "moved.png"
    shutil.copy(dealt[5].source, moved)
    renamed = [
        *dealt[:5],
        Sample(source=str(moved), labels=("a",), split=dealt[5].split),
        *dealt[6:],
    ]
    assert build(renamed[::-1]).fingerprint == first
    fewer = build(dealt[:-1]).fingerprint
    swapped = build(given(images, "train", "test", "val")).fingerprint
    relabelled = build(
        [*dealt[:-1], Sample(source=dealt[-1].source, labels=("a",), split=dealt[-1].split)]
    ).fingerprint
    assert len({first, fewer, swapped, relabelled}) == 4


def test_progress_is_counted_by_samples(images: list[Sample]) -> None:
    seen = []

    def track(items):
        for item in items:
            seen.append(item)
            yield item

    found = Found(samples=tuple(images), questions=parse_questions("label"))
    build_dataset(found, GREY, DataConfig(cache="none"), seed=0, track=track)
    assert len(seen) == len(images)


def test_splits_csv_lists_every_image_and_what_was_left_out(
    images: list[Sample], tmp_path: Path
) -> None:
    Path(images[0].source).write_bytes(b"")
    dataset = build(images)
    write_splits(tmp_path / "splits.csv", dataset)
    with (tmp_path / "splits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert Counter(row["split"] for row in rows) == {
        **{name: len(dataset.images[name]) for name in ("train", "val", "test")},
        "": 1,
    }
    [left] = [row for row in rows if row["reason"]]
    assert (left["source"], left["label"]) == (images[0].source, "a")
    assert left["reason"] == "the file is empty"
    assert all(Path(row["source"]).is_absolute() for row in rows)


def test_a_split_is_read_again_pixel_by_pixel(lung: Path, tmp_path: Path) -> None:
    dataset = build(find_samples(lung, DataConfig()).samples)
    write_splits(tmp_path / "splits.csv", dataset)
    for name in ("train", "val", "test"):
        found, missing = read_again(tmp_path / "splits.csv", name, GREY)
        assert missing == []
        again, first = image_set(found, dataset.heads), dataset.split(name)
        np.testing.assert_array_equal(again.pixels, first.pixels)
        np.testing.assert_array_equal(again.labels, first.labels)
        np.testing.assert_array_equal(again.patients, first.patients)
        assert list(again.sources) == list(first.sources)


def test_reading_again_reports_what_changed_or_is_gone(
    images: list[Sample], tmp_path: Path, write_image: Callable
) -> None:
    dataset = build(images)
    write_splits(tmp_path / "splits.csv", dataset)
    changed, gone, *kept = dataset.split("train").sources
    write_image(Path(changed), 999)
    Path(gone).unlink()
    found, missing = read_again(tmp_path / "splits.csv", "train", GREY)
    assert [image.sample.source for image in found] == kept
    assert {left.source: left.reason for left in missing} == {
        changed: "its pixels have changed since training",
        gone: "no such file",
    }
    some, _ = read_again(tmp_path / "splits.csv", "train", GREY, at_most=3)
    assert len(some) <= 3


def test_an_output_that_cannot_be_written_is_named(images: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputNotWritten, match=r"splits\.csv was not written"):
        write_splits(tmp_path / "file" / "splits.csv", build(images))


def test_a_spread_takes_from_every_class_and_is_always_the_same() -> None:
    labels = ["a"] * 500 + ["b"] * 3 + ["c"] * 20
    drawn = spread(labels, 30)
    assert Counter(labels[i] for i in drawn) == {"a": 14, "b": 3, "c": 13}
    assert drawn == sorted(set(drawn)) == spread(labels, 30)
    assert max(drawn[:14]) - min(drawn[:14]) > 200  # not the first of them
    assert spread(labels, 1000) == list(range(523))


def several(images: list[Sample], **fields: Any) -> list[Sample]:
    """Give images a finding, a grade and an age each; every sixth age is unknown."""
    return [
        replace(
            s,
            labels=(
                "present" if s.label == "a" else "absent",
                str(k % 3),
                "" if k % 6 == 5 else str(30 + k),
            ),
            **fields,
        )
        for k, s in enumerate(images)
    ]


SEVERAL = "edema:binary,grade:grades,age:value=a"


def test_several_heads_have_a_column_of_targets_each(images: list[Sample]) -> None:
    dataset = build(several(images), label_column=SEVERAL)
    assert [head.kind for head in dataset.heads] == ["binary", "ordinal", "regression"]
    train = dataset.split("train")
    ages = train.targets[:, 2]
    for image, row in zip(dataset.images["train"], train.targets, strict=True):
        edema, grade, age = image.sample.labels
        assert row[0] == (edema == "present")
        assert row[1] == float(grade)
        assert np.isnan(row[2]) if not age else row[2] == float(age)
    head = dataset.heads[2]
    assert np.isnan(ages).any()
    assert (head.mean, head.std) == (np.nanmean(ages), np.nanstd(ages))
    assert head.unit == "a"


def test_missing_labels_are_masked_dropped_or_refused(images: list[Sample]) -> None:
    samples = several(images)
    samples[0] = replace(samples[0], labels=("", "", ""))
    masked = build(samples, label_column=SEVERAL)
    assert reasons(masked) == {"00.png": "no label is known"}
    dropped = build(samples, label_column=SEVERAL, missing_labels="drop")
    assert Counter(left.reason for left in dropped.excluded) == {
        "no label is known": 1,
        "age is missing": 4,
    }
    assert not any(np.isnan(dropped.split(n).targets).any() for n in ("train", "val", "test"))


def test_several_labels_and_covariates_are_read_again(images: list[Sample], tmp_path: Path) -> None:
    samples = several(images, covariates={"site": "x", "sex": ""})
    dataset = build(samples, label_column=SEVERAL)
    write_splits(tmp_path / "splits.csv", dataset)
    header = (tmp_path / "splits.csv").read_text().splitlines()[0]
    assert "label:edema,label:grade,label:age,covariate:site,covariate:sex" in header
    for name in ("train", "val", "test"):
        found, missing = read_again(tmp_path / "splits.csv", name, GREY)
        assert not missing
        np.testing.assert_array_equal(
            image_set(found, dataset.heads).targets, dataset.split(name).targets
        )
        assert {tuple(i.covariates.items()) for i in found} == {(("site", "x"), ("sex", "unknown"))}


def with_ages(images: list[Sample]) -> list[Sample]:
    return [
        replace(s, covariates={"age": "" if k == 3 else str(k), "sex": "fm"[k % 3 == 0]})
        for k, s in enumerate(images)
    ]


def test_missing_covariates_are_masked_imputed_or_dropped(images: list[Sample]) -> None:
    samples = with_ages(images)

    def ages(dataset: Dataset) -> list[str]:
        return [
            i.covariates["age"] for some in dataset.images.values() for i in some
            if i.sample.source == samples[3].source
        ]  # fmt: skip

    masked = build(samples)
    assert ages(masked) == ["unknown"]
    assert masked.covariates["age"] == {"missing": 1, "policy": "mask", "value": "unknown"}
    imputed = build(samples, missing_covariates="impute")
    train = [
        float(i.sample.covariates["age"]) for i in imputed.images["train"]
        if i.sample.covariates["age"]
    ]  # fmt: skip
    assert ages(imputed) == [f"{np.median(train):g}"]
    dropped = build(samples, missing_covariates="drop")
    assert reasons(dropped) == {"03.png": "age is missing"}


def test_words_are_imputed_by_the_most_frequent(images: list[Sample]) -> None:
    samples = [
        replace(s, covariates={"sex": "" if k == 3 else "fm"[k % 3 == 0]})
        for k, s in enumerate(images)
    ]
    dataset = build(samples, missing_covariates="impute")
    assert dataset.covariates["sex"] == {"missing": 1, "policy": "impute", "value": "f"}
    nothing = [replace(s, covariates={"sex": ""}) for s in images]
    with pytest.raises(DataUnfit, match="no training image has sex; it cannot be imputed"):
        build(nothing, missing_covariates="impute")


def external(tmp_path: Path, write_image: Callable, count: int = 6) -> list[Sample]:
    return [
        Sample(
            source=str(write_image(tmp_path / "external" / f"{k}.png", 500 + k)),
            labels=("ab"[k % 2],),
            patient=f"p{k}",
            split="external",
        )
        for k in range(count)
    ]


def test_external_images_are_evaluated_and_nothing_else(
    images: list[Sample], tmp_path: Path, write_image: Callable
) -> None:
    alone = build(images)
    together = build([*images, *external(tmp_path, write_image)])
    assert len(together.images["external"]) == 6
    for name in ("train", "val", "test"):
        assert together.split(name).sources == alone.split(name).sources
    assert together.fingerprint != alone.fingerprint


def test_an_external_image_that_the_run_holds_is_left_out_of_the_external_ones(
    images: list[Sample], tmp_path: Path, write_image: Callable
) -> None:
    more = external(tmp_path, write_image)
    copies = [tmp_path / "one.png", tmp_path / "two.png"]
    for copy, sample in zip(copies, images, strict=False):
        shutil.copy(sample.source, copy)
    # The second has another label there, which has no say here.
    more += [
        Sample(source=str(copies[0]), labels=("a",), split="external"),
        Sample(source=str(copies[1]), labels=("b",), split="external"),
    ]
    dataset = build([*images, *more])
    assert reasons(dataset) == {
        "one.png": f"same pixels as {images[0].source}",
        "two.png": f"same pixels as {images[1].source}",
    }
    assert sum(len(dataset.images[n]) for n in ("train", "val", "test")) == 24


def test_an_external_class_that_training_lacks_is_refused(
    images: list[Sample], tmp_path: Path, write_image: Callable
) -> None:
    [stranger, *_] = external(tmp_path, write_image)
    stranger = replace(stranger, labels=("rare",))
    with pytest.raises(DataUnfit, match="class rare is in external and has no training images"):
        build([*images, stranger])


def test_external_patients_may_have_the_numbers_of_others(
    images: list[Sample], tmp_path: Path, write_image: Callable
) -> None:
    own = [replace(s, patient=f"p{k}") for k, s in enumerate(images)]
    assert len(build([*own, *external(tmp_path, write_image)]).images["external"]) == 6


def test_folds_test_every_image_once_a_repeat(
    images: list[Sample], tmp_path: Path, write_image: Callable
) -> None:
    config = DataConfig(cache="none", folds=3, repeats=2)
    found = Found(
        samples=(*images, *external(tmp_path, write_image)), questions=parse_questions("label")
    )
    first = build_dataset(found, GREY, config, seed=0)
    made = list(folds(first, config, seed=0))
    assert made[0] is first
    assert len(made) == 6
    everything = {s.source for s in images}
    for repeat in (made[:3], made[3:]):
        tested = [s for one in repeat for s in one.split("test").sources]
        assert sorted(tested) == sorted(everything)
    for one in made:
        assert len(one.images["external"]) == 6
        assert {s for n in ("train", "val", "test") for s in one.split(n).sources} == everything
        assert one.images["val"]
    assert len({one.fingerprint for one in made}) == 6
    again = build_dataset(Found(samples=found.samples[::-1], questions=found.questions), GREY,
                          config, seed=0)  # fmt: skip
    assert again.fingerprint == first.fingerprint


def test_a_value_is_scaled_by_the_training_images_of_its_fold(images: list[Sample]) -> None:
    config = DataConfig(cache="none", folds=3, label_column=SEVERAL)
    found = Found(samples=tuple(several(images)), questions=parse_questions(SEVERAL))
    made = list(folds(build_dataset(found, GREY, config, seed=0), config, seed=0))
    for one in made:
        assert one.heads[2].mean == np.nanmean(one.split("train").targets[:, 2])
    assert len({one.heads[2].mean for one in made}) == 3


def test_folds_of_data_with_splits_are_refused(images: list[Sample]) -> None:
    with pytest.raises(DataUnfit, match="--folds has no effect: the data say"):
        build(given(images, "train", "val", "test"), folds=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "--folds is 1"),
        ({"repeats": 2}, "--repeats has no effect without --folds"),
        ({"folds": 3, "test_fraction": 0.3}, "--test-fraction has no effect with --folds"),
        ({"folds": 2, "val_fraction": 0.4}, "leaves less than a fifth"),
        ({"readers": 0}, "--readers is 0"),
        ({"near_duplicates": "merge"}, "--near-duplicates is merge"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DataConfig(**options)
