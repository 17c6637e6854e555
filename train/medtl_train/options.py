"""Configuration dataclasses as command-line options and as TOML: one definition for all three."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from medtl_train.config import TrainConfig

# Words that Python reserves, or that would not read well as an option.
_NAMES = {"from_run": "--from", "augment": "--augment/--no-augment"}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every field of `TrainConfig`, in their order."""
    for option in reversed([made for group in _groups() for made in _of_group(group)]):
        command = option(command)  # the last to be applied comes first in the help
    return command


def _groups() -> list[type]:
    """Return the dataclasses of the groups of options."""
    return list(get_type_hints(TrainConfig).values())


def _of_group(group: type) -> list[Callable[[Callable[..., None]], Callable[..., None]]]:
    hints = get_type_hints(group, include_extras=True)
    made = []
    for field in dataclasses.fields(group):
        kind, text = get_args(hints[field.name])
        name = _NAMES.get(field.name, "--" + field.name.replace("_", "-"))
        if _type_of(kind) is bool and "/" not in name:
            name = f"{name}/--no-{name.removeprefix('--')}"
        made.append(
            click.option(
                name,
                field.name,
                type=_type_of(kind),
                default=field.default,
                multiple=get_origin(kind) is tuple,
                help=text,
            )
        )
    return made


def _type_of(kind: Any) -> Any:
    """Return click's type for a field's: optional, several, a choice, or a number or a word."""
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if get_origin(kind) is tuple:
        return get_args(kind)[0]
    inner = [one for one in get_args(kind) if one is not NoneType]
    if len(inner) == 2:
        return _NumberOr(get_args(inner[1]))
    return _type_of(inner[0]) if inner else kind


class _NumberOr(click.ParamType):
    """A whole number or one of some words."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        self.name = "|".join(("integer", *words))

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        return value if value in self.words else click.INT.convert(value, param, ctx)


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with ``values`` for its fields, whatever group they are in.

    Raises
    ------
    UsageError
        A value is out of its limits; the message names the option.
    """
    groups = {}
    for group, kind in get_type_hints(TrainConfig).items():
        names = {field.name for field in dataclasses.fields(kind)}
        # JSON and TOML know lists only.
        given = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in names
        }
        groups[group] = kind(**given)
    return TrainConfig(**groups)


def flat(config: TrainConfig) -> dict[str, Any]:
    """Return all fields by name, as JSON knows them; `config_from` is the inverse."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for group in dataclasses.asdict(config).values()
        for name, value in group.items()
    }


def to_toml(config: TrainConfig) -> str:
    """Return the configuration as TOML that ``--config`` reads; fields without value left out."""
    lines = []
    for name, value in flat(config).items():
        if value is not None:
            key = _NAMES.get(name, name).split("/")[0].removeprefix("--").replace("_", "-")
            # JSON's strings, numbers and booleans are TOML's too.
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
