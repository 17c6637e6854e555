"""The self-test's inputs are those of the specification, and it fails when it should."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from medtl_runtime.engines import OnnxRuntimeEngine
from medtl_runtime.errors import SelfTestFailed
from medtl_runtime.modelfile import SelfTest
from medtl_runtime.onnxfile import read_model_file
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_runtime.selftest import (
    SelfTestResult,
    cache_folder,
    checked_again,
    checked_once,
    self_test,
    synthetic_image,
    synthetic_logits,
)
from medtl_runtime.testing import FakeEngine, describe


def splitmix64(state: int) -> int:
    """Sebastiano Vigna's splitmix64.c, for one call from ``state``, with Python's integers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def recipe(height: int, width: int, channels: int) -> Recipe:
    return Recipe(size=(height, width), channels=channels, window=HeaderVoi())


def test_the_reference_here_gives_the_published_numbers() -> None:
    golden = 0x9E3779B97F4A7C15
    found = [splitmix64((1234567 + n * golden) % 2**64) for n in range(5)]
    assert found == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1])
@pytest.mark.parametrize("shape", [(16, 24, 1), (12, 17, 3), (8, 8, 3)])
def test_a_synthetic_image_is_that_of_the_specification(
    shape: tuple[int, int, int], seed: int
) -> None:
    height, width, channels = shape
    rows, columns = -(-height // 8), -(-width // 8)
    found = synthetic_image(seed, recipe(*shape))
    assert found.shape == (channels, height, width)
    assert found.dtype == np.uint16
    for channel, row, column in np.ndindex(channels, height, width):
        block = (channel * rows + row // 8) * columns + column // 8
        assert found[channel, row, column] == splitmix64(seed * 2**32 + block) >> 48


def test_other_seeds_give_other_images() -> None:
    one, other = (synthetic_image(seed, recipe(64, 64, 1)) for seed in (1, 2))
    assert (one != other).mean() > 0.99
    assert one.min() < 10_000 < 55_000 < one.max()


def test_logits_are_computed_one_image_at_a_time() -> None:
    engine = FakeEngine(describe())
    logits = synthetic_logits(engine, engine.description.recipe, [3, 4, 5])
    assert logits.shape == (3, 2)
    assert [batch.shape for batch in engine.batches] == [(1, 1, 16, 16)] * 3


def test_an_engine_that_computes_the_stored_logits_passes(tiny_model: Path) -> None:
    result = self_test(OnnxRuntimeEngine(read_model_file(tiny_model), threads=1))
    assert result.images == 2
    assert result.difference <= 1e-5
    assert result.tolerance == 1e-4


@pytest.mark.parametrize(("difference", "passes"), [(0.009, True), (0.011, False)])
def test_the_tolerance_decides(difference: float, passes: bool) -> None:
    described = describe(self_test=SelfTest(seeds=(1, 2), logits=((0, 0), (0, 0)), tolerance=0.01))
    engine = FakeEngine(described, lambda images: np.full((len(images), 2), -difference))
    if passes:
        assert self_test(engine).difference == pytest.approx(difference)
    else:
        with pytest.raises(
            SelfTestFailed, match=r"fake engine differs .* by 0\.011; at most 0\.01"
        ):
            self_test(engine)


def test_one_wrong_logit_of_one_image_fails() -> None:
    described = describe()
    right = described.self_test
    rows = (right.logits[0], (right.logits[1][0], right.logits[1][1] + 0.5))
    wrong = dataclasses.replace(described, self_test=dataclasses.replace(right, logits=rows))
    self_test(FakeEngine(described))
    with pytest.raises(SelfTestFailed, match=r"by 0\.5"):
        self_test(FakeEngine(wrong))


def test_nan_fails() -> None:
    engine = FakeEngine(describe(), lambda images: np.full((len(images), 2), np.nan))
    with pytest.raises(SelfTestFailed, match="nan"):
        self_test(engine)


# --- once


def engine(*, off_by: float = 0.0, name: str = "fake engine 1, CPU") -> FakeEngine:
    """Return a fake engine of two classes whose stored logits are zero, off by a given amount."""
    stored = SelfTest(seeds=(1, 2), logits=((0, 0), (0, 0)), tolerance=0.01)
    fake = FakeEngine(
        describe(self_test=stored), lambda images: np.full((len(images), 2), off_by, np.float32)
    )
    fake.name = name
    return fake


def test_a_passed_self_test_is_not_repeated(tmp_path: Path) -> None:
    first = checked_once(engine(off_by=0.005), "sha256:aa", tmp_path)
    again = engine(off_by=0.005)
    assert checked_once(again, "sha256:aa", tmp_path) == first
    assert again.batches == []
    assert first == SelfTestResult(difference=pytest.approx(0.005), tolerance=0.01, images=2)


def test_another_model_or_engine_is_tested_anew(tmp_path: Path) -> None:
    checked_once(engine(), "sha256:aa", tmp_path)
    for digest, name in (("sha256:ab", "fake engine 1, CPU"), ("sha256:aa", "fake engine 2, CPU")):
        other = engine(name=name)
        checked_once(other, digest, tmp_path)
        assert len(other.batches) == 2
    assert len(list(tmp_path.iterdir())) == 3


def test_another_version_or_processor_is_tested_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked_once(engine(), "sha256:aa", tmp_path)
    for name, value in (
        ("medtl_runtime.selftest.__version__", "9.9"),
        ("medtl_runtime.engines.processor.machine", lambda: "another processor"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(name, value)
            other = engine()
            checked_once(other, "sha256:aa", tmp_path)
            assert len(other.batches) == 2


def test_a_failure_is_not_remembered_and_ends_an_earlier_success(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(SelfTestFailed):
            checked_once(engine(off_by=0.02), "sha256:aa", tmp_path)
        assert list(tmp_path.iterdir()) == []
    checked_once(engine(), "sha256:aa", tmp_path)
    with pytest.raises(SelfTestFailed):
        checked_again(engine(off_by=0.02), "sha256:aa", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no json",
        "[]",
        "{}",
        '{"difference": 0.02, "tolerance": 0.01, "images": 2}',
        '{"difference": NaN, "tolerance": 0.01, "images": 2}',
        '{"difference": 0, "tolerance": 1.0, "images": 2}',
        '{"difference": 0, "tolerance": 0.01, "images": 1}',
        '{"difference": 0, "tolerance": 0.01, "images": Infinity}',
        '{"difference": null, "tolerance": 0.01, "images": 2}',
        "[" * 100_000,
        "\0\ufffd",
    ],
)
def test_a_marker_that_does_not_say_passed_is_not_believed(tmp_path: Path, content: str) -> None:
    checked_once(engine(), "sha256:aa", tmp_path)
    (marker,) = tmp_path.iterdir()
    marker.write_text(content, encoding="utf-8")
    again = engine()
    checked_once(again, "sha256:aa", tmp_path)
    assert len(again.batches) == 2
    fields = json.loads(marker.read_text(encoding="utf-8"))
    assert fields.keys() == {"difference", "tolerance", "images", "when"}


def test_a_marker_that_is_no_text_is_not_believed(tmp_path: Path) -> None:
    checked_once(engine(), "sha256:aa", tmp_path)
    (marker,) = tmp_path.iterdir()
    marker.write_bytes(b"\xff\xfe")
    again = engine()
    checked_once(again, "sha256:aa", tmp_path)
    assert len(again.batches) == 2


def test_where_nothing_can_be_written_it_runs_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    for _ in range(2):
        fake = engine()
        checked_once(fake, "sha256:aa", tmp_path / "file" / "selftest")
        assert len(fake.batches) == 2


def test_a_marker_names_neither_the_machine_nor_the_model(tmp_path: Path) -> None:
    checked_once(engine(), "sha256:aa", tmp_path)
    (marker,) = tmp_path.iterdir()
    assert len(marker.stem) == 64
    assert set(marker.stem) <= set("0123456789abcdef")
    assert "aa" not in marker.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is one of Linux")
def test_the_cache_folder_is_that_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "medtl"
