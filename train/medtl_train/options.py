"""Configuration dataclasses as command-line options and as TOML: one definition for all three."""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_type_hints

import typer

from medtl_train.config import TrainConfig

# Words that Python reserves, or that would not read well as an option.
_NAMES = {"from_run": "--from", "augment": "--augment/--no-augment"}


def parameters() -> list[inspect.Parameter]:
    """Return a keyword parameter, annotated for typer, for every field of `TrainConfig`."""
    return [
        parameter
        for group in dataclasses.fields(TrainConfig)
        for parameter in _of_group(_config_class(group))
    ]


def _config_class(group: dataclasses.Field) -> type:
    """Return the dataclass of a group of options."""
    return type(group.default)


def _of_group(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    made = []
    for field in dataclasses.fields(group):
        kind, text = get_args(hints[field.name])
        names = [_NAMES.get(field.name, "--" + field.name.replace("_", "-"))]
        if kind is bool and "/" not in names[0]:
            names = [f"{names[0]}/--no-{names[0].removeprefix('--')}"]
        option = typer.Option(*names, help=text, rich_help_panel=group.__name__)
        made.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[kind, option],
            )
        )
    return made


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with ``values`` for its fields, whatever group they are in.

    Raises
    ------
    UsageError
        A value is out of its limits; the message names the option.
    """
    groups = {}
    for group in dataclasses.fields(TrainConfig):
        kind = _config_class(group)
        names = {field.name for field in dataclasses.fields(kind)}
        given = {name: value for name, value in values.items() if name in names}
        groups[group.name] = kind(**given)
    return TrainConfig(**groups)


def flat(config: TrainConfig) -> dict[str, Any]:
    """Return all fields by name; `config_from` is the inverse."""
    return {
        name: value
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
