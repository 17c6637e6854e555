"""What the three commands have in common: exit codes, --config, --version, one line per failure."""

import importlib.util
import io
import logging
import os
import sys
import tomllib
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from medtl_runtime import __version__
from medtl_runtime.errors import ExtraMissing, MedtlError, OutputNotWritten, UsageError

EXIT_CODES = (
    "Exit codes: 0 all done, 1 internal error, 2 usage, "
    "3 some inputs failed or were refused, 4 model unusable."
)


_Function = TypeVar("_Function", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
"""The type of arguments and options that are paths; whether they exist is seen when they open."""

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}
"""Of every command's context."""


def run(command: click.Command, program: str) -> NoReturn:
    """Run a command; turn a failure into one line on stderr and its exit code.

    An exception that is no `MedtlError` is a bug. Its text and its traceback may hold names and
    paths, so only its kind and its place are shown, unless ``MEDTL_TRACEBACK`` is set.
    """
    for package in ("pydicom", "PIL", "highdicom"):  # what matters comes as a `MedtlError`
        warnings.filterwarnings("ignore", module=package)
        logging.getLogger(package).disabled = True  # a level, pydicom would set anew
    if isinstance(sys.stdout, io.TextIOWrapper):  # no file name is beyond printing
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = command.main(prog_name=program, standalone_mode=False)
    except MedtlError as error:
        show_error(error)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = 130
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        code = 1
    except Exception as error:
        if os.environ.get("MEDTL_TRACEBACK"):
            raise
        click.echo(f"internal error: {_place(error)}; MEDTL_TRACEBACK=1 shows more", err=True)
        code = MedtlError.exit_code
    sys.exit(code or 0)


def run_within(subcommands: Mapping[str, str], program: str) -> None:
    """Run the command within a program that the first argument names, and exit; or do nothing.

    Parameters
    ----------
    subcommands
        The module of each by its name; the command in it has the same name.
    """
    if len(sys.argv) > 1 and sys.argv[1] in subcommands:
        name = sys.argv.pop(1)
        module = importlib.import_module(subcommands[name])
        run(getattr(module, name), f"{program} {name}")


def _place(error: Exception) -> str:
    """Return the kind of an exception and the line of medtl that it went through last."""
    steps = traceback.extract_tb(error.__traceback__)
    ours = [step for step in steps if "medtl_" in step.filename] or steps
    return f"{type(error).__name__} in {Path(ours[-1].filename).name}, line {ours[-1].lineno}"


def show(text: str) -> None:
    """Print a result on stdout.

    Raises
    ------
    OutputNotWritten
        Stdout goes to a file, and the disk is full.
    """
    try:
        click.echo(text)
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        raise
    except OSError as cause:
        raise OutputNotWritten(Path("standard output"), cause) from cause


def show_error(error: MedtlError) -> None:
    """Print a failure on stderr, in one line."""
    click.echo(f"error: {printable(str(error))}", err=True)


def printable(text: str) -> str:
    """Return ``text`` without control characters, which file names and headers may hold."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def require_packages(packages: Sequence[str], *, extra: str, purpose: str) -> None:
    """Raise `ExtraMissing` for the first of ``packages`` that is not installed; import none."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ExtraMissing(package, extra=extra, purpose=purpose)


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"medtl {__version__}")
        context.exit()


def read_config(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises
    ------
    UsageError
        It cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise UsageError(f"--config {path}: {cause.strerror}") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise UsageError(f"--config {path} is not TOML: {cause}") from cause


def _set_defaults(context: click.Context, path: Path, tables: Sequence[str]) -> None:
    """Make a TOML file's values the defaults of this call, so that an option wins over them."""
    values = {key: value for key, value in read_config(path).items() if key not in tables}
    names = {
        option.removeprefix("--").replace("-", "_"): parameter.name
        for parameter in context.command.params
        for option in parameter.opts
    }
    for key, value in values.items():
        if key.replace("-", "_") not in names or isinstance(value, dict):
            raise UsageError(f"--config {path}: there is no option --{key}")
    context.default_map = {names[key.replace("-", "_")]: value for key, value in values.items()}


def config_option(*tables: str) -> Callable[[_Function], _Function]:
    """Return the option ``--config``, which sets the defaults of the others.

    Parameters
    ----------
    tables
        Names of tables in the file that are no options; where there are any, the command gets the
        path as ``config`` and reads them with `read_config`.
    """

    def set_defaults(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
        if path is not None:
            _set_defaults(context, path, tables)
        return path

    return click.option(
        "--config",
        type=PATH,
        metavar="FILE.toml",
        help="Read options from a TOML file, by their names; an option on the command line wins.",
        callback=set_defaults,
        is_eager=True,
        expose_value=bool(tables),
    )


version_option = click.option(
    "--version",
    is_flag=True,
    help="Show the version and exit.",
    callback=_show_version,
    is_eager=True,
    expose_value=False,
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress and notes on stderr.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
