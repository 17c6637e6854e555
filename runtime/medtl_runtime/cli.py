"""The command ``medtl-infer``: parse, run, print."""

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from medtl_runtime import commands, devices
from medtl_runtime.errors import ScanError, UsageError

if TYPE_CHECKING:
    from medtl_runtime.predictor import Predictor

# Commands within the command, each a module of its own.
SUBCOMMANDS = {
    "calibrate": "medtl_runtime.calibrate_cli",
    "verify": "medtl_runtime.verify_cli",
}


@click.command(epilog=commands.EXIT_CODES, context_settings=commands.SETTINGS)
@click.argument("scans", nargs=-1, metavar="SCAN...")
@click.option(
    "--model",
    type=commands.PATH,
    help="Model file. Default: $MEDTL_MODEL, else the only model in ./models, "
    "else the only one in the user's data folder.",
)
@click.option("--device", default="auto", help=devices.DEVICE_HELP)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; physical cores by default."
)
@click.option("--series", is_flag=True, help="Take each DICOM series as one case.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an image, one line each.")
@click.option("--csv", type=commands.PATH, metavar="FILE", help="Write a CSV file, a row an image.")
@click.option(
    "--heatmap",
    type=commands.PATH,
    metavar="DIR",
    help="Write a PNG overlay of each finding there.",
)
@click.option(
    "--heatmap-dicom",
    type=commands.PATH,
    metavar="DIR",
    help="Write it as a DICOM Secondary Capture.",
)
@click.option(
    "--head",
    metavar="NAME",
    help="Of several heads, whose finding heat maps show. Default: the first with one to show.",
)
@click.option(
    "--sr",
    type=commands.PATH,
    metavar="DIR",
    help="Write a DICOM structured report a scan (medtl[sr]).",
)
@click.option(
    "--codes",
    type=commands.PATH,
    metavar="FILE.toml",
    help="Codes of the classes in structured reports.",
)
@click.option(
    "--watch",
    type=commands.PATH,
    metavar="DIR",
    help="Stay, and handle files as they arrive; JSON lines.",
)
@click.option(
    "--audit",
    type=commands.PATH,
    metavar="FILE",
    help="Append to a hash-chained log without patient data.",
)
@click.option(
    "--audit-key",
    type=commands.PATH,
    metavar="FILE",
    help="Key of the hashes in it. Default: FILE.key beside the log.",
)
@click.option(
    "--site",
    type=commands.PATH,
    metavar="FILE",
    help="Site file. Default: MODEL.site.json, if it is there.",
)
@click.option("--no-site", is_flag=True, help="Ignore the site file.")
@click.option(
    "--require-signature",
    type=commands.PATH,
    metavar="KEY.pem",
    help="Refuse a model that this key has not signed.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes that read folders; cores by default."
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1, max=1024),
    help="Images at once; measured by default.",
)
@click.option("--info", is_flag=True, help="Show what the model says of itself.")
@click.option("--selftest", is_flag=True, help="Check that this machine reproduces stored logits.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of --json and exit.")
@commands.overwrite_option
@commands.quiet_option
@commands.config_option()
@commands.version_option
def infer(
    scans: tuple[str, ...],
    model: Path | None,
    device: str,
    threads: int | None,
    series: bool,
    as_json: bool,
    csv: Path | None,
    heatmap: Path | None,
    heatmap_dicom: Path | None,
    head: str | None,
    sr: Path | None,
    codes: Path | None,
    watch: Path | None,
    audit: Path | None,
    audit_key: Path | None,
    site: Path | None,
    no_site: bool,
    require_signature: Path | None,
    workers: int | None,
    batch_size: int | None,
    info: bool,
    selftest: bool,
    schema: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Run a medtl model on medical images: DICOM, PNG, JPEG or NPY.

    SCAN is a file, a folder, a glob, a zip archive, a DICOMDIR, or - for standard input.
    Results go to stdout, notes to stderr. One bad file does not stop the rest. Where the model has
    no business, it says so: `refused` and the reason in place of a score.

    \b
    Examples:
      medtl-infer scan.dcm
      medtl-infer study/ "archive/**/*.dcm" cd.zip --model models/liver.onnx
      medtl-infer study/ --json > findings.jsonl
      medtl-infer study/ --series --sr reports/
      medtl-infer scan.dcm --heatmap overlays/
      medtl-infer --watch incoming/ --audit audit.jsonl
      medtl-infer --selftest

    \b
    Further commands:
      medtl-infer calibrate   fit thresholds to local, labelled cases
      medtl-infer verify      check an audit log
    """
    if schema:
        _show_schema()
        return
    _check_usage(_given(click.get_current_context()))
    devices.parse_device(device)  # a misspelt one is an error before anything is done
    from medtl_runtime import inference
    from medtl_runtime.predictor import Predictor

    predictor = Predictor(
        model,
        device=device,
        threads=threads,
        site=False if no_site else site,
        require_signature=require_signature,
        background=bool(scans) and not (info or selftest),
    )
    if info:
        _show_info(predictor, as_json)
    if selftest:
        _run_selftest(predictor, as_json)
    job = inference.Job(
        predictor=predictor,
        as_json=as_json or watch is not None,
        csv=csv,
        heatmap=heatmap,
        heatmap_dicom=heatmap_dicom,
        head=head,
        sr=sr,
        codes=codes,
        audit=audit,
        audit_key=audit_key,
        workers=workers,
        batch_size=batch_size,
        overwrite=overwrite,
        quiet=quiet,
        stays=watch is not None,
    )
    if watch:
        inference.watch(job, watch)
    elif scans:
        failed = inference.infer_cases(job, scans) if series else inference.infer(job, scans)
        if failed:
            raise click.exceptions.Exit(ScanError.exit_code)


def main() -> NoReturn:
    """Run the command; the console script's entry."""
    commands.run_within(SUBCOMMANDS, "medtl-infer")
    _start_fast()
    commands.run(infer, "medtl-infer")


_SCAN = "a scan"
_TASKS = (_SCAN, "--watch", "--info", "--selftest")
_SCANS = (_SCAN, "--watch")
_FILES = ("--heatmap", "--heatmap-dicom", "--sr", "--csv")

_NEEDED = {
    "--series": (_SCAN,),
    **dict.fromkeys((*_FILES, "--audit"), _SCANS),
    "--workers": (_SCAN,),
    "--batch-size": (_SCAN,),
    "--head": ("--heatmap", "--heatmap-dicom"),
    "--codes": ("--sr",),
    "--audit-key": ("--audit",),
    "--overwrite": _FILES,
}
"""What an option needs: one of these."""

_EXCLUDED = {
    "--watch": (_SCAN, "--series", "--csv", "--workers", "--batch-size"),
    "--series": ("--workers", "--batch-size"),
    "--site": ("--no-site",),
}
"""With what an option does not go."""


def _start_fast() -> None:
    """Leave out of the start what a short run does not need; it is a tenth of the time."""
    if "pydicom" in sys.modules:  # too late: another program calls this one
        return
    # Imports make many objects and no garbage. `inference` turns it on again.
    gc.disable()
    # gdcm decodes in child processes only; pydicom would load it here, whatever the scan is.
    sys.modules["gdcm"] = None  # pyright: ignore[reportArgumentType]


def _given(context: click.Context) -> dict[str, Any]:
    """Return the options of a call by their names, and the scans."""
    names = {one.name: _SCAN if one.name == "scans" else one.opts[0] for one in infer.params}
    return {names[name]: value for name, value in context.params.items() if value}


def _check_usage(given: dict[str, Any]) -> None:
    """Raise for options that could not be honoured together."""
    if not given.keys() & _TASKS:
        raise UsageError(
            f"nothing to do: name {', '.join(_TASKS[:-1])} or {_TASKS[-1]}; see --help"
        )
    for option, excluded in _EXCLUDED.items():
        for other in excluded:
            if option in given and other in given:
                raise UsageError(f"{option} and {other} do not go together; give one of them")
    for option, needed in _NEEDED.items():
        if option in given and not given.keys() & needed:
            raise UsageError(f"{option} needs {' or '.join(needed)}")
    if "--watch" in given:
        _check_watched(given)


def _check_watched(given: dict[str, Any]) -> None:
    """Raise for an output inside the watched folder, which would arrive there as a scan."""
    folder = given["--watch"].resolve()
    for option in (*_FILES, "--audit", "--audit-key"):
        if option in given and given[option].resolve().is_relative_to(folder):
            raise UsageError(f"{option} is inside the folder of --watch; choose another place")


def _show_schema() -> None:
    from importlib.resources import files

    text = files("medtl_runtime").joinpath("result.schema.json").read_text(encoding="utf-8")
    commands.show(text.rstrip("\n"))


def _show_info(predictor: "Predictor", as_json: bool) -> None:
    document = _info(predictor)
    if as_json:
        commands.show(json.dumps(document, ensure_ascii=False))
        return
    described = predictor.description
    document["self_test"] = (
        f"{len(described.self_test.seeds)} images, tolerance {described.self_test.tolerance:g}"
    )
    document["intended_use"] = [str(rule) for rule in described.intended_use.rules]
    if described.embedding_reference is not None:
        document["embedding_reference"] = str(described.embedding_reference)
    for line in _outline(_by_head(document)):
        commands.show(commands.printable(line))


def _info(predictor: "Predictor") -> dict[str, Any]:
    """Return what the model file says of itself, with the decision that is in force."""
    files = {
        "digest": predictor.model["digest"],
        "site_file": predictor.model["site"],
        "signed_by": predictor.signed_by,
    }
    document = json.loads(predictor.description.to_json())
    return {**files, **document, "decision": predictor.decision.to_json()}


def _by_head(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with each head's decision beside it, for people to read."""
    decision = document["decision"]
    heads = {
        head["name"]: {name: head[name] for name in head if name != "name"} | own
        for head, own in zip(document["heads"], decision["heads"], strict=True)
    }
    rest = {name: document[name] for name in document if name not in ("heads", "decision")}
    return {**rest, "heads": heads, "novelty": decision["novelty"]}


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
    from medtl_runtime.selftest import cache_folder, checked_again

    digest = str(predictor.model["digest"])
    result = checked_again(predictor.engine, digest, cache_folder() / "selftest")
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
