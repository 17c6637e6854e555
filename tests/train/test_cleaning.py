"""Copies, contradictions and outliers are found, and the report says what became of them."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from scipy.ndimage import gaussian_filter

from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_train.config import DataConfig
from medtl_train.data.cleaning import describe_cleaning, write_cleaning
from medtl_train.data.dataset import Dataset, build_dataset
from medtl_train.data.labels import parse_questions
from medtl_train.data.near import near_pairs
from medtl_train.data.outliers import embedding_outliers, intensity_outliers, robust_scores
from medtl_train.data.samples import Found, Sample

GREY = Recipe(size=(64, 64), channels=1, window=HeaderVoi())


def picture(seed: int, side: int = 128) -> np.ndarray:
    """Return a picture of soft shapes, alike in all, and texture, each its own; uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    shape = 120 * np.exp(-2 * (x**2 + y**2))
    texture = gaussian_filter(rng.normal(0, 1, (side, side)), 2)
    return np.clip(60 + shape + 25 * texture / texture.std(), 0, 255).astype(np.uint8)


def write(path: Path, values: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(values).save(path)
    return str(path)


def as_jpeg(values: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Picture.fromarray(values).save(file, "JPEG", quality=80)
    return np.asarray(Picture.open(file))


def resized(values: np.ndarray) -> np.ndarray:
    small = Picture.fromarray(values).resize((96, 96), Picture.Resampling.LANCZOS)
    return np.asarray(small)


def annotated(values: np.ndarray) -> np.ndarray:
    changed = values.copy()
    for row, column in ((40, 30), (80, 90)):  # a cross at either end of a lesion
        changed[row - 6 : row + 7, column] = changed[row, column - 6 : column + 7] = 255
    return changed


def brighter(values: np.ndarray) -> np.ndarray:
    return np.clip(values * 1.15 + 10, 0, 255).astype(np.uint8)


CHANGES = {"jpeg": as_jpeg, "resized": resized, "annotated": annotated, "brighter": brighter}


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Return twelve pictures of each of two classes."""
    return [
        Sample(
            source=write(tmp_path / label / f"{k:02}.png", picture(100 * c + k)), labels=(label,)
        )
        for c, label in enumerate(("a", "b"))
        for k in range(12)
    ]


def build(samples: Sequence[Sample], **options: Any) -> Dataset:
    config = DataConfig(cache="none", **options)
    found = Found(samples=tuple(samples), questions=parse_questions(config.label_column))
    return build_dataset(found, GREY, config, seed=0)


def report(dataset: Dataset, **options: Any) -> dict[str, Any]:
    made = describe_cleaning(dataset, site="site", **options)
    assert json.loads(json.dumps(made)) == made
    return made


def with_copy(samples: list[Sample], change: str, tmp_path: Path, **fields: Any) -> list[Sample]:
    with Picture.open(samples[0].source) as first:
        changed = CHANGES[change](np.asarray(first))
    given = {"source": write(tmp_path / "copy.png", changed), "labels": ("a",), **fields}
    return [*samples, Sample(**given)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_stays_with_its_original(
    change: str, samples: list[Sample], tmp_path: Path
) -> None:
    dataset = build(with_copy(samples, change, tmp_path))
    found = report(dataset)["near_duplicates"]
    assert (found["count"], found["grouped"], found["left_out"]) == (1, True, 0)
    [pair] = found["shown"]
    assert {Path(place["source"]).name for place in pair["images"]} == {"00.png", "copy.png"}
    assert not pair["across_splits"]
    assert len({place["split"] for place in pair["images"]}) == 1


def test_pictures_of_one_kind_are_no_copies(samples: list[Sample]) -> None:
    assert report(build(samples))["near_duplicates"]["count"] == 0


def test_copies_stay_together_whatever_the_seed(samples: list[Sample], tmp_path: Path) -> None:
    config = DataConfig(cache="none")
    found = Found(
        samples=tuple(with_copy(samples, "jpeg", tmp_path)), questions=parse_questions("label")
    )
    for seed in range(8):
        dataset = build_dataset(found, GREY, config, seed=seed)
        splits = {
            Path(image.sample.source).name + image.sample.label: image.split
            for images in dataset.images.values()
            for image in images
        }
        assert splits["copy.pnga"] == splits["00.pnga"]


def test_copies_can_be_dropped_or_kept(samples: list[Sample], tmp_path: Path) -> None:
    more = with_copy(samples, "jpeg", tmp_path)
    dropped = build(more, near_duplicates="drop")
    [left] = dropped.excluded
    assert left.reason == f"nearly the same as {samples[0].source}"
    assert sum(map(len, dropped.images.values())) == 24
    kept = build(more, near_duplicates="keep")
    assert not kept.excluded
    assert report(kept)["near_duplicates"]["count"] == 1


def test_a_copy_in_another_given_split_is_told_as_a_leak(
    samples: list[Sample], tmp_path: Path
) -> None:
    dealt = [
        Sample(source=s.source, labels=s.labels, split=("train", "val", "test")[k % 3])
        for k, s in enumerate(samples)
    ]
    made = report(build(with_copy(dealt, "jpeg", tmp_path, split="test")))
    assert made["near_duplicates"]["across_splits"] == 1
    assert "1 pairs of nearly the same images are in two splits: a leak" in made["warnings"]


def test_a_copy_with_another_label_is_told(samples: list[Sample], tmp_path: Path) -> None:
    made = report(build(with_copy(samples, "jpeg", tmp_path, labels=("b",))))
    assert made["near_duplicates"]["with_other_labels"] == 1


def test_images_that_are_all_alike_are_not_kept_together(tmp_path: Path) -> None:
    base = picture(0)
    alike = []
    for k in range(60):
        noise = np.random.default_rng(k).normal(0, 1, base.shape)
        values = np.clip(base + noise, 0, 255).astype(np.uint8)
        alike.append(Sample(source=write(tmp_path / f"{k}.png", values), labels=("ab"[k % 2],)))
    made = report(build(alike))
    assert not made["near_duplicates"]["grouped"]
    assert any("tells nothing of copies" in line for line in made["warnings"])


def test_near_pairs_are_those_of_all_pairs_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    base = [picture(seed, 64) for seed in range(30)]
    noisy = [np.clip(p + rng.normal(0, 4, p.shape), 0, 255).astype(np.uint8) for p in base[:7]]
    pictures = [*base, *noisy, np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)]
    found = near_pairs(pictures)
    pairs = {(int(i), int(j)) for i, j in zip(found.first, found.second, strict=True)}
    assert pairs == {(k, 30 + k) for k in range(7)}
    assert not found.too_many


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from medtl_train.data import near

    pictures = [picture(k % 9, 64) for k in range(20)]
    whole = near_pairs(pictures)
    monkeypatch.setattr(near, "_BLOCK", 6)
    parts = near_pairs(pictures)
    assert whole.count == parts.count == 7 + 2 * 3  # seven seeds twice, two of them three times
    one, other = (
        set(zip(p.first.tolist(), p.second.tolist(), strict=True)) for p in (whole, parts)
    )
    assert one == other


@pytest.mark.parametrize("count", [0, 1])
def test_one_picture_is_like_no_other(count: int) -> None:
    assert near_pairs([picture(0, 64)] * count).count == 0


def test_scores_are_robust_and_those_of_equal_values_are_zero() -> None:
    values = np.r_[np.random.default_rng(0).normal(10, 2, 1000), 1e6]
    scores = robust_scores(values)
    assert np.abs(scores[:-1]).max() < 5
    assert scores[-1] > 1e5
    assert abs(scores[:-1].std() - 1) < 0.1
    assert not robust_scores(np.full(9, 3.0)).any()
    mostly_same = robust_scores(np.r_[np.zeros(90), np.ones(10)])
    assert mostly_same[-1] > 2 > 0 == mostly_same[0]


def test_a_black_image_is_an_outlier_and_the_others_are_not(
    samples: list[Sample], tmp_path: Path
) -> None:
    dark = write(tmp_path / "dark.png", (picture(7) // 40).astype(np.uint8))
    made = report(build([*samples, Sample(source=dark, labels=("b",))]))
    assert [one["source"] for one in made["outliers"]["intensity"]["shown"]] == [dark]
    assert made["outliers"]["embedding"] is None


def test_few_images_have_no_outliers() -> None:
    assert intensity_outliers(np.array([[0.0] * 5] * 3 + [[9.0] * 5])) == []
    assert embedding_outliers(np.eye(4)) == []


def test_an_image_far_from_all_in_embedding_is_an_outlier() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (3, 16))
    embeddings = centres[rng.integers(0, 3, 300)] + rng.normal(0, 0.05, (300, 16))
    embeddings[17] = rng.normal(0, 3, 16)
    [found] = embedding_outliers(embeddings)
    assert (found.index, found.statistic) == (17, "embedding")


def test_embeddings_that_were_not_drawn_are_scored_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from medtl_train.data import outliers

    monkeypatch.setattr(outliers, "_REFERENCES", 50)
    rng = np.random.default_rng(0)
    embeddings = np.ones(16) + rng.normal(0, 0.05, (300, 16))
    for index in (3, 250):
        embeddings[index] = rng.normal(0, 3, 16)
    assert {one.index for one in embedding_outliers(embeddings)} == {3, 250}


def test_the_report_counts_labels_sites_and_what_is_missing(tmp_path: Path) -> None:
    made = []
    for k in range(40):
        values = picture(k)
        made.append(
            Sample(
                source=write(tmp_path / f"{k}.png", values),
                labels=("present" if k % 2 else "absent", "" if k < 4 else str(40 + k % 10)),
                patient="" if k == 0 else f"p{k}",
                covariates={"site": "north" if k < 25 else "south", "sex": "" if k == 9 else "f"},
            )
        )
    dataset = build(
        made, label_column="edema:binary,age:value=a", covariates="sex", missing_covariates="impute"
    )
    found = report(dataset)
    assert sum(found["images"].values()) == 40
    assert found["missing"] == {
        "labels": {"edema": 0, "age": 4},
        "covariates": {
            "site": {"missing": 0, "policy": "impute", "value": None},
            "sex": {"missing": 1, "policy": "impute", "value": "f"},
        },
        "patients": 1,
    }
    totals = np.array(
        [list(one["counts"].values()) for one in found["answers"]["edema"]["splits"].values()]
    ).sum(axis=0)
    assert totals.tolist() == [20, 20]
    train = found["answers"]["age"]["splits"]["train"]
    assert 40 <= train["low"] <= train["median"] <= train["high"] <= 49
    assert [(row["site"], row["images"]) for row in found["sites"]] == [
        ("north", 25),
        ("south", 15),
    ]
    for row in found["sites"]:
        assert sum(row["splits"].values()) == row["images"]


def test_the_page_shows_what_was_found_and_escapes_it(
    samples: list[Sample], tmp_path: Path, write_image: Callable
) -> None:
    bad = tmp_path / "<b>bad.png"
    bad.write_bytes(b"")
    more = [
        *with_copy(samples, "jpeg", tmp_path),
        Sample(source=str(bad), labels=("a",)),
        Sample(source=write(tmp_path / "twin.png", picture(100)), labels=("a",)),
        Sample(source=samples[3].source, labels=("a",)),
    ]
    dataset = build(more)
    made = report(
        dataset,
        embeddings={
            "train": np.random.default_rng(0).normal(0, 1, (17, 4))[: len(dataset.images["train"])]
        },
    )
    write_cleaning(tmp_path / "run", made)
    assert json.loads((tmp_path / "run" / "cleaning.json").read_text()) == made
    page = (tmp_path / "run" / "cleaning.html").read_text()
    assert "the file is empty" in page
    assert "&lt;b&gt;bad.png" in page
    assert "<b>bad.png" not in page
    assert "the same pixels are labelled a and b" in page
    assert "copy.png" in page
    assert made["label_conflicts"]["count"] == 2
    assert made["duplicates"]["count"] == 1
