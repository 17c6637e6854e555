"""Many scans: other processes read, this one runs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medtl_runtime import Predictor
from medtl_runtime.pipeline import BatchSize, cores, run_sources
from medtl_runtime.reading import expand
from medtl_runtime.results import Failure, Result
from medtl_runtime.scan import Source
from medtl_runtime.testing import FakeEngine, describe


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(engine=FakeEngine(describe()))


@pytest.fixture
def folder(tmp_path: Path, shipped: Path, cine: Path) -> Path:
    """Return a folder of good, bad and multi-frame files."""
    names = (
        "MR_small.dcm",
        "CT_small.dcm",
        "reportsi.dcm",
        "MR_truncated.dcm",
        "MR_small_jp2klossless.dcm",
    )
    for name in names:
        shutil.copy(shipped / name, tmp_path / name)
    shutil.copy(cine, tmp_path / "cine.dcm")
    for number in range(12):
        np.save(tmp_path / f"{number:02}.npy", np.full((8, 8), number * 20, np.uint8))
    (tmp_path / "text.txt").write_text("not an image\n" * 20)
    return tmp_path


def words(outcome: Result | Failure) -> tuple:
    if isinstance(outcome, Failure):
        return outcome.scan, outcome.frame, outcome.error.code, outcome.error.reason
    return outcome.scan, outcome.frame, tuple(outcome.logits), outcome.sop_instance_uid


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_the_pipeline_gives_what_one_by_one_gives_in_the_same_order(
    predictor: Predictor, folder: Path, batch_size: int | None
) -> None:
    sources = list(expand([str(folder), "nothing.dcm"]))
    alone = [
        outcome
        for source in sources
        for outcome in (
            predictor.outcomes(source)
            if isinstance(source, Source)
            else [Failure(scan=source.source, error=source)]
        )
    ]
    piped = list(run_sources(predictor, sources, workers=2, batch_size=batch_size))
    assert [words(outcome) for _, outcome in piped] == [words(outcome) for outcome in alone]
    assert sum(isinstance(outcome, Failure) for outcome in alone) == 4
    for source, outcome in piped:
        assert outcome.scan == (str(source) if isinstance(source, Source) else source.source)


def test_batches_have_the_size_that_was_asked_for(folder: Path) -> None:
    engine = FakeEngine(describe())
    sources = expand([str(folder)])
    count = sum(
        isinstance(outcome, Result)
        for _, outcome in run_sources(Predictor(engine=engine), sources, workers=1, batch_size=8)
    )
    sizes = [len(batch) for batch in engine.batches]
    assert sum(sizes) == count
    assert set(sizes[:-1]) == {8}


def test_frames_of_a_long_scan_come_in_chunks(
    predictor: Predictor, tmp_path: Path, shipped: Path
) -> None:
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    frames = [np.full_like(dataset.pixel_array, number) for number in range(50)]
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = np.stack(frames).tobytes()
    dataset.save_as(tmp_path / "long.dcm")
    outcomes = [
        outcome for _, outcome in run_sources(predictor, expand([str(tmp_path)]), workers=2)
    ]
    assert [outcome.frame for outcome in outcomes] == list(range(50))


def test_a_source_that_kills_its_reader_costs_that_source_alone(
    predictor: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medtl_runtime import isolated

    sources = list(expand([str(folder / "00.npy"), str(folder / "01.npy"), str(folder / "02.npy")]))
    assert isinstance(sources[1], Source)
    call = isolated.Worker.call

    def killing(self, task, source, *rest, **options):
        if str(source).endswith("01.npy"):
            self._started().kill()
        return call(self, task, source, *rest, **options)

    monkeypatch.setattr(isolated.Worker, "call", killing)
    outcomes = [outcome for _, outcome in run_sources(predictor, sources, workers=1)]
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["Result", "Failure", "Result"]
    assert isinstance(outcomes[1], Failure)
    assert outcomes[1].error.code == "scan-unreadable"


# --- batch size


def settle(cost: Callable[[int], float], rounds: int = 200) -> int:
    """Return the size that is found when a batch of n takes ``cost(n)`` seconds."""
    sizes = BatchSize()
    for _ in range(rounds):
        sizes.took(sizes.now, cost(sizes.now))
    return sizes.now


@pytest.mark.parametrize(
    ("cost", "size"),
    [
        (lambda n: 1.0 * n, 1),
        (lambda n: 1.0 * n + 0.001, 1),
        (lambda n: 10.0 + 0.01 * n, 32),
        (lambda n: 1.0 * max(n, 8), 8),
        (lambda n: 0.5 * n if n <= 4 else 2.0 * n, 1),
        (lambda n: 1.0 + n if n <= 16 else 5.0 * n, 16),
    ],
)
def test_the_batch_size_with_the_least_time_an_image_is_found(
    cost: Callable[[int], float], size: int
) -> None:
    assert settle(cost) == size


def test_a_given_batch_size_is_kept() -> None:
    sizes = BatchSize(5)
    for _ in range(100):
        sizes.took(5, 1.0)
    assert sizes.now == 5


def test_a_last_batch_that_is_not_full_is_no_measurement() -> None:
    sizes = BatchSize()
    while sizes.now == 1:
        sizes.took(1, 1.0)
    before = sizes.now
    for _ in range(100):
        sizes.took(1, 0.0)
    assert sizes.now == before


def test_there_is_a_core_to_run_on() -> None:
    assert cores() >= 1
