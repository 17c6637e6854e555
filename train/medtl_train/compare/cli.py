"""The command ``medtl-train compare``: parse, compare, print."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from medtl_runtime import commands
from medtl_runtime.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

_NEEDED = ("torch", "sklearn", "scipy", "matplotlib", "jinja2", "polars")


@click.command(epilog=commands.EXIT_CODES, context_settings=commands.SETTINGS)
@click.argument("runs", nargs=-1, type=commands.PATH, metavar="RUN RUN...")
@click.option(
    "--split",
    type=click.Choice(["test", "external", "validation"]),
    default="test",
    help="Images that are compared.",
)
@click.option("--out", type=commands.PATH, metavar="FILE.html", help="Write a page with pictures.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with every figure.")
@commands.overwrite_option
@commands.version_option
def compare(
    runs: tuple[Path, ...], split: str, out: Path | None, as_json: bool, overwrite: bool
) -> None:
    """Say whether finished runs differ on the same images, or by chance.

    Each RUN is a folder that medtl-train wrote. The first is what the others are compared with:
    paired differences with 95 % intervals over patients, DeLong's and McNemar's tests, p-values
    adjusted for several runs (Holm). Images that not all runs have are left out.

    \b
    Examples:
      medtl-train compare runs/resnet18 runs/resnet50
      medtl-train compare runs/a runs/b runs/c --split external --out comparison.html
    """
    commands.require_packages(_NEEDED, extra="cpu,train", purpose="medtl-train compare")
    _require_different(runs)
    from medtl_runtime.files import refuse_existing
    from medtl_train.compare import comparison
    from medtl_train.compare.report import write_comparison

    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    found = comparison.compare([comparison.read_run(run, split) for run in runs], split)
    if out is not None:
        write_comparison(out, found)
    if as_json:
        commands.show(json.dumps(found, ensure_ascii=False))
    else:
        _print(found, out)


def _require_different(runs: tuple[Path, ...]) -> None:
    if len(runs) < 2:
        raise UsageError(f"{len(runs)} run given; a comparison takes two or more")
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError("a run is given twice; a comparison takes different runs")


def _print(found: dict[str, Any], out: Path | None) -> None:
    from rich.console import Console

    # A file or a pipe has no width to keep to.
    console = Console(soft_wrap=True, highlight=False, width=None if _is_terminal() else 120)
    for name, head in found["heads"].items():
        console.print(_table(name, head))
    whose = f" of {found['patients']} patients" if found["patients_known"] else ""
    click.echo(f"{found['images']} {found['split']} images{whose} that all have")
    if not found["patients_known"]:
        click.echo("caution: whose images these are is not known; each counts as a patient")
    for run, left in found["left_out"].items():
        if left:
            click.echo(f"caution: {left} images of {run} left out, because not all runs have them")
    click.echo("in brackets: 95 % intervals over patients; p-values are adjusted (Holm)")
    if out is not None:
        click.echo(f"page {out}")


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _table(name: str, head: dict[str, Any]) -> "Table":
    """Return the runs of a head with what they are compared by first."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    metric, others = (
        head["primary"],
        ["p"] if head["kind"] == "regression" else ["p", "decisions p"],
    )
    table = Table(title=escape(name), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", metric, "difference", *others):
        table.add_column(heading)
    for row in head["runs"]:
        cells = [_estimate(row["metrics"][metric])]
        if row["tests"] is not None:
            cells.append(_estimate(row["differences"][metric], sign="+"))
            cells += [_p(test["p_holm"]) for test in row["tests"]]
        table.add_row(escape(row["run"]), *cells)
    return table


def _estimate(metric: dict[str, float | None], sign: str = "") -> str:
    if metric["value"] is None:
        return "–"
    if metric["low"] is None:
        return f"{metric['value']:{sign}.3f}"
    return f"{metric['value']:{sign}.3f} ({metric['low']:{sign}.3f} to {metric['high']:{sign}.3f})"


def _p(value: float | None) -> str:
    return "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def main() -> NoReturn:
    """Run the command."""
    commands.run(compare, "medtl-train compare")
