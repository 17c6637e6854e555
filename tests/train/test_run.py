"""A run writes what it promises, starts from another run, is refused in time, and resumes."""

import csv
import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medtl_runtime.errors import OutputExists, OutputNotWritten, UsageError
from medtl_train import checkpoint as checkpoints
from medtl_train.config import TrainConfig
from medtl_train.console import Reporter
from medtl_train.errors import CheckpointUnusable, DataUnfit, Interrupted, RunUnfit
from medtl_train.folders import OUTPUTS
from medtl_train.options import config_from, flat, to_toml
from medtl_train.run import prepare, train

CPU = torch.device("cpu")
Tiny = Callable[..., TrainConfig]


class Notes(Reporter):
    """Keeps what a person would be told, and can press Ctrl-C after an epoch."""

    def __init__(self, *, stop_after: int | None = None) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []
        self.stop_after = stop_after

    def note(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def fitting(self, steps: int, monitor: str) -> Iterator[tuple[Callable, Callable]]:
        with super().fitting(steps, monitor) as (on_step, on_epoch):

            def stopping(row: dict) -> None:
                on_epoch(row)
                if row["epoch"] == self.stop_after:
                    raise KeyboardInterrupt

            yield on_step, stopping


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def write_folder(root: Path, write_image: Callable, *classes: str, count: int = 8) -> Path:
    for c, label in enumerate(classes):
        for k in range(count):
            write_image(root / label / f"{k}.png", 100 * c + k)
    return root


def test_a_run_writes_all_that_it_promises(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == set(OUTPUTS)
    assert (
        (finished / "report.html")
        .read_text(encoding="utf-8")
        .lstrip()
        .startswith("<!doctype html>")
    )


def test_the_summary_says_what_was_done(finished: Path, lung: Path, tiny: Tiny) -> None:
    summary = summary_of(finished)
    assert summary["name"] == "lung"
    head = summary["heads"]["label"]
    assert head["classes"] == ["healthy", "lesion"]
    assert head["positive"] == "lesion"
    assert summary["config"] == flat(tiny(epochs=2))
    assert summary["recipe"]["window"] == {"kind": "fixed", "centre": 0.0, "width": 2048.0}
    assert summary["network"]["arch"] == "squeezenet1_1"
    assert list(summary["data"]["headers"]["Modality"]["counts"]) == ["CT"]
    assert summary["data"]["patients_known"] is True
    assert sum(summary["data"]["patients"].values()) == 24
    assert sum(summary["data"]["images"].values()) == 48
    assert summary["training"]["epochs"] == 2
    assert summary["transfer"] == {
        "source": "none (random initialisation)",
        "tensors": 0,
        "skipped": [],
    }
    point = head["operating_point"]
    assert (point["rule"], point["positive"]) == ("threshold", "lesion")
    for split in ("validation", "test"):
        found = summary[split]["heads"]["label"]
        assert set(found["metrics"]) >= {"auroc", "specificity", "balanced_accuracy"}
        assert np.sum(found["confusion"]) == summary[split]["images"]


def test_the_checkpoint_agrees_with_the_summary(finished: Path) -> None:
    about = checkpoints.load_run(finished).about
    summary = summary_of(finished)
    assert about.recipe.to_json() == summary["recipe"]
    assert about.fingerprint == summary["data"]["fingerprint"]
    assert about.classes == ("healthy", "lesion")


def test_the_history_has_a_row_for_each_epoch(finished: Path) -> None:
    with (finished / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["train_loss"]) > 0 for row in rows)
    best = rows[summary_of(finished)["training"]["best_epoch"] - 1]
    assert float(best["auroc"]) == summary_of(finished)["training"]["best_value"]


def test_the_configuration_that_was_written_is_the_one_that_was_given(
    finished: Path, tiny: Tiny
) -> None:
    text = (finished / "config.toml").read_text(encoding="utf-8")
    assert text == to_toml(tiny(epochs=2))
    read = {name.replace("-", "_"): value for name, value in tomllib.loads(text).items()}
    read["from_run"] = read.pop("from")
    missing = {name: None for name in flat(tiny()) if name not in read}
    assert config_from({**read, **missing}) == tiny(epochs=2)


def test_the_same_data_and_options_give_the_same_figures(
    finished: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    again = train(lung, tmp_path / "lung", tiny(epochs=2), device=CPU)
    before = summary_of(finished)
    assert again["validation"] == before["validation"]
    assert again["test"] == before["test"]
    assert again["heads"] == before["heads"]


def test_an_existing_run_is_refused_and_left_as_it_is(
    finished: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "lung"))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(OutputExists, match="add --overwrite"):
        train(lung, run, tiny(seed=1), device=CPU)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("left", OUTPUTS)
def test_any_output_that_is_left_counts_as_a_run(
    left: str, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    (tmp_path / left).write_text("mine")
    with pytest.raises(OutputExists):
        train(lung, tmp_path, tiny(), device=CPU)


def test_overwriting_replaces_the_run_and_nothing_else(
    finished: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "lung"))
    (run / "notes.txt").write_text("mine")
    # A run may even start from the one that it replaces.
    config = tiny(from_run=(str(run),), weights=None, arch=None, seed=5)
    summary = train(lung, run, config, device=CPU, overwrite=True)
    assert summary["transfer"]["tensors"] == 52
    assert summary_of(run)["config"]["seed"] == 5
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"label_column": "x"}, None),
        ({"from_run": ("nowhere",), "weights": None}, UsageError),
        ({"weights": "nowhere.pth"}, UsageError),
        ({"positive": "healthier"}, UsageError),
        ({"window": "lungs"}, UsageError),
    ],
)
def test_what_is_refused_costs_no_earlier_run(
    change: dict, error: type | None, finished: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "lung"))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    data, config = (tmp_path / "gone", tiny()) if error is None else (lung, tiny(**change))
    with pytest.raises(error or DataUnfit):
        train(data, run, config, device=CPU, overwrite=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_data_that_are_refused_leave_no_folder(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(DataUnfit, match="no such folder"):
        train(tmp_path / "gone", tmp_path / "run", tiny(), device=CPU)
    assert not (tmp_path / "run").exists()


def test_a_run_can_start_from_another_of_the_same_classes(
    finished: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny(from_run=(str(finished),), weights=None, arch=None, epochs=2)
    summary = train(lung, tmp_path / "run", config, device=CPU)
    assert summary["network"]["arch"] == "squeezenet1_1"  # that of the other run
    assert summary["transfer"] == {"source": str(finished), "tensors": 52, "skipped": []}
    with (tmp_path / "run" / "history.csv").open(newline="") as file:
        phases = [row["phase"] for row in csv.DictReader(file)]
    # Its head answers the same question, so that it is left where no solution is better.
    assert phases[0] == "as it came" or phases[0].startswith("solved, C=")
    assert phases[1:] == ["all"]


def test_a_run_of_other_classes_gives_its_backbone_and_drops_its_head(
    finished: Path, tiny: Tiny, tmp_path: Path, write_image: Callable
) -> None:
    data = write_folder(tmp_path / "data", write_image, "benign", "malignant")
    notes = Notes()
    config = tiny(from_run=(str(finished),), weights=None, arch=None)
    summary = train(data, tmp_path / "run", config, device=CPU, reporter=notes)
    skipped = [
        "head.linear.weight (2, 512): trained for other classes",
        "head.linear.bias (2,): trained for other classes",
    ]
    assert summary["transfer"]["skipped"] == skipped
    assert summary["transfer"]["tensors"] == 50
    told = notes.lines[notes.lines.index("2 tensors of it are not used:") + 1 :][:2]
    assert [line.strip() for line in told] == skipped


def test_a_run_of_more_classes_drops_its_head_and_needs_no_positive_class(
    finished: Path, tiny: Tiny, tmp_path: Path, write_image: Callable
) -> None:
    data = write_folder(tmp_path / "data", write_image, "a", "b", "c")
    config = tiny(from_run=(str(finished),), weights=None, arch=None, head="mlp", mode="all")
    summary = train(data, tmp_path / "run", config, device=CPU)
    assert len(summary["transfer"]["skipped"]) == 2
    head = summary["heads"]["label"]
    assert head["positive"] is None
    assert head["operating_point"]["rule"] == "argmax"
    assert np.shape(summary["test"]["heads"]["label"]["confusion"]) == (3, 3)
    assert "image" in notes_on(tmp_path / "run")


def notes_on(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def test_a_run_of_another_architecture_is_refused(
    finished: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny(from_run=(str(finished),), weights=None, arch="resnet18")
    with pytest.raises(RunUnfit, match="is a squeezenet1_1, not a resnet18"):
        train(lung, tmp_path / "run", config, device=CPU)


def test_a_damaged_run_to_start_from_is_refused(lung: Path, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "best.pt").write_bytes(b"half")
    config = tiny(from_run=(str(tmp_path / "other"),), weights=None, arch=None)
    with pytest.raises(CheckpointUnusable, match=re.escape(str(tmp_path / "other" / "best.pt"))):
        train(lung, tmp_path / "run", config, device=CPU)


def test_the_positive_class_can_be_named(
    lung: Path, tiny: Tiny, tmp_path: Path, finished: Path
) -> None:
    summary = train(lung, tmp_path / "run", tiny(epochs=2, positive="healthy"), device=CPU)
    head, other = summary["heads"]["label"], summary_of(finished)
    assert head["positive"] == head["operating_point"]["positive"] == "healthy"
    # The ranking is the same from the other side.
    assert summary["training"]["best_epoch"] == other["training"]["best_epoch"]
    here, there = (one["test"]["heads"]["label"]["metrics"]["auroc"] for one in (summary, other))
    assert here["value"] == pytest.approx(there["value"])


def test_a_positive_class_of_three_is_refused(
    tiny: Tiny, tmp_path: Path, write_image: Callable
) -> None:
    data = write_folder(tmp_path / "data", write_image, "a", "b", "c")
    with pytest.raises(UsageError, match="--positive is for two classes; there are 3"):
        train(data, tmp_path / "run", tiny(positive="a"), device=CPU)
    with pytest.raises(UsageError, match="--positive is d; the classes are a, b, c"):
        train(data, tmp_path / "run", tiny(positive="d"), device=CPU)


def test_without_a_test_set_the_validation_is_reported(
    lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    summary = train(lung, tmp_path / "run", tiny(test_fraction=0.0), device=CPU)
    assert summary["test"] is None
    assert summary["validation"]["images"] > 0
    assert set(summary["data"]["images"]) == {"train", "val"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == set(OUTPUTS)


def test_colour_and_offline_weights_from_a_file(
    tiny: Tiny, tmp_path: Path, write_image: Callable, real_data: Path
) -> None:
    for c, label in enumerate(("a", "b")):
        for k in range(8):
            write_image(tmp_path / "data" / label / f"{k}.png", 50 * c + k, colour=True)
    weights = real_data / "weights" / "squeezenet1_1_imagenet.pth"
    config = tiny(weights=str(weights), epochs=2)
    summary = train(tmp_path / "data", tmp_path / "run", config, device=CPU)
    assert summary["recipe"]["channels"] == 3
    assert summary["transfer"]["source"] == str(weights)
    assert len(summary["transfer"]["skipped"]) == 2


def test_offline_without_weights_says_which_file_to_put_where(
    lung: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(
        UsageError, match=r"put it at .*hub/checkpoints/squeezenet1_1-b8a52dc0\.pth"
    ):
        train(lung, tmp_path / "run", tiny(weights=None), device=CPU)


def test_what_was_left_out_is_counted_told_and_listed(
    tiny: Tiny, tmp_path: Path, write_image: Callable
) -> None:
    data = write_folder(tmp_path / "data", write_image, "a", "b")
    shutil.copy(data / "a" / "0.png", data / "a" / "copy.png")
    (data / "b" / "empty.dcm").write_bytes(b"")
    (data / "b" / "other.dcm").write_bytes(b"")
    notes = Notes()
    dataset = prepare(data, tiny(), notes)
    assert len(dataset.excluded) == 3
    assert "3 samples left out; splits.csv lists them:" in notes.lines
    assert "  2 x the file is empty" in notes.lines
    assert "  1 x same pixels as another image" in notes.lines
    assert any(line.startswith("caution: images without patient") for line in notes.lines)


def without_time(summary: dict[str, Any]) -> dict[str, Any]:
    training = {key: value for key, value in summary["training"].items() if key != "seconds"}
    return {**summary, "training": training}


LONGER = {"epochs": 3, "weights": None, "arch": None}


def test_an_interrupted_run_resumes_to_the_same_files(
    finished: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny(from_run=(str(finished),), **LONGER)
    through = tmp_path / "through" / "run"
    train(lung, through, config, device=CPU)
    run = tmp_path / "stopped" / "run"
    with pytest.raises(Interrupted, match=r"after epoch 2; .* --resume goes on from .*last\.pt"):
        train(lung, run, config, device=CPU, reporter=Notes(stop_after=2))
    assert {path.name for path in run.iterdir()} == {
        "best.pt", "last.pt", "config.toml", "splits.csv", "cleaning.json", "cleaning.html"
    }  # fmt: skip
    notes = Notes()
    train(lung, run, config, device=CPU, resume=True, reporter=notes)
    assert "resuming after epoch 2" in notes.lines
    assert without_time(summary_of(run)) == without_time(summary_of(through))
    for name in ("config.toml", "splits.csv"):
        assert (run / name).read_bytes() == (through / name).read_bytes()
    for name in ("best.pt", "last.pt"):
        one, other = checkpoints.load(run / name), checkpoints.load(through / name)
        assert one.about == other.about
        assert all(torch.equal(t, other.network[key]) for key, t in one.network.items())


def test_resuming_a_finished_run_evaluates_it_again(
    finished: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "lung"))
    (run / "metrics.json").unlink()
    train(lung, run, tiny(epochs=2), device=CPU, resume=True)
    assert without_time(summary_of(run)) == without_time(summary_of(finished))


def test_other_options_do_not_resume(
    finished: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(RunUnfit, match=r"other options; .*config\.toml has them: add --config"):
        train(lung, finished, tiny(epochs=3), device=CPU, resume=True)
    with pytest.raises(RunUnfit, match="holds no run to resume"):
        train(lung, tmp_path / "new", tiny(), device=CPU, resume=True)


def test_other_data_do_not_resume_and_leave_the_run_as_it_is(
    finished: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "lung"))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    fewer = Path(shutil.copytree(lung, tmp_path / "data" / "lung"))
    sorted(fewer.rglob("*.dcm"))[0].unlink()
    with pytest.raises(RunUnfit, match="the data or the recipe have changed"):
        train(fewer, run, tiny(epochs=2), device=CPU, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_checkpoint_of_another_version_does_not_resume(
    finished: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "lung"))
    document = torch.load(run / "last.pt", weights_only=True)
    torch.save({**document, "version": 99}, run / "last.pt")
    with pytest.raises(CheckpointUnusable, match="version 99; this medtl reads version 3"):
        train(lung, run, tiny(epochs=2), device=CPU, resume=True)
    shutil.copy(run / "best.pt", run / "last.pt")
    with pytest.raises(RunUnfit, match="no state of training"):
        train(lung, run, tiny(epochs=2), device=CPU, resume=True)


def test_resuming_and_overwriting_at_once_is_refused(
    finished: Path, lung: Path, tiny: Tiny
) -> None:
    with pytest.raises(UsageError, match="--resume and --overwrite contradict"):
        train(lung, finished, tiny(epochs=2), device=CPU, resume=True, overwrite=True)


def test_an_interrupt_in_the_first_epoch_says_that_nothing_is_kept(
    lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    class Impatient(Notes):
        @contextmanager
        def fitting(self, *_: object) -> Iterator[tuple[Callable, Callable]]:
            def stop() -> None:
                raise KeyboardInterrupt

            yield stop, stop

    with pytest.raises(Interrupted, match="nothing to resume yet"):
        train(lung, tmp_path / "run", tiny(), device=CPU, reporter=Impatient())


def test_a_full_disk_while_training_is_one_line_and_leaves_no_half_file(
    lung: Path, tiny: Tiny, tmp_path: Path, disk_of: Callable
) -> None:
    # config.toml fits, best.pt does not
    with (
        disk_of(1_000_000),
        pytest.raises(OutputNotWritten, match=r"best\.pt was not written") as stopped,
    ):
        train(lung, tmp_path / "run", tiny(), device=CPU)
    assert "\n" not in str(stopped.value)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.toml", "splits.csv", "cleaning.json", "cleaning.html"}


def test_a_place_that_cannot_be_written_to_is_named(lung: Path, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputNotWritten, match="file"):
        train(lung, tmp_path / "file" / "run", tiny(), device=CPU)


def test_real_medmnist_trains_from_real_weights(
    real_data: Path, tiny: Tiny, tmp_path: Path
) -> None:
    with np.load(real_data / "breastmnist.npz") as arrays:
        few = {name: arrays[name][:60] for name in arrays.files}
    np.savez(tmp_path / "few.npz", **few)
    weights = str(real_data / "weights" / "squeezenet1_1_imagenet.pth")
    config = tiny(weights=weights, epochs=2, positive="0")
    summary = train(tmp_path / "few.npz", tmp_path / "run", config, device=CPU)
    assert summary["data"]["targets"]["val"]["label"]["counts"].keys() == {"0", "1"}
    assert summary["data"]["patients_known"] is False
    assert summary["validation"]["images"] == 60
