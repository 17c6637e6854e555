"""The command ``medtl-export``: parse, run, print."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from medtl_runtime import commands
from medtl_runtime.errors import EngineMissing

if TYPE_CHECKING:
    from medtl_export.run import Exported

_NEEDED = ("torch", "torchvision", "sklearn", "onnx", "onnxscript")


@click.command(epilog=commands.EXIT_CODES, context_settings=commands.SETTINGS)
@click.argument("run", type=commands.PATH, metavar="RUN")
@click.option(
    "--output", "-o", type=commands.PATH, help="The file to write. Default: models/NAME.onnx."
)
@click.option("--quantize", is_flag=True, help="Write an int8 model, if it is faster and no worse.")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0, max=1),
    default=0.005,
    help="Accepted loss of validation AUROC.",
)
@click.option(
    "--false-refusal-rate",
    type=float,
    help="Share of images like the validation images that may be refused as unlike the "
    "training data; 0 for no such check. Default: 0.02, or up to 0.05 if the validation "
    "images are few.",
)
@click.option(
    "--error-rate",
    type=float,
    help="Let the model abstain, so that of each class's images at most about this share is "
    "called only something else. Default: it never abstains.",
)
@click.option(
    "--aggregation", default="max", help="Of a series' slices to a case: max, mean or top-K-mean."
)
@click.option(
    "--sign",
    type=commands.PATH,
    metavar="KEY.pem",
    help="Sign the file with this Ed25519 private key.",
)
@commands.overwrite_option
@commands.quiet_option
@commands.config_option("intended_use")
@commands.version_option
def export(
    run: Path,
    output: Path | None,
    quantize: bool,
    max_drop: float,
    false_refusal_rate: float | None,
    error_rate: float | None,
    aggregation: str,
    sign: Path | None,
    overwrite: bool,
    quiet: bool,
    config: Path | None,
) -> None:
    """Turn a training run into one self-describing ONNX file, and prove what it does.

    RUN is a folder that medtl-train wrote.

    The file holds the network, the recipe for its pixels, classes, operating point, intended use,
    accuracy, provenance and a self-test. It is written only if it computes what torch computes and,
    with --quantize, if int8 is faster on this machine and no worse on the validation set.

    What images the model is for is learned from the headers of the training images. In a --config
    file, a table replaces what was learned of an attribute, and false removes it:

    \b
      [intended_use]
      Rows = false
      [intended_use.PatientAge]
      low = 18             # or high; of codes: values, forbidden
      mismatch = "warn"    # allow, warn or reject (the default)
      missing = "allow"    # allow, warn (the default) or reject

    \b
    Examples:
      medtl-export runs/liver
      medtl-export runs/liver --quantize
      medtl-export runs/liver --quantize --max-drop 0.01 -o models/liver-2.onnx
      medtl-export runs/liver --config export.toml --error-rate 0.1 --sign private.pem
    """
    commands.require_packages(_NEEDED, extra="cpu,export", purpose="medtl-export")
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineMissing
    from medtl_export.intended_use import TABLE
    from medtl_export.settings import Settings
    from medtl_runtime.decision import Aggregation

    # What is wrong here is refused before torch is loaded.
    settings = Settings(
        quantise=quantize,
        max_drop=max_drop,
        false_refusal_rate=false_refusal_rate,
        error_rate=error_rate,
        aggregation=Aggregation.parse(aggregation),
        intended_use=commands.read_config(config).get(TABLE, {}) if config else {},
        sign=sign,
    )
    from medtl_export.run import export as run_export

    exported = run_export(
        run,
        output or Path("models") / f"{run.resolve().name}.onnx",
        settings,
        overwrite=overwrite,
        note=(lambda _: None) if quiet else (lambda text: click.echo(text, err=True)),
    )
    _print(exported)


def _print(exported: "Exported") -> None:
    parity = exported.parity
    click.echo(
        f"parity: max |Δlogit| {parity.largest_difference:.2g} on {parity.images} validation "
        f"images (allowed {parity.tolerance:.2g}), {parity.flips} flips"
    )
    if exported.quantised is not None:
        _print_comparison(exported.quantised)
    _print_decision(exported)
    click.echo(f"model {exported.path} ({exported.bytes / 2**20:.1f} MiB)")


def _print_decision(exported: "Exported") -> None:
    decision = exported.decision
    if (novelty := decision.novelty) is not None:
        click.echo(
            f"novelty: refuses at most about {novelty.false_refusal_rate:.1%} of images like the "
            f"{novelty.images} validation images"
        )
    if (triage := decision.triage) is not None:
        click.echo(
            f"triage: of each class's images, at most about {triage.error_rate:.1%} are called "
            f"only something else ({triage.images} validation images)"
        )
    if decision.novelty or decision.triage:
        click.echo(
            "these rates hold nearly, because the validation images also chose the best epoch; "
            "medtl-infer calibrate fits them to other images"
        )
    rules = exported.intended_use.rules
    click.echo(f"intended use: {', '.join(rule.attribute for rule in rules) or 'no rules'}")


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
    click.echo(
        f"int8 is {latency['speed_up']:.2f} times as fast "
        f"({latency['low']:.2f} to {latency['high']:.2f}), {account['flips']} of "
        f"{account['validation_images']} decisions differ; {account['machine']['cpu']}, "
        f"{account['machine']['engine']}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def main() -> NoReturn:
    """Run the command; the console script's entry."""
    commands.run(export, "medtl-export")


if __name__ == "__main__":
    main()
