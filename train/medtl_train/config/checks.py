"""Refuses values of options that are out of their limits; the message names the option."""

from typing import get_args

from medtl_runtime.errors import UsageError


def require(condition: bool, field: str, found: object, expected: str) -> None:
    """Raise `UsageError` unless ``condition`` holds of the value ``found`` of a field."""
    if not condition:
        raise UsageError(f"--{field.replace('_', '-')} is {found}; expected {expected}")


def require_choice(config: object, field: str, choices: object) -> None:
    """Raise `UsageError` unless the field's value is one of a `Literal`'s."""
    found = getattr(config, field)
    require(found in get_args(choices), field, found, ", ".join(get_args(choices)))
