"""The command ``medtl-infer calibrate``: fit a model's decision to the cases of a site."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medtl_runtime import commands, devices
from medtl_runtime.errors import ScanError, UsageError

if TYPE_CHECKING:
    from medtl_runtime.decision import Decision
    from medtl_runtime.local_cases import Gathered
    from medtl_runtime.predictor import Predictor
    from medtl_runtime.refit import Measured, Wanted


LEAST_CASES = 10
"""Of each class. With fewer, one case moves sensitivity by more than ten points, and triage at an
error rate of 0.1 cannot exclude the class at all."""

FEW_CASES = 50
"""Of each class; with fewer there is a note."""


@click.command(epilog=commands.EXIT_CODES, context_settings=commands.SETTINGS)
@click.option(
    "--data",
    type=commands.PATH,
    required=True,
    metavar="LOCAL_CASES",
    help="A folder for each class, or a CSV manifest: path, label.",
)
@click.option("--model", type=commands.PATH, help="Model file. Default: as for medtl-infer.")
@click.option(
    "--criterion",
    help="What the threshold is chosen for: youden (default), sensitivity=0.95 or "
    "specificity=0.9. Two classes.",
)
@click.option(
    "--positive", metavar="CLASS", help="The class to find, of two. Default: the model's own."
)
@click.option(
    "--error-rate",
    type=click.FloatRange(min=0, max=1),
    help="Of triage, for each class. Default: the model's own; 0 for none.",
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

    Writes a site file beside the model, which medtl-infer then uses. The network stays what it was.
    Images that cannot be read, or that the model's intended use excludes, are left out and counted.
    The figures after are of the cases that were fitted on: new cases will do a little worse.

    \b
    Examples:
      medtl-infer calibrate --data local/ --model models/liver.onnx
      medtl-infer calibrate --data cases.csv --criterion sensitivity=0.95 --error-rate 0.1
      medtl-infer calibrate --data local/ --series --overwrite
    """
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
    classes, own = predictor.description.classes, predictor.decision
    asked = _Asked(criterion, positive, error_rate, false_refusal_rate, series)
    wanted = _settled(predictor, asked)
    found = find_cases(data, classes)
    # A file may hold many images, and a series be many files.
    _require_cases(Counter(one.label for one in found.files), classes, least=1)
    gathered = (
        score_series(predictor, found.files, quiet)
        if series
        else score_images(predictor, found.files, quiet, workers)
    )
    cases = gathered.cases
    counts = Counter(case.label for case in cases)
    _require_cases(counts, classes, left_out=gathered.left_out)
    _require_rates(asked, counts, classes, sum(len(case.logits) for case in cases))
    decision = refit(cases, classes, own, wanted)
    measured = {
        "before": measure(cases, classes, own, wanted),
        "after": measure(cases, classes, decision, wanted),
    }
    account = _account(gathered, classes, wanted, measured)
    digest = str(predictor.model["digest"])
    write_site(
        target,
        model_digest=digest,
        decision=decision,
        unit="series" if series else "image",
        account=account,
        overwrite=overwrite,
    )
    notes = [*_notes(account, own, decision, wanted)]
    if found.unlabelled:
        notes.append(f"{found.unlabelled} files beside the folders of the classes were not used")
    if as_json:
        document = {"site_file": str(target), "decision": decision.to_json(), "account": account}
        commands.show(json.dumps({**document, "notes": notes}))
    else:
        use = "medtl-infer uses it from now on" if output is None else "use it with --site"
        for line in (*_lines(account, own, decision, measured), f"{target} was written; {use}"):
            commands.show(line)
    for note in () if quiet else notes:
        click.echo(note, err=True)
    if gathered.left_out:
        raise click.exceptions.Exit(ScanError.exit_code)


@dataclass(frozen=True)
class _Asked:
    """The options that say what to fit, as they were given."""

    criterion: str | None
    positive: str | None
    error_rate: float | None
    false_refusal_rate: float | None
    series: bool


def _protect_inputs(target: Path, inputs: Sequence[Path]) -> None:
    if any(target.exists() and target.samefile(one) for one in inputs if one.exists()):
        raise UsageError(f"--output {target} is the model, or the data; choose another name")


def _settled(predictor: "Predictor", asked: _Asked) -> "Wanted":
    """Return what to fit: what was asked for, else what the model does by its own decision."""
    from medtl_runtime.calibration import Criterion
    from medtl_runtime.refit import Wanted

    described, own = predictor.description, predictor.decision
    error_rate, refusal_rate = asked.error_rate, asked.false_refusal_rate
    if error_rate == 1 or refusal_rate == 1:
        raise UsageError("a rate of 1 leaves nothing to find; expected less")
    if refusal_rate and described.embedding_reference is None:
        raise UsageError("--false-refusal-rate: the model file holds nothing to score novelty by")
    if error_rate is None and own.triage is not None:
        error_rate = own.triage.error_rate
    if refusal_rate is None and own.novelty is not None:
        refusal_rate = own.novelty.false_refusal_rate
    return Wanted(
        positive=_positive(described.classes, own, asked),
        criterion=Criterion.parse(asked.criterion or "youden"),
        error_rate=error_rate or None,
        false_refusal_rate=refusal_rate or None,
        aggregation=described.aggregation if asked.series else None,
    )


def _positive(classes: Sequence[str], own: "Decision", asked: _Asked) -> str | None:
    if len(classes) != 2:
        if asked.criterion or asked.positive:
            raise UsageError(
                f"--criterion and --positive are for two classes; the model has {len(classes)}"
            )
        return None
    if asked.positive is not None and asked.positive not in classes:
        raise UsageError(f"--positive is no class; the classes are {', '.join(classes)}")
    positive = asked.positive or own.operating_point.positive
    if asked.criterion and positive is None:
        raise UsageError("--criterion needs --positive: the model does not say which class to find")
    return positive


def _require_cases(
    counts: Mapping[int, int],
    classes: Sequence[str],
    *,
    left_out: Mapping[str, int] | None = None,
    least: int = LEAST_CASES,
) -> None:
    for index, name in enumerate(classes):
        if counts.get(index, 0) < least:
            found = f"{counts.get(index, 0)} of {name}; it takes {LEAST_CASES} cases of each class"
            reasons = f"; left out: {_by_reason(left_out)}" if left_out else ""
            raise UsageError(f"too few to calibrate: {found}{reasons}")


def _by_reason(left_out: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{code} {count}" for code, count in sorted(left_out.items()))
    return f"{sum(left_out.values())} ({reasons})"


def _require_rates(
    asked: _Asked, counts: Mapping[int, int], classes: Sequence[str], images: int
) -> None:
    """Refuse rates that were asked for and that so few cases cannot hold."""
    from medtl_runtime.calibration import require_for_refusals, require_for_triage

    if asked.error_rate:
        require_for_triage(asked.error_rate, counts, classes, unit="cases")
    if asked.false_refusal_rate:
        require_for_refusals(asked.false_refusal_rate, images, unit="images")


def _account(
    gathered: "Gathered",
    classes: Sequence[str],
    wanted: "Wanted",
    measured: "Mapping[str, Measured]",
) -> dict[str, Any]:
    """Return what the site file says of the fit; counts and measures, nothing of a patient."""
    from medtl_runtime.refit import summary

    cases = gathered.cases
    counts = Counter(case.label for case in cases)
    patients = {case.patient for case in cases}
    return {
        "created": datetime.now(UTC).date().isoformat(),
        "cases": {name: counts[index] for index, name in enumerate(classes)},
        "images": sum(len(case.logits) for case in cases),
        "patients": None if "" in patients else len(patients),
        "left_out": dict(sorted(gathered.left_out.items())),
        "criterion": None if wanted.positive is None else str(wanted.criterion),
        **{when: summary(one) for when, one in measured.items()},
    }


def _notes(
    account: Mapping[str, Any], own: "Decision", fitted: "Decision", wanted: "Wanted"
) -> Iterator[str]:
    """Yield what is weak about the fit."""
    for name, count in account["cases"].items():
        if count < FEW_CASES:
            yield f"{count} cases of {name}: with fewer than {FEW_CASES} thresholds are rough"
    total, patients = sum(account["cases"].values()), account["patients"]
    if patients is not None and patients < total:
        found = f"{total} cases are of {patients} patients"
        yield f"{found}: they count as if independent, so the rates hold roughly"
    if wanted.aggregation is not None:
        yield "the temperature stays: the label of a series does not say what each slice shows"
        if fitted.novelty is not None:
            yield "slices of a series are alike, so the rate of refusal as novel holds roughly"
    elif fitted.temperature == own.temperature:
        yield "the temperature stays: with every image called right there is nothing to fit it to"
    if fitted.novelty is not None and fitted.novelty.false_refusal_rate > (
        wanted.false_refusal_rate or 0
    ):
        rate = fitted.novelty.false_refusal_rate
        yield f"so few images hold no lower rate of refusal as novel than {rate:.3g}"
    if fitted.triage is not None and 0 in fitted.triage.thresholds:
        yield "a class has too few cases to exclude it at the error rate: it is in every set"


_MEASURES = {
    "negative_log_likelihood": "negative log-likelihood",
    "brier_score": "Brier score",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "findings": "cases with a finding",
    "wrong_findings": "  of which wrong",
    "abstained": "cases abstained from",
    "refused": "cases refused as novel",
}


def _lines(
    account: Mapping[str, Any],
    own: "Decision",
    fitted: "Decision",
    measured: "Mapping[str, Measured]",
) -> Iterator[str]:
    """Yield the table of before and after, and how to read it."""
    counts = ", ".join(f"{name} {count}" for name, count in account["cases"].items())
    yield f"fitted on {sum(account['cases'].values())} cases ({counts}), {account['images']} images"
    if account["left_out"]:
        yield f"left out: {_by_reason(account['left_out'])}"
    yield ""
    yield f"{'':28}{'before':>10}{'after':>10}"
    settings = [_settings(own), _settings(fitted)]
    for name in settings[0]:
        yield f"{name:28}{_shown(settings[0][name]):>10}{_shown(settings[1][name]):>10}"
    for name, label in _MEASURES.items():
        pair = [getattr(measured[when], name) for when in ("before", "after")]
        yield f"{label:28}{_shown(pair[0]):>10}{_shown(pair[1]):>10}"
    yield ""
    yield 'The figures "after" are of the cases that were fitted on; new cases do a little worse.'


def _settings(decision: "Decision") -> dict[str, float | str | None]:
    point, triage, novelty = decision.operating_point, decision.triage, decision.novelty
    return {
        "temperature": decision.temperature,
        "operating point": point.threshold if point.rule == "threshold" else "argmax",
        "error rate of triage": None if triage is None else triage.error_rate,
        "rate of false refusal": None if novelty is None else novelty.false_refusal_rate,
    }


def _shown(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
