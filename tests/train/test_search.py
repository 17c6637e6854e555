"""The search for options: what it draws, prunes, resumes, and writes."""

import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch

from medtl_runtime.errors import OutputExists, UsageError
from medtl_runtime.heads import Head
from medtl_train.config import AugmentConfig, FitConfig, TrainConfig
from medtl_train.search import search
from medtl_train.space import drawn, given, space_of

CPU = torch.device("cpu")


HEADS = (Head(name="label", classes=("a", "b")),)


def with_values(config: TrainConfig, **values: float) -> TrainConfig:
    """Return the configuration of a trial that draws what is given, but for some values."""
    space = space_of(config, HEADS, 1000)
    return drawn(optuna.trial.FixedTrial({**given(config, space), **values}), config, space)


def test_the_first_trial_has_the_options_as_they_are_given() -> None:
    config = TrainConfig()
    found = with_values(config)
    assert found.fit.decay == config.fit.decay
    assert replace(found, fit=replace(found.fit, weight_decay=None)) == config


def test_what_cannot_have_an_effect_is_not_searched() -> None:
    everything = space_of(TrainConfig(), HEADS, 1000)
    assert "strength" in everything
    assert "label_smoothing" in everything
    still = TrainConfig(augment=AugmentConfig(augment=False))
    assert "strength" not in space_of(still, HEADS, 1000)
    age = (Head(name="age", kind="regression"),)
    assert "label_smoothing" not in space_of(TrainConfig(), age, 1000)


def test_a_batch_is_at_most_a_quarter_of_the_images() -> None:
    assert space_of(TrainConfig(), HEADS, 1000)["batch_size"] == (16, 32, 64)
    assert space_of(TrainConfig(), HEADS, 100)["batch_size"] == (16, 32)


def test_with_a_frozen_backbone_the_rate_of_the_head_is_searched() -> None:
    config = TrainConfig(fit=FitConfig(mode="head"))
    found = with_values(config, head_lr=5e-3)
    assert found.fit.head_lr == pytest.approx(5e-3)
    assert found.fit.lr == config.fit.lr


def test_there_is_nothing_to_search_where_the_head_is_solved_for() -> None:
    with pytest.raises(UsageError, match="nothing to search"):
        space_of(TrainConfig(fit=FitConfig(mode="features")), HEADS, 1000)


def test_a_search_keeps_its_best_trial_as_a_run(lung: Path, tiny, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    summary = search(lung, folder, tiny(epochs=2), 3, device=CPU)
    rows = summary["search"]["trials"]
    assert [row["number"] for row in rows] == [0, 1, 2]
    values = {row["number"]: row["value"] for row in rows if row["state"] == "complete"}
    assert values[summary["search"]["best"]] == max(values.values())
    assert summary["training"]["best_value"] == pytest.approx(max(values.values()))
    assert (folder / "report.html").is_file()
    assert json.loads((folder / "metrics.json").read_text())["search"] == summary["search"]


def test_an_interrupted_search_goes_on(lung: Path, tiny, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    config = tiny(epochs=1)
    first = search(lung, folder, config, 2, device=CPU)
    again = search(lung, folder, config, 3, device=CPU, resume=True)
    assert again["search"]["trials"][:2] == first["search"]["trials"]
    assert len(again["search"]["trials"]) == 3
    with pytest.raises(UsageError, match="begun with other options"):
        search(lung, folder, tiny(epochs=2), 3, device=CPU, resume=True)
    with pytest.raises(OutputExists):
        search(lung, folder, config, 2, device=CPU)


def test_there_is_nothing_to_resume_in_an_empty_folder(lung: Path, tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no search to resume"):
        search(lung, tmp_path / "none", tiny(), 2, device=CPU, resume=True)
