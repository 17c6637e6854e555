"""Of several runs, the one whose features suit the task is started from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medtl_models.network import Network
from medtl_train import checkpoint as checkpoints
from medtl_train.checkpoint import Checkpoint
from medtl_train.config import TrainConfig
from medtl_train.console import Reporter
from medtl_train.run import prepare, train
from medtl_train.sources import best_origin
from medtl_train.start import find_origins

CPU = torch.device("cpu")
Tiny = Callable[..., TrainConfig]


class Notes(Reporter):
    """Keeps what a person would be told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def blind(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose features say nothing: they are the same for every image."""
    saved = checkpoints.load_run(finished)
    network = saved.restore()
    assert isinstance(network, Network)
    with torch.no_grad():
        network.stem.weight.zero_()
    folder = tmp_path_factory.mktemp("blind")
    state = dict(network.state_dict())
    checkpoints.save(folder / "best.pt", Checkpoint(about=saved.about, network=state))
    return folder


@pytest.mark.parametrize("order", [1, -1])
def test_the_run_with_the_better_features_is_taken(
    order: int, finished: Path, blind: Path, lung: Path, tiny: Tiny
) -> None:
    runs = tuple(map(str, (finished, blind)))[::order]
    config = tiny(weights=None, arch=None, from_run=runs)
    reporter = Notes()
    dataset = prepare(lung, config, reporter)
    found = best_origin(find_origins(config.network), dataset, config, CPU, reporter)
    assert found.weights == str(finished)
    assert reporter.lines[-1] == f"starting from {finished}"
    shown = {line.split(": ")[0]: float(line.split()[-4]) for line in reporter.lines[-3:-1]}
    assert shown[str(blind)] == 0.5 < shown[str(finished)]


def test_a_single_run_is_taken_without_a_look(finished: Path, tiny: Tiny) -> None:
    config = tiny(weights=None, arch=None, from_run=(str(finished),))
    origins = find_origins(config.network)
    nothing = replace  # no data set is looked at
    assert best_origin(origins, nothing, config, CPU, Reporter(quiet=True)) is origins[0]  # pyright: ignore[reportArgumentType]


def test_a_run_starts_from_the_better_of_two(
    finished: Path, blind: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny(weights=None, arch=None, from_run=(str(blind), str(finished)))
    summary = train(lung, tmp_path / "run", config, device=CPU)
    assert summary["transfer"]["source"] == str(finished)
    assert summary["config"]["from_run"] == [str(blind), str(finished)]
