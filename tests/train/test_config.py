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
        ("imbalance", ["balanced"]),
        ("tau", [0, -1, math.inf]),
        ("focal", [-1, math.nan, math.inf]),
        ("mixup", [-0.1, math.inf]),
        ("cutmix", [-0.1, math.inf]),
        ("ema", [-0.1, 1]),
        ("soup", [-1, 1]),
        ("lr_decay", [0, 1.1]),
        ("head_ratio", [0, math.inf]),
        ("batch_norm", ["eval"]),
        ("drop_path", [-0.1, 1]),
        ("unfreeze_epochs", [0]),
        ("head_weights", ["2", "a=x", "a=-1", "=1", "a=inf", "a=1,", ""]),
        ("regression_loss", ["l1"]),
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
        config_from({"from_run": ("runs/lung",), "weights": "imagenet"})


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
        ({"unfreeze_epochs": 2}, "--unfreeze-epochs has no effect with --mode solve-then-all"),
        ({"head_epochs": 2}, "--head-epochs has no effect with --mode solve-then-all"),
        ({"head_lr": 1e-4}, "--head-lr has no effect with --mode solve-then-all"),
        ({"mode": "head", "freeze": "1"}, "--freeze has no effect with --mode head"),
        ({"mode": "head", "lr_decay": 0.4}, "--lr-decay has no effect with --mode head"),
        ({"mode": "features", "ema": 0.5}, "--ema has no effect with --mode features"),
        ({"mode": "features", "epochs": 3}, "--epochs has no effect with --mode features"),
        ({"mode": "features", "head": "mlp"}, "--head has no effect with --mode features"),
        ({"mode": "features", "rotation": 3.0}, "--rotation has no effect with --mode features"),
        ({"tau": 2.0}, "--tau has no effect with --imbalance none"),
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
        {"mode": "head-then-all", "head_lr": 1e-4, "lr": 1e-3, "head_epochs": 1},
        {"mode": "gradual", "unfreeze_epochs": 2, "head_epochs": 2},
    ],
)
def test_an_option_with_an_effect_is_taken(given: dict) -> None:
    config = config_from(given)
    assert all(getattr(config.fit, name) == value for name, value in given.items())


def test_weights_of_heads_are_read_by_name() -> None:
    tasks = config_from({"head_weights": "cyst=2, lung size=0.5"}).tasks
    assert tasks.fixed_weights() == {"cyst": 2.0, "lung size": 0.5}
    assert config_from({"head_weights": "uncertainty"}).tasks.fixed_weights() == {}
