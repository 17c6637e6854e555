"""The command ``medtl-train``: parse, run, print."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from medtl_runtime import commands
from medtl_runtime.errors import UsageError
from medtl_train.options import config_from, with_options

if TYPE_CHECKING:
    from rich.table import Table

    from medtl_train.config import TrainConfig
    from medtl_train.fitting.distributed import World

# Commands within the command, each a module of its own.
_SUBCOMMANDS = {"compare": "medtl_train.compare.cli"}

_NEEDED = ("torch", "torchvision", "sklearn", "matplotlib", "jinja2", "polars")


@click.command(epilog=commands.EXIT_CODES, context_settings=commands.SETTINGS)
@click.argument("data", type=commands.PATH, metavar="DATA")
@click.option("--name", help="The run's name; that of DATA by default.")
@click.option("--out", type=commands.PATH, default=Path("runs"), help="Folder for runs.")
@click.option("--device", default="auto", help="auto, cpu or cuda; never falls back silently.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option(
    "--search",
    type=click.IntRange(min=2),
    metavar="N",
    help="Try N sets of options, and keep the one with the best validation metric.",
)
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
    search: int | None,
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
    Further commands:
      medtl-train compare RUN RUN…      Whether one run is better than another.

    \b
    Examples:
      medtl-train data/lung --window lung
      medtl-train data/liver --from runs/lung --window liver --epochs 20
      medtl-train manifest.csv --label-column finding --patient-column patient
      medtl-train breastmnist.npz --arch squeezenet1_1 --weights squeezenet1_1.pth --size 64
      medtl-train data/liver --config runs/liver/config.toml --name again
      torchrun --nproc-per-node 4 -m medtl_train.cli data/lung --batch-size 256
    """
    commands.require_packages(_NEEDED, extra="cpu,train", purpose="medtl-train")
    settings = config_from(options)  # a wrong value is refused before torch is loaded
    import torch

    from medtl_train.console import Reporter
    from medtl_train.device import choose_device
    from medtl_train.fitting.distributed import joined, restarted

    chosen = choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    folder = out / (name or _name_of(data))
    again = restarted() and (folder / "last.pt").is_file()
    with joined(chosen) as (world, own):
        work = _work(settings, search, world)
        summary = work(
            data,
            folder,
            settings,
            device=own,
            resume=resume or again,
            overwrite=(overwrite or restarted()) and not again,
            reporter=Reporter(quiet=quiet or not world.first),
        )
    if world.first:
        _print_summary(summary, folder)


def _work(
    settings: "TrainConfig", search: int | None, world: "World"
) -> Callable[..., dict[str, Any]]:
    """Return what trains: one network, several as one, one for each fold, or a search."""
    ensemble = settings.ensemble.ensemble != "none"
    asked = {"--search": search, "--ensemble": ensemble, "--folds": settings.data.folds}
    both = [option for option, given in asked.items() if given]
    if len(both) > 1:
        raise UsageError(f"{' and '.join(both)} cannot be combined; give one")
    if both and world.size > 1:
        raise UsageError(f"{both[0]} trains in one process; start it without torchrun")
    if search is not None:
        commands.require_packages(("optuna",), extra="search", purpose="--search")
        from medtl_train.search import search as run_search

        return partial(run_search, trials=search)
    if ensemble:
        from medtl_train.ensembles import train_ensemble

        return train_ensemble
    if settings.data.folds:
        from medtl_train.crossval import cross_validate

        return cross_validate
    from medtl_train.run import train as train_one

    return partial(train_one, world=world)


def _name_of(data: Path) -> str:
    """Return the name of a folder or the stem of a file; ``.`` and ``..`` have to be looked up."""
    named = data.resolve() if data.name in ("", "..") else data
    return named.name if named.is_dir() else named.stem


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    found = {name: summary.get(name) for name in ("validation", "test", "external")}
    splits = {name: evaluation for name, evaluation in found.items() if evaluation}
    console = Console(soft_wrap=True)
    for head in summary["heads"]:
        title = head if len(summary["heads"]) > 1 else None
        console.print(_table(title, {name: one["heads"][head] for name, one in splits.items()}))
    click.echo("in brackets: 95 % intervals from a bootstrap over patients")
    click.echo(f"report {folder / 'report.html'}")
    if (folder / "best.pt").is_file():
        click.echo(f"export medtl-export {folder} --quantize")


def _table(title: str | None, splits: dict[str, dict[str, Any]]) -> "Table":
    """Return the metrics of a head, a column for each split."""
    from rich import box
    from rich.table import Table

    from medtl_train.scoring.metrics import NAMES

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    for name, evaluation in splits.items():
        table.add_column(f"{name}, n={evaluation['images']}", justify="right")
    # The report has the others, too.
    shown = (*NAMES, "quadratic_weighted_kappa", "mae", "rmse", "r2")
    first = next(iter(splits.values()))
    for metric in [name for name in first["metrics"] if name in shown]:
        cells = [_cell(evaluation["metrics"][metric]) for evaluation in splits.values()]
        table.add_row(metric.replace("_", " "), *cells)
    return table


def _cell(metric: dict[str, float | None]) -> str:
    if metric["value"] is None:
        return "–"
    if metric["low"] is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


def main() -> NoReturn:
    """Run the command; the console script's entry."""
    commands.run_within(_SUBCOMMANDS, "medtl-train")
    commands.run(train, "medtl-train")


if __name__ == "__main__":
    main()
