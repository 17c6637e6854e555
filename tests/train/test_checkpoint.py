"""A checkpoint comes back as it was written, or a line says why not; it never runs code."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medtl_runtime.errors import OutputNotWritten, UsageError
from medtl_runtime.heads import Head
from medtl_runtime.recipe import FixedWindow, HeaderVoi, Recipe
from medtl_train.checkpoint import FORMAT, VERSION, About, Checkpoint, load, load_run, save
from medtl_train.errors import CheckpointUnusable

ABOUT = About(
    arch="squeezenet1_1",
    head="mlp",
    dropout=0.25,
    heads=(Head(name="label", classes=("healthy", "lésion")),),
    recipe=Recipe(size=(64, 96), channels=3, window=FixedWindow(centre=-600, width=1500)),
    fingerprint="sha256:00",
)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    network = ABOUT.build()
    optimizer = torch.optim.AdamW(network.head.parameters())
    network(torch.rand(2, 3, 64, 64)).logits.sum().backward()
    optimizer.step()
    training = {"progress": "{}", "optimizer": optimizer.state_dict(), "anchor": {}}
    return Checkpoint(about=ABOUT, network=network.state_dict(), training=training)


def same(one: object, other: object) -> bool:
    """Whether two nests of dicts and lists hold the same values, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_checkpoint_comes_back_as_it_was(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save(tmp_path / "last.pt", checkpoint)
    found = load(tmp_path / "last.pt")
    assert found.about == ABOUT
    assert same(found.network, checkpoint.network)
    assert same(found.training, checkpoint.training)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_restored_network_is_ready_for_evaluation(checkpoint: Checkpoint) -> None:
    network = checkpoint.restore()
    assert not any(module.training for module in network.modules())
    assert same(dict(network.state_dict()), dict(checkpoint.network))
    assert (network.arch, network.channels) == ("squeezenet1_1", 3)


@pytest.mark.parametrize(
    "window",
    [
        FixedWindow(centre=40.5, width=400),
        HeaderVoi(),
        HeaderVoi(fallback=FixedWindow(centre=0, width=2048)),
    ],
)
def test_what_a_network_is_survives_json(window: FixedWindow | HeaderVoi) -> None:
    about = replace(ABOUT, recipe=replace(ABOUT.recipe, window=window))
    assert About.from_json(about.to_json()) == about


def test_a_checkpoint_holds_tensors_and_text_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save(tmp_path / "best.pt", checkpoint)
    document = torch.load(tmp_path / "best.pt", weights_only=True)
    assert set(document) == {"format", "version", "about", "network", "training"}


def document(**changes: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "about": ABOUT.to_json(),
        "network": {},
        "training": None,
        **changes,
    }


def about(**changes: Any) -> str:
    return json.dumps({**json.loads(ABOUT.to_json()), **changes})


def without(text: str, field: str) -> str:
    return json.dumps({k: v for k, v in json.loads(text).items() if k != field})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (document(version=1), "version 1; this medtl reads version 3"),
        (document(version=None), "version None"),
        (document(format="other"), "a file of another program"),
        ({"state_dict": {}}, "a file of another program"),
        ([1, 2], "a file of another program"),
        (torch.zeros(2), "a file of another program"),
        (document(about="{"), "malformed"),
        (document(about="[]"), "malformed"),
        (document(about=None), "malformed"),
        (document(about=without(ABOUT.to_json(), "heads")), "malformed"),
        (document(about=without(ABOUT.to_json(), "arch")), "malformed"),
        (document(about=about(surprise=1)), "malformed"),
        (document(about=about(recipe={"size": [64, 64]})), "malformed"),
        (document(about=about(recipe={**ABOUT.recipe.to_json(), "size": []})), "malformed"),
        ({k: v for k, v in document().items() if k != "network"}, "malformed"),
    ],
)
def test_a_file_of_another_kind_or_version_is_refused(
    content: object, message: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(CheckpointUnusable, match=message) as refused:
        load(tmp_path / "best.pt")
    assert str(tmp_path / "best.pt") in str(refused.value)


class Planted:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save(document(network={"x": Planted(tmp_path / "planted")}), tmp_path / "best.pt")
    with pytest.raises(CheckpointUnusable, match="damaged, or not a checkpoint"):
        load(tmp_path / "best.pt")
    assert not (tmp_path / "planted").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage", [cut, lambda p: p.write_bytes(b""), lambda p: p.write_text("x" * 100)]
)
def test_a_damaged_checkpoint_is_refused(
    damage: Callable[[Path], object], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    save(tmp_path / "best.pt", checkpoint)
    damage(tmp_path / "best.pt")
    with pytest.raises(CheckpointUnusable, match=r"best\.pt is not a usable checkpoint: damaged"):
        load(tmp_path / "best.pt")


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnusable, match="there is no such file"):
        load(tmp_path / "best.pt")
    with pytest.raises(UsageError, match=r"holds no best\.pt"):
        load_run(tmp_path)
    with pytest.raises(UsageError, match="no such run"):
        load_run(tmp_path / "nowhere")


def test_a_run_is_read_from_its_best_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save(tmp_path / "best.pt", checkpoint)
    assert load_run(tmp_path).about == ABOUT


def test_a_full_disk_leaves_the_checkpoint_that_was_there(
    checkpoint: Checkpoint, tmp_path: Path, disk_of: Callable
) -> None:
    path = tmp_path / "last.pt"
    save(path, checkpoint)
    before = path.read_bytes()
    with disk_of(100_000), pytest.raises(OutputNotWritten, match=r"last\.pt was not written"):
        save(path, checkpoint)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_leaves_nothing_where_nothing_was(
    checkpoint: Checkpoint, tmp_path: Path, disk_of: Callable
) -> None:
    with disk_of(100_000), pytest.raises(OutputNotWritten):
        save(tmp_path / "runs" / "best.pt", checkpoint)
    assert [p.name for p in tmp_path.rglob("*")] == ["runs"]


def test_a_place_that_cannot_be_written_to_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputNotWritten, match="file"):
        save(tmp_path / "file" / "best.pt", checkpoint)


def test_tensors_of_another_network_are_refused(tmp_path: Path) -> None:
    about = About(
        arch="squeezenet1_1",
        head="linear",
        dropout=0.0,
        heads=(Head(name="label", classes=("a", "b")),),
        recipe=Recipe(size=(32, 32), channels=1, window=HeaderVoi()),
        fingerprint="sha256:0",
    )
    with pytest.raises(UsageError, match="do not fit squeezenet1_1"):
        Checkpoint(about=about, network={"w": torch.zeros(1)}).restore()
