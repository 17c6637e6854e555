"""Several processes train as one does, and one that is lost costs no more than its epoch."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from medtl_runtime.errors import UsageError
from medtl_train.cli import _work
from medtl_train.fitting.distributed import ALONE, World, restarted, under_torchrun
from medtl_train.options import config_from

SCRIPT = Path(__file__).with_name("two_processes.py")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


two = load()


def torchrun(task: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a task in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return subprocess.run(
        [*command, "2", str(SCRIPT), task, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun("train", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_each_step_is_shared_and_every_image_comes_once(trained: Path, tmp_path: Path) -> None:
    fit = two.fit_of(tmp_path)
    drawn = [json.loads((trained / f"drawn-{rank}.json").read_text()) for rank in (0, 1)]
    alone = [
        batch.targets[:, 1].nan_to_num(-1).tolist() for batch in fit._feed.epoch(order=5, changes=0)
    ]
    assert [first + second for first, second in zip(*drawn, strict=True)] == alone
    assert {len(first) - len(second) for first, second in zip(*drawn, strict=True)} <= {0, 1}


def test_two_processes_end_where_one_does(trained: Path, tmp_path: Path) -> None:
    progress = two.fit_of(tmp_path).run(two.nothing, two.nothing)
    found = [json.loads((trained / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    for rank in (0, 1):
        assert found[rank]["spread"] == 0  # all hold the same weights
        for mine, alone in zip(found[rank]["history"], progress.history, strict=True):
            for name in ("train_loss", "val_loss", "monitored", "lr"):
                assert mine[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4), name


def test_only_the_first_process_writes(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"best.pt", "last.pt"} <= names
    assert not [name for name in names if name.endswith(".part")]


def test_a_lost_process_ends_the_run_in_words_and_it_can_go_on(tmp_path: Path) -> None:
    done = torchrun("lose", tmp_path)
    assert done.returncode != 0
    assert "error: process-lost: " in done.stderr
    fit = two.resumed(tmp_path)
    assert fit.progress.epoch == 1
    progress = fit.run(two.nothing, two.nothing)
    whole = two.fit_of(tmp_path / "whole").run(two.nothing, two.nothing)
    assert progress.epoch == 3
    assert progress.history[-1]["val_loss"] == pytest.approx(
        whole.history[-1]["val_loss"], rel=1e-3, abs=1e-4
    )


def test_a_process_alone_shares_nothing() -> None:
    rows = np.arange(7)
    assert ALONE.first
    assert ALONE.share(rows).tolist() == rows.tolist()
    assert ALONE.stretch(7) == slice(0, 7)
    part = np.ones((7, 2), np.float32)
    assert ALONE.whole(part, 7) is part
    assert ALONE.most(3) == 3
    assert ALONE.mean(torch.tensor([1.0, 3.0])).tolist() == [1.0, 3.0]
    ALONE.wait()


@pytest.mark.parametrize("count", [3, 7, 8, 30])
@pytest.mark.parametrize("size", [2, 3])
def test_stretches_cover_all_rows_once_and_in_order(count: int, size: int) -> None:
    worlds = [World(rank=rank, size=size) for rank in range(size)]
    rows = np.arange(count)
    covered = np.concatenate([rows[world.stretch(count)] for world in worlds])
    assert covered.tolist() == rows.tolist()
    assert np.concatenate([world.share(rows) for world in worlds]).tolist() == rows.tolist()
    assert [world.first for world in worlds] == [True] + [False] * (size - 1)


def test_what_trains_several_networks_is_not_shared() -> None:
    both = World(rank=0, size=2)
    with pytest.raises(UsageError, match="--search trains in one process; start it without"):
        _work(config_from({}), 5, both)
    with pytest.raises(UsageError, match="--ensemble trains in one process"):
        _work(config_from({"ensemble": "seeds"}), None, both)


def test_torchrun_is_known_by_what_it_sets() -> None:
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert under_torchrun(given)
    assert not under_torchrun({"WORLD_SIZE": "2"})
    assert restarted({"TORCHELASTIC_RESTART_COUNT": "1"})
    assert not restarted({"TORCHELASTIC_RESTART_COUNT": "0"})
    assert not restarted({})
