"""The command ``medtl-export``: parse, run, print."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from medtl_export.settings import METRICS, TARGETS
from medtl_models.architectures import ARCHITECTURES
from medtl_runtime import commands
from medtl_runtime.errors import EngineMissing, UsageError

if TYPE_CHECKING:
    from medtl_export.run import Exported
    from medtl_export.settings import Quantising

_NEEDED = (
    "torch",
    "torchvision",
    "sklearn",
    "matplotlib",
    "jinja2",
    "onnx",
    "onnxscript",
    "cyclonedx",
)


@click.command(epilog=commands.EXIT_CODES, context_settings=commands.SETTINGS)
@click.argument("run", type=commands.PATH, metavar="RUN")
@click.option(
    "--output", "-o", type=commands.PATH, help="The file to write. Default: models/NAME.onnx."
)
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    default="cpu",
    help="What the file is for: cpu is a processor like this one, cpu-avx2 an x86 without VNNI.",
)
@click.option(
    "--quantize",
    is_flag=True,
    help="Look for the fastest quantised network that is no worse; float where there is none.",
)
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    default="auroc",
    help="What must not drop on the validation set, by no head; sensitivity is at the operating "
    "point. Of a regression it is R².",
)
@click.option(
    "--max-drop",
    metavar="SHARE|none",
    default="0.005",
    help="Accepted loss, by the lower bound of the difference's 95 % interval; none: any.",
)
@click.option(
    "--calibration-images", type=click.IntRange(min=1), default=300, help="Of the training split."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1, help="Images that are timed together."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="For the times. Default: physical cores."
)
@click.option(
    "--qat",
    is_flag=True,
    help="Fine-tune with rounded weights where no int8 network is accurate enough.",
)
@click.option(
    "--distil",
    type=click.Choice(tuple(ARCHITECTURES)),
    metavar="ARCH",
    help="Train a smaller network on the run's outputs, and export it instead.",
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
    "called only something else. Default: it never abstains. Of a regression, how often its "
    "interval may miss. Default: 0.1.",
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
    target: str,
    quantize: bool,
    distil: str | None,
    false_refusal_rate: float | None,
    error_rate: float | None,
    aggregation: str,
    sign: Path | None,
    overwrite: bool,
    quiet: bool,
    config: Path | None,
    **quantising: Any,
) -> None:
    """Turn a training run into one self-describing ONNX file, and prove what it does.

    RUN is a folder that medtl-train wrote.

    The file holds the network, the recipe for its pixels, classes, operating point, intended use,
    accuracy, provenance and a self-test. It is written only if it computes what torch computes.
    With --quantize, candidates are timed against the float network on the target's engine, and
    compared with it on the validation set; the file holds the fastest that is no worse, which may
    be the float network. Beside it come a report, a model card and a bill of materials.

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
      medtl-export runs/liver --quantize --target openvino
      medtl-export runs/liver --quantize --distil mobilenet_v3_small
      medtl-export runs/liver --config export.toml --error-rate 0.1 --sign private.pem
    """
    commands.require_packages(_NEEDED, extra="cpu,export", purpose="medtl-export")
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineMissing
    from medtl_export.intended_use import TABLE
    from medtl_export.settings import Settings
    from medtl_runtime.aggregation import Aggregation

    # What is wrong here is refused before torch is loaded.
    settings = Settings(
        target=target,
        quantise=_quantising(quantize, quantising),
        distil=distil,
        false_refusal_rate=false_refusal_rate,
        error_rate=error_rate,
        aggregation=Aggregation.parse(aggregation),
        intended_use=commands.read_config(config).get(TABLE, {}) if config else {},
        sign=sign,
    )
    from medtl_export.run import export as run_export
    from medtl_train.console import Reporter

    exported = run_export(
        run,
        output or Path("models") / f"{run.resolve().name}.onnx",
        settings,
        overwrite=overwrite,
        note=(lambda _: None) if quiet else (lambda text: click.echo(text, err=True)),
        reporter=Reporter(quiet=quiet),
    )
    _print(exported)


def _quantising(wanted: bool, options: dict[str, Any]) -> "Quantising | None":
    """Return how to quantise; an option that has no effect without --quantize is an error."""
    from medtl_export.settings import Quantising, parse_max_drop

    context = click.get_current_context()
    given = [
        f"--{name.replace('_', '-')}"
        for name in options
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if given and not wanted:
        have = "has" if len(given) == 1 else "have"
        raise UsageError(f"{', '.join(sorted(given))} {have} no effect without --quantize")
    if not wanted:
        return None
    return Quantising(**{**options, "max_drop": parse_max_drop(options["max_drop"])})


def _print(exported: "Exported") -> None:
    parity = exported.parity
    click.echo(
        f"parity: max |Δlogit| {parity.largest_difference:.2g} on {parity.images} validation "
        f"images (allowed {parity.tolerance:.2g}), {parity.flips} flips"
    )
    if exported.account is not None:
        _print_comparison(exported.precision, exported.account)
    _print_decision(exported)
    click.echo(f"model {exported.path} ({exported.precision}, {exported.bytes / 2**20:.1f} MiB)")
    for path in exported.documents:
        click.echo(f"      {path}")


def _print_decision(exported: "Exported") -> None:
    decision = exported.decision
    triages = [own.triage for own in decision.heads if own.triage is not None]
    if (novelty := decision.novelty) is not None:
        click.echo(
            f"novelty: refuses at most about {novelty.false_refusal_rate:.1%} of images like the "
            f"{novelty.images} validation images"
        )
    if triages:
        fewest = min(triage.images for triage in triages)
        click.echo(
            f"triage: of each class's images, at most about {triages[0].error_rate:.1%} are called "
            f"only something else ({fewest} validation images)"
        )
    for head, own in zip(exported.heads, decision.heads, strict=True):
        if (margin := own.interval) is not None:
            click.echo(
                f"{head.name}: plus or minus {margin.half_width:.4g} {head.unit}".rstrip()
                + f" holds about {margin.coverage:.1%} ({margin.images} validation images)"
            )
    if decision.novelty or any(own.triage or own.interval for own in decision.heads):
        click.echo(
            "these rates hold nearly, because the validation images also chose the best epoch; "
            "medtl-infer calibrate fits them to other images"
        )
    rules = exported.intended_use.rules
    click.echo(f"intended use: {', '.join(rule.attribute for rule in rules) or 'no rules'}")


def _print_comparison(precision: str, account: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("validation", "float", precision):
        table.add_column(column, justify="left" if column == "validation" else "right")
    before, after = account["accuracy"]["fp32"], account["accuracy"]["chosen"]
    for head, figures in before.items():
        whose = f"{head}: " if len(before) > 1 else ""
        for name, value in figures.items():
            label = f"{whose}{name.replace('_', ' ')}"
            table.add_row(label, _number(value), _number(after[head][name]))
    Console(soft_wrap=True).print(table)
    if precision == "fp32":
        click.echo(f"not quantised: {account['reason']}")
        return
    if (difference := account["difference"]) is not None:
        click.echo(
            f"{_compared(account)} {difference['value']:+.4f} "
            f"({difference['low']:+.4f} to {difference['high']:+.4f}), {account['flips']} of "
            f"{account['validation_images']} decisions differ"
        )
    machine = f"{account['machine']['cpu']}, {account['machine']['engine']}"
    if (latency := account["latency"]) is None:
        click.echo(f"speed not measured: {account['not_measured']}")
        return
    click.echo(
        f"{precision} is {latency['speed_up']:.2f} times as fast ({latency['low']:.2f} to "
        f"{latency['high']:.2f}), {latency['reference_ms']:.2f} to {latency['candidate_ms']:.2f} "
        f"ms; {machine}"
    )


def _compared(account: dict[str, Any]) -> str:
    """Return the metric that decided, and of several heads the one that loses most."""
    before, head = account["accuracy"]["fp32"], account["head"]
    metric = "R²" if "r2" in before[head] else account["metric"].replace("_", " ")
    return metric if len(before) == 1 else f"{head}, which loses most: {metric}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def main() -> NoReturn:
    """Run the command; the console script's entry."""
    commands.run(export, "medtl-export")


if __name__ == "__main__":
    main()
