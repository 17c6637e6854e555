"""The command ``medtl-export``: parse, run, print."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from medtl_runtime import commands
from medtl_runtime.errors import EngineMissing

if TYPE_CHECKING:
    from medtl_export.run import Exported

_NEEDED = ("torch", "torchvision", "sklearn", "onnx", "onnxscript")

app = commands.new_app()


@app.command(epilog=commands.EXIT_CODES)
def export(
    run: Annotated[Path, typer.Argument(help="A folder that medtl-train wrote.", metavar="RUN")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write. Default: models/NAME.onnx."),
    ] = None,
    quantize: Annotated[
        bool,
        typer.Option("--quantize", help="Write an int8 model, if it is faster and no worse."),
    ] = False,
    max_drop: Annotated[
        float, typer.Option(min=0, max=1, help="Accepted loss of validation AUROC.")
    ] = 0.005,
    overwrite: commands.OverwriteOption = False,
    quiet: commands.QuietOption = False,
    config: commands.ConfigOption = None,
    version: commands.VersionOption = False,
) -> None:
    """Turn a training run into one self-describing ONNX file, and prove what it does.

    The file holds the network, the recipe for its pixels, classes, operating point, accuracy,
    provenance and a self-test. It is written only if it computes what torch computes and, with
    --quantize, if int8 is faster on this machine and no worse on the validation set.

    \b
    Examples:
      medtl-export runs/liver
      medtl-export runs/liver --quantize
      medtl-export runs/liver --quantize --max-drop 0.01 -o models/liver-2.onnx
    """
    commands.require_packages(_NEEDED, extra="cpu,export", purpose="medtl-export")
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineMissing
    from medtl_export.run import export as run_export

    exported = run_export(
        run,
        output or Path("models") / f"{run.resolve().name}.onnx",
        quantise=quantize,
        max_drop=max_drop,
        overwrite=overwrite,
        note=(lambda _: None) if quiet else (lambda text: typer.echo(text, err=True)),
    )
    _print(exported)


def _print(exported: "Exported") -> None:
    parity = exported.parity
    typer.echo(
        f"parity: max |Δlogit| {parity.largest_difference:.2g} on {parity.images} validation "
        f"images (allowed {parity.tolerance:.2g}), {parity.flips} flips"
    )
    if exported.quantised is not None:
        _print_comparison(exported.quantised)
    typer.echo(f"model {exported.path} ({exported.bytes / 2**20:.1f} MiB)")


def _print_comparison(account: dict) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "fp32", "int8"):
        table.add_column(column, justify="right" if column else "left")
    before, after = account["accuracy"]["fp32"], account["accuracy"]["int8"]
    for name in before:
        table.add_row(
            f"validation {name.replace('_', ' ')}", _number(before[name]), _number(after[name])
        )
    latency = account["latency"]
    table.add_row("latency, ms", f"{latency['reference_ms']:.2f}", f"{latency['candidate_ms']:.2f}")
    Console(soft_wrap=True).print(table)
    typer.echo(
        f"int8 is {latency['speed_up']:.2f} times as fast "
        f"({latency['low']:.2f} to {latency['high']:.2f}), {account['flips']} of "
        f"{account['validation_images']} decisions differ; {account['machine']['cpu']}, "
        f"{account['machine']['engine']}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def main() -> NoReturn:
    """Run the command; the console script's entry."""
    commands.run(app, "medtl-export")


if __name__ == "__main__":
    main()
