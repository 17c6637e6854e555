"""The command ``medtl-infer calibrate``: fit a model's decision to the cases of a site."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from medtl_runtime import commands, devices
from medtl_runtime.errors import ScanError, UsageError


@click.command(epilog=commands.EXIT_CODES, context_settings=commands.SETTINGS)
@click.option(
    "--data",
    type=commands.PATH,
    required=True,
    metavar="LOCAL_CASES",
    help="A folder for each class, or a CSV manifest: path, and label or a column a head.",
)
@click.option("--model", type=commands.PATH, help="Model file. Default: as for medtl-infer.")
@click.option(
    "--criterion",
    help="What thresholds are chosen for: youden (default), sensitivity=0.95, specificity=0.9, "
    "or cost=5:1 (missed case to false alarm), cost=5:1,prevalence=0.1. Two classes.",
)
@click.option(
    "--positive", metavar="CLASS", help="The class to find, of two. Default: the model's own."
)
@click.option(
    "--error-rate",
    type=click.FloatRange(min=0, max=1),
    help="Of triage, for each class, and of the interval of a value. Default: the model's own; "
    "0 for none.",
)
@click.option(
    "--false-refusal-rate",
    type=click.FloatRange(min=0, max=1),
    help="Of refusal as novel. Default: the model's own; 0 for none.",
)
@click.option("--series", is_flag=True, help="Take each DICOM series as one case.")
@click.option("--device", default="auto", help=devices.DEVICE_HELP)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; physical cores by default."
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes that read images; cores by default."
)
@click.option(
    "--output",
    type=commands.PATH,
    metavar="FILE",
    help="Default: MODEL.site.json beside the model.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@commands.overwrite_option
@commands.quiet_option
@commands.config_option()
@commands.version_option
def calibrate(
    data: Path,
    model: Path | None,
    criterion: str | None,
    positive: str | None,
    error_rate: float | None,
    false_refusal_rate: float | None,
    series: bool,
    device: str,
    threads: int | None,
    workers: int | None,
    output: Path | None,
    as_json: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Fit temperature, operating point, triage and novelty cut-offs to local, labelled cases.

    Each head of the model is fitted to the cases that are labelled for it. Writes a site file
    beside the model, which medtl-infer then uses. The network stays what it was.
    Images that cannot be read, or that the model's intended use excludes, are left out and counted.
    The figures after are of the cases that were fitted on: new cases will do a little worse.

    \b
    Examples:
      medtl-infer calibrate --data local/ --model models/liver.onnx
      medtl-infer calibrate --data cases.csv --criterion sensitivity=0.95 --error-rate 0.1
      medtl-infer calibrate --data local/ --series --overwrite
    """
    from medtl_runtime.calibrate_wanted import Asked, require_cases, require_rates, settled
    from medtl_runtime.calibrate_words import account_of, notes_of, table
    from medtl_runtime.files import refuse_existing
    from medtl_runtime.local_cases import find_cases, score_images, score_series
    from medtl_runtime.predictor import Predictor
    from medtl_runtime.refit import measure, refit
    from medtl_runtime.shelf import find_model
    from medtl_runtime.site import site_path, write_site

    if series and workers:
        raise UsageError("--workers is for images; --series reads in one process")
    path = find_model(model)
    target = output or site_path(path)
    _protect_inputs(target, (path, data))
    refuse_existing(target, overwrite=overwrite)
    # The model's own decision, whatever site file there is; and scores for all images.
    predictor = Predictor(path, device=device, threads=threads, site=False, refuse_novel=False)
    heads, own = predictor.description.heads, predictor.decision
    asked = Asked(criterion, positive, error_rate, false_refusal_rate, series)
    wanted = settled(predictor, asked)
    found = find_cases(data, heads)
    # A file may hold many images, and a series be many files.
    require_cases(found.files, heads, least=1)
    gathered = (
        score_series(predictor, found.files, quiet)
        if series
        else score_images(predictor, found.files, quiet, workers)
    )
    cases = gathered.cases
    require_cases(cases, heads, left_out=gathered.left_out)
    require_rates(asked, cases, heads)
    decision = refit(cases, heads, own, wanted)
    measured = {
        "before": measure(cases, heads, own, wanted),
        "after": measure(cases, heads, decision, wanted),
    }
    account = account_of(gathered, heads, wanted, measured)
    digest = str(predictor.model["digest"])
    write_site(
        target,
        model_digest=digest,
        decision=decision,
        unit="series" if series else "image",
        account=account,
        overwrite=overwrite,
    )
    notes = [*notes_of(account, heads, own, decision, wanted)]
    if found.unlabelled:
        notes.append(f"{found.unlabelled} files beside the folders of the classes were not used")
    if as_json:
        document = {"site_file": str(target), "decision": decision.to_json(), "account": account}
        commands.show(json.dumps({**document, "notes": notes}))
    else:
        use = "medtl-infer uses it from now on" if output is None else "use it with --site"
        lines = table(account, heads, own, decision)
        for line in (*lines, f"{target} was written; {use}"):
            commands.show(line)
    for note in () if quiet else notes:
        click.echo(note, err=True)
    if gathered.left_out:
        raise click.exceptions.Exit(ScanError.exit_code)


def _protect_inputs(target: Path, inputs: Sequence[Path]) -> None:
    if any(target.exists() and target.samefile(one) for one in inputs if one.exists()):
        raise UsageError(f"--output {target} is the model, or the data; choose another name")
