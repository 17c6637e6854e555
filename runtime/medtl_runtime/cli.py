"""The command ``medtl-infer``: parse, run, print."""

import io
import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from medtl_runtime import commands
from medtl_runtime.errors import ScanError, ScanOutOfScope, UsageError

if TYPE_CHECKING:
    from medtl_runtime.predictor import Predictor, Result

app = commands.new_app()


class DeviceName(StrEnum):
    """What `--device` takes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@app.command(epilog=commands.EXIT_CODES)
def infer(
    scans: Annotated[
        list[str] | None,
        typer.Argument(help="Files (DICOM, PNG, JPEG, NPY), folders and globs.", metavar="SCAN..."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Model file. Default: $MEDTL_MODEL, else the only model in ./models, "
            "else the only one in the user's data folder."
        ),
    ] = None,
    device: Annotated[
        DeviceName, typer.Option(help="Where to run; auto takes CUDA if it is really there.")
    ] = DeviceName.auto,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; physical cores by default.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object an image, one line each.")
    ] = False,
    heatmap: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a PNG overlay of each finding there.")
    ] = None,
    info: Annotated[
        bool, typer.Option("--info", help="Show what the model says of itself.")
    ] = False,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Check that this machine reproduces stored logits.")
    ] = False,
    overwrite: commands.OverwriteOption = False,
    quiet: commands.QuietOption = False,
    config: commands.ConfigOption = None,
    version: commands.VersionOption = False,
) -> None:
    """Run a medtl model on medical images: DICOM, PNG, JPEG or NPY.

    Results go to stdout, notes to stderr. One bad file does not stop the rest.

    \b
    Examples:
      medtl-infer scan.dcm
      medtl-infer study/ "archive/**/*.dcm" --model models/liver.onnx
      medtl-infer study/ --json > findings.jsonl
      medtl-infer scan.dcm --heatmap overlays/
      medtl-infer --selftest
    """
    if not (scans or info or selftest):
        raise UsageError("nothing to do: name a scan, or --info or --selftest; see --help")
    if heatmap and not scans:
        raise UsageError("--heatmap needs scans to draw on")
    if overwrite and not heatmap:
        raise UsageError("--overwrite is for --heatmap, which is not given")
    from medtl_runtime.predictor import Predictor

    predictor = Predictor(model, device=device.value, threads=threads)
    if not quiet:
        typer.echo(f"{predictor.model['name']} on {predictor.engine.name}", err=True)
    if info:
        _show_info(predictor, as_json)
    if selftest:
        _run_selftest(predictor, as_json)
    if scans:
        failed = _infer_all(predictor, scans, as_json, heatmap, overwrite)
        if failed:
            raise typer.Exit(ScanError.exit_code)


def main() -> NoReturn:
    """Run the command; the console script's entry."""
    commands.run(app, "medtl-infer")


def _infer_all(
    predictor: "Predictor", scans: list[str], as_json: bool, heatmap: Path | None, overwrite: bool
) -> int:
    """Print all results and return how many scans failed."""
    rows: list[dict[str, Any]] = []
    stems: set[str] = set()
    failed = 0
    try:
        for outcome in _outcomes(predictor, scans):
            row = _as_json(outcome)
            if isinstance(outcome, ScanError):
                failed += 1
                if not as_json:
                    commands.show_error(outcome)
            else:
                rows.append(row)
                if heatmap is not None:
                    row["heatmap"] = str(_write_heatmap(outcome, heatmap, stems, overwrite))
            if as_json:
                commands.show(json.dumps(row))
    finally:  # what was found is shown, whatever stops the rest
        if rows and not as_json:
            _print_table(predictor, rows)
    return failed


def _outcomes(predictor: "Predictor", scans: list[str]) -> "Iterator[Result | ScanError]":
    from medtl_runtime.reading import expand

    for path in expand(scans):
        if isinstance(path, ScanError):
            yield path
            continue
        try:
            yield from predictor.frames(path)
        except ScanError as error:
            yield error


def _as_json(outcome: "Result | ScanError") -> dict[str, Any]:
    if not isinstance(outcome, ScanError):
        return outcome.to_json()
    return {
        "scan": outcome.source,
        "status": "refused" if isinstance(outcome, ScanOutOfScope) else "error",
        "reason": outcome.code,
        "message": outcome.reason,
    }


def _write_heatmap(result: "Result", folder: Path, stems: set[str], overwrite: bool) -> Path:
    from medtl_runtime.files import refuse_existing
    from medtl_runtime.heatmap import write_heatmap

    stem = Path(result.scan).name.removesuffix(".dcm")
    if result.frame:
        stem += f"-frame{result.frame}"
    number, unique = 1, stem
    while unique in stems:  # the same file name in two folders
        number += 1
        unique = f"{stem}-{number}"
    stems.add(unique)
    refuse_existing(folder / f"{unique}.png", overwrite=overwrite)
    return write_heatmap(result, folder, unique)


def _print_table(predictor: "Predictor", rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    printed = io.StringIO()
    console = Console(
        file=printed,
        force_terminal=terminal,
        width=None if terminal else 200,  # in a log, long paths stay on one line
        soft_wrap=True,
        markup=False,  # names are shown as they are: "[axial]" in a path is no markup
        emoji=False,
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("scan", overflow="fold")
    table.add_column("finding")
    classes = predictor.description.classes
    for name in classes:
        table.add_column(f"p({name})", justify="right")
    table.add_column("ms", justify="right")
    several = {row["scan"] for row in rows if row["frame"] > 0}
    for row in rows:
        scan = commands.printable(row["scan"])
        if row["scan"] in several:
            scan += f" [{row['frame']}]"
        chances = [f"{row['probabilities'][name]:.3f}" for name in classes]
        elapsed = f"{sum(row['milliseconds'].values()):.1f}"
        table.add_row(scan, row["finding"], *chances, elapsed)
    console.print(table)
    commands.show(printed.getvalue().rstrip("\n"))
    model = predictor.model
    commands.show(
        f"model {model['name']} {model['version']} ({model['precision']}), {model['digest'][:19]}…"
        "  Research use only; not a medical device."
    )


def _show_info(predictor: "Predictor", as_json: bool) -> None:
    described = predictor.description
    if as_json:
        commands.show(described.to_json())
        return
    document = json.loads(described.to_json())
    commands.show(f"digest: {predictor.model['digest']}")
    document["self_test"] = (
        f"{len(described.self_test.seeds)} images, tolerance {described.self_test.tolerance:g}"
    )
    for line in _outline(document):
        commands.show(line)


def _outline(value: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yield a JSON object as indented `name: value` lines."""
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield f"{indent}{name}:"
            yield from _outline(inner, indent + "  ")
        else:
            shown = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
            yield f"{indent}{name}: {shown}"


def _run_selftest(predictor: "Predictor", as_json: bool) -> None:
    from medtl_runtime.selftest import self_test

    result = self_test(predictor.engine)
    if as_json:
        row = {
            "self_test": "passed",
            "difference": result.difference,
            "engine": predictor.engine.name,
        }
        commands.show(json.dumps(row))
        return
    commands.show(
        f"self-test passed: largest difference {result.difference:.2g} over {result.images} images "
        f"(allowed {result.tolerance:.2g}), {predictor.engine.name}"
    )


if __name__ == "__main__":
    main()
