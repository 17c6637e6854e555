"""What the three commands have in common: exit codes, --config, --version, one line per failure."""

import importlib.util
import io
import logging
import sys
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from medtl_runtime import __version__
from medtl_runtime.errors import ExtraMissing, MedtlError, OutputNotWritten, UsageError

EXIT_CODES = (
    "Exit codes: 0 all done, 1 internal error, 2 usage, "
    "3 some inputs failed or were refused, 4 model unusable."
)


def new_app() -> typer.Typer:
    """Return a typer application with medtl's settings."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(app: typer.Typer, program: str) -> NoReturn:
    """Run a command; turn a `MedtlError` into one line on stderr and its exit code."""
    for package in ("pydicom", "PIL"):  # what matters of their warnings comes as a `MedtlError`
        warnings.filterwarnings("ignore", module=package)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    if isinstance(sys.stdout, io.TextIOWrapper):  # no file name is beyond printing
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name=program)
    except MedtlError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    sys.exit(0)


def show(text: str) -> None:
    """Print a result on stdout.

    Raises
    ------
    OutputNotWritten
        Stdout goes to a file, and the disk is full.
    """
    try:
        typer.echo(text)
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        raise
    except OSError as cause:
        raise OutputNotWritten(Path("standard output"), cause) from cause


def show_error(error: MedtlError) -> None:
    """Print a failure on stderr, in one line."""
    typer.echo(f"error: {printable(str(error))}", err=True)


def printable(text: str) -> str:
    """Return ``text`` without control characters, which file names and headers may hold."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def require_packages(packages: Sequence[str], *, extra: str, purpose: str) -> None:
    """Raise `ExtraMissing` for the first of ``packages`` that is not installed; import none."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ExtraMissing(package, extra=extra, purpose=purpose)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medtl {__version__}")
        raise typer.Exit


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make a TOML file's values the defaults of this call, so that an option wins over them."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise UsageError(f"--config {path}: {cause.strerror}") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise UsageError(f"--config {path} is not TOML: {cause}") from cause
    names = {
        option.removeprefix("--").replace("-", "_"): parameter.name
        for parameter in context.command.params
        for option in parameter.opts
    }
    for key in values:
        if key.replace("-", "_") not in names:
            raise UsageError(f"--config {path}: there is no option --{key}")
    context.default_map = {names[key.replace("-", "_")]: value for key, value in values.items()}
    return path


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        help="Read options from a TOML file, by their names; an option on the command line wins.",
        callback=_read_config,
        is_eager=True,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and notes on stderr.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
