"""The command ``medtl-train``: parse, run, print."""

from pathlib import Path
from typing import Any, NoReturn

import click

from medtl_runtime import commands
from medtl_train.options import config_from, with_options

_NEEDED = ("torch", "torchvision", "sklearn", "matplotlib", "jinja2", "polars")


@click.command(epilog=commands.EXIT_CODES, context_settings=commands.SETTINGS)
@click.argument("data", type=commands.PATH, metavar="DATA")
@click.option("--name", help="The run's name; that of DATA by default.")
@click.option("--out", type=commands.PATH, default=Path("runs"), help="Folder for runs.")
@click.option("--device", default="auto", help="auto, cpu or cuda; never falls back silently.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same options.")
@commands.overwrite_option
@commands.quiet_option
@commands.config_option()
@commands.version_option
@with_options
def train(
    data: Path,
    name: str | None,
    out: Path,
    device: str,
    threads: int | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Fine-tune a pretrained CNN on medical images and evaluate it honestly.

    DATA is a folder per class, a .csv or .parquet manifest, or an .npz file; it holds DICOM, PNG,
    JPEG or NPY images. Splits are by patient. Writes best.pt, last.pt,
    config.toml, metrics.json, history.csv, splits.csv and report.html into runs/NAME.

    \b
    Examples:
      medtl-train data/lung --window lung
      medtl-train data/liver --from runs/lung --window liver --epochs 20
      medtl-train manifest.csv --label-column finding --patient-column patient
      medtl-train breastmnist.npz --arch squeezenet1_1 --weights squeezenet1_1.pth --size 64
      medtl-train data/liver --config runs/liver/config.toml --name again
    """
    commands.require_packages(_NEEDED, extra="cpu,train", purpose="medtl-train")
    settings = config_from(options)  # a wrong value is refused before torch is loaded
    import torch

    from medtl_train.console import Reporter
    from medtl_train.device import choose_device
    from medtl_train.run import train as run_training

    chosen = choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    folder = out / (name or _name_of(data))
    summary = run_training(
        data,
        folder,
        settings,
        device=chosen,
        resume=resume,
        overwrite=overwrite,
        reporter=Reporter(quiet=quiet),
    )
    _print_summary(summary, folder)


def _name_of(data: Path) -> str:
    """Return the name of a folder or the stem of a file; ``.`` and ``..`` have to be looked up."""
    named = data.resolve() if data.name in ("", "..") else data
    return named.name if named.is_dir() else named.stem


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    splits = {name: summary[name] for name in ("validation", "test") if summary[name]}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    for name, evaluation in splits.items():
        table.add_column(f"{name}, n={evaluation['images']}", justify="right")
    for metric in summary["validation"]["metrics"]:
        cells = [_cell(evaluation["metrics"][metric]) for evaluation in splits.values()]
        table.add_row(metric.replace("_", " "), *cells)
    Console(soft_wrap=True).print(table)
    click.echo("in brackets: 95 % intervals from a bootstrap over patients")
    click.echo(f"report {folder / 'report.html'}")
    click.echo(f"export medtl-export {folder} --quantize")


def _cell(metric: dict[str, float | None]) -> str:
    if metric["value"] is None:
        return "–"
    if metric["low"] is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


def main() -> NoReturn:
    """Run the command; the console script's entry."""
    commands.run(train, "medtl-train")


if __name__ == "__main__":
    main()
