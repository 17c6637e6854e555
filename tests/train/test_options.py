"""Options, their help and config.toml are all made from the same fields."""

import dataclasses
import tomllib

import click
import pytest

from medtl_train.config import TrainConfig
from medtl_train.options import config_from, flat, to_toml, with_options


@click.command()
@with_options
def command(**options: object) -> None:
    """Take all options."""


MADE = {str(one.name): one for one in command.params if isinstance(one, click.Option)}


def test_every_field_is_one_option_with_its_explanation_and_default() -> None:
    assert set(MADE) == set(flat(TrainConfig()))
    for name, value in flat(TrainConfig()).items():
        default = MADE[name].default
        assert (list(default) if isinstance(default, tuple) else default) == value, name
        text = MADE[name].help
        assert text is not None
        assert text.endswith((".", "!")), name


def test_no_two_groups_share_a_name() -> None:
    groups = [getattr(TrainConfig(), group.name) for group in dataclasses.fields(TrainConfig)]
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))


def spelt(name: str) -> str:
    """Return how a field is written on the command line."""
    return "/".join([*MADE[name].opts, *MADE[name].secondary_opts])


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("from_run", "--from"),
        ("l2_sp", "--l2-sp"),
        ("augment", "--augment/--no-augment"),
        ("offline", "--offline/--no-offline"),
        ("hflip", "--hflip/--no-hflip"),
        ("preset", "--preset"),
        ("epochs", "--epochs"),
    ],
)
def test_names_are_spelt_as_on_a_command_line(name: str, spelling: str) -> None:
    assert spelt(name) == spelling


CHANGED = {
    "label_column": 'the "finding"\\path\ttab — Befund',
    "positive": "lésion",
    "from_run": ("runs/a b", "runs/c"),
    "window": "-600,1500",
    "lr": 1e-05,
    "l2": 1e20,
    "seed": 2**40,
    "hflip": True,
    "augment": False,
    "test_fraction": 0.0,
}


def test_toml_says_the_same_as_the_configuration() -> None:
    config = config_from({**flat(TrainConfig()), **CHANGED})
    text = to_toml(config)
    names = {spelt(name).split("/")[0].removeprefix("--"): name for name in flat(config)}
    read = {names[key]: value for key, value in tomllib.loads(text).items()}
    missing = {name: None for name in flat(config) if name not in read}
    assert config_from({**read, **missing}) == config
    assert to_toml(config_from({**read, **missing})) == text
    assert set(missing) == {name for name, value in flat(config).items() if value is None}
