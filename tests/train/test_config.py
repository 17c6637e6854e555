"""Every value out of its limits is refused by the name of its option."""

import math

import pytest

from medtl_runtime.errors import UsageError
from medtl_train.config import TrainConfig
from medtl_train.options import config_from, flat


def test_the_defaults_are_those_of_the_classes() -> None:
    assert config_from({}) == TrainConfig()
    assert config_from(flat(TrainConfig())) == TrainConfig()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("val_fraction", [0, -0.1, 0.5, math.nan]),
        ("test_fraction", [-0.1, 0.5, math.nan]),
        ("size", [31, 4097]),
        ("channels", ["2", "rgb"]),
        ("fit", ["pad"]),
        ("kernel", ["nearest"]),
        ("arch", ["resnet101", ""]),
        ("head", ["attention"]),
        ("dropout", [-0.1, 1]),
        ("mode", ["tail"]),
        ("epochs", [0]),
        ("head_epochs", [-1]),
        ("batch_size", [1]),
        ("optimizer", ["lion"]),
        ("lr", [0, -1, math.nan, math.inf]),
        ("head_lr", [0, math.inf]),
        ("momentum", [-0.1, 1]),
        ("weight_decay", [-1, math.nan, math.inf]),
        ("warmup", [-0.1, 1]),
        ("label_smoothing", [-0.1, 1]),
        ("class_weights", ["inverse"]),
        ("l1", [-1, math.inf]),
        ("l2", [-1, math.inf]),
        ("l2_sp", [-1, math.inf]),
        ("monitor", ["roc"]),
        ("patience", [-1]),
        ("seed", [-1]),
        ("rotation", [-1, 181]),
        ("shift", [-1, 0.6]),
        ("scale", [-1, 1.1]),
        ("shear", [-1, 46]),
        ("crop", [-0.1, 0.6]),
        ("brightness", [-0.1, 0.6]),
        ("contrast", [-0.1, 2.1]),
        ("gamma", [-0.1, 2.1]),
        ("noise", [-0.1, 0.6]),
        ("blur", [-0.1, 5.1, math.nan]),
    ],
)
def test_a_value_out_of_its_limits_is_refused_by_its_option(field: str, values: list) -> None:
    for value in values:
        with pytest.raises(UsageError, match=f"^--{field.replace('_', '-')} is ") as refused:
            config_from({field: value})
        assert "expected" in str(refused.value)


def test_two_sources_of_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="--from and --weights"):
        config_from({"from_run": "runs/lung", "weights": "imagenet"})


def test_a_pull_on_a_backbone_that_does_not_move_is_refused() -> None:
    with pytest.raises(UsageError, match="--l2-sp has no effect with --mode head"):
        config_from({"mode": "head", "l2_sp": 0.1})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"momentum": 0.5}, "--momentum has no effect with --optimizer adamw"),
        ({"momentum": 0.5, "optimizer": "adam"}, "--momentum has no effect"),
        ({"mode": "head", "lr": 1e-3}, "--lr has no effect with --mode head"),
        ({"mode": "all", "head_lr": 1e-4}, "--head-lr has no effect with --mode all"),
        ({"mode": "all", "head_epochs": 1}, "--head-epochs has no effect with --mode all"),
    ],
)
def test_an_option_without_effect_is_refused(given: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config_from(given)


@pytest.mark.parametrize(
    "given",
    [
        {"momentum": 0.5, "optimizer": "sgd"},
        {"momentum": 0.9},
        {"mode": "head", "head_lr": 1e-4},
        {"mode": "all", "lr": 1e-3},
        {"head_lr": 1e-4, "lr": 1e-3, "head_epochs": 1},
    ],
)
def test_an_option_with_an_effect_is_taken(given: dict) -> None:
    config = config_from(given)
    assert all(getattr(config.fit, name) == value for name, value in given.items())
