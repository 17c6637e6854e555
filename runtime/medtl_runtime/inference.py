"""What ``medtl-infer`` does with scans: one by one, in folders, as series, or as they arrive."""

import gc
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medtl_runtime import commands
from medtl_runtime.errors import OutputExists, OutputNotWritten, ScanError
from medtl_runtime.heads import find_head
from medtl_runtime.outputs import JsonLines, Sink, Table
from medtl_runtime.results import Failure, Outcome

if TYPE_CHECKING:
    from medtl_runtime.companions import Companion
    from medtl_runtime.predictor import Predictor
    from medtl_runtime.scan import Source
    from medtl_runtime.series import Case
    from medtl_runtime.site import Unit

_FEW = 16
"""So many scans are read in this process: starting others would take longer."""

Sourced = tuple[Outcome, Mapping[str, "Source"]]
"""An outcome, and the sources of the scans that it is about, by name."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model and where its outcomes go; the options of ``medtl-infer``."""

    predictor: "Predictor"
    as_json: bool = False
    csv: Path | None = None
    heatmap: Path | None = None
    heatmap_dicom: Path | None = None
    head: str | None = None
    """Whose finding the heat maps show; see `heatmap.shown_head`."""
    sr: Path | None = None
    codes: Path | None = None
    audit: Path | None = None
    audit_key: Path | None = None
    workers: int | None = None
    batch_size: int | None = None
    overwrite: bool = False
    quiet: bool = False
    stays: bool = False
    """Whether it goes on until it is stopped, so that no output may end it."""


def infer(job: Job, scans: Sequence[str]) -> int:
    """Show the outcome of each image; return how many have no score."""
    from medtl_runtime.reading import expand

    sources = list(expand(scans))
    few = len(sources) <= _FEW and job.workers is None and job.batch_size is None
    return _show(job, (_one_by_one if few else _in_parallel)(job, sources), unit="image")


def _one_by_one(job: Job, sources: Sequence["Source | ScanError"]) -> Iterator[Sourced]:
    for source in sources:
        if isinstance(source, ScanError):
            yield Failure(scan=source.source, error=source), {}
            continue
        for outcome in job.predictor.outcomes(source):
            yield outcome, {outcome.scan: source}


def _in_parallel(job: Job, sources: Sequence["Source | ScanError"]) -> Iterator[Sourced]:
    from medtl_runtime.pipeline import run_sources
    from medtl_runtime.progress import Progress

    outcomes = run_sources(job.predictor, sources, workers=job.workers, batch_size=job.batch_size)
    with Progress(len(sources), quiet=job.quiet) as progress:
        for source, outcome in progress.count(outcomes):
            yield outcome, {} if isinstance(source, ScanError) else {outcome.scan: source}


def infer_cases(job: Job, scans: Sequence[str]) -> int:
    """Show the outcome of each series; return how many have no finding."""
    from medtl_runtime.progress import Progress
    from medtl_runtime.reading import expand
    from medtl_runtime.series import Case, group

    opened, failures, sources = [], [], {}
    for source in expand(scans):
        try:
            scan = _opened(source)
        except ScanError as error:
            failures.append(Failure(scan=error.source, error=error))
            continue
        opened.append(scan)
        sources[scan.source] = source

    def outcomes() -> Iterator[Sourced]:
        for failure in failures:
            yield failure, {}
        with Progress(len(cases), quiet=job.quiet) as progress:
            for case in cases:
                if isinstance(case, Case):
                    yield job.predictor.case(_noted(case, failures), keep=drawn), sources
                else:
                    yield Failure(scan=case.source, error=case), {}
                progress.advance()

    cases = group(opened)
    drawn = bool(job.heatmap or job.heatmap_dicom)
    return _show(job, outcomes(), unit="series")


def _noted(case: "Case", failures: Sequence[Failure]) -> "Case":
    """Return the case with a note where a file that cannot be read may have been of it.

    A slice that is missing at an end of a series leaves a shorter one, and no gap.
    """
    unread = sum(
        one.status == "error" and one.error.code != "scan-without-pixels" for one in failures
    )
    if not unread:
        return case
    note = f"{_files(unread)} could not be read; slices may be missing at an end"
    return replace(case, warnings=(*case.warnings, note))


def _opened(source: "Source | ScanError"):
    from medtl_runtime.reading import read_scan

    if isinstance(source, ScanError):
        raise source
    return read_scan(source)


def watch(job: Job, folder: Path) -> None:
    """Show the outcome of each file that arrives in a folder, until SIGINT or SIGTERM.

    Files are read in a process of its own, so that a damaged one cannot end this one.
    """
    from medtl_runtime.pipeline import Readers
    from medtl_runtime.preparation import Prepared
    from medtl_runtime.reading import expand
    from medtl_runtime.watch import arrivals

    predictor = job.predictor

    def outcomes() -> Iterator[Sourced | None]:
        described = predictor.description
        with Readers(1, described.recipe, described.intended_use) as readers:
            for path in arrivals(folder, stop=lambda: stopped.yes):
                for source, one in readers.read_ahead(expand([str(path)])):
                    outcome = predictor.run([one])[0] if isinstance(one, Prepared) else one
                    yield outcome, {} if isinstance(source, ScanError) else {one.scan: source}
                yield None

    with _stop_on_signals() as stopped:
        _show(job, outcomes(), unit="image")


class _Stopped:
    yes = False


@contextmanager
def _stop_on_signals() -> Iterator[_Stopped]:
    """Turn SIGINT and SIGTERM into a flag, so that what is being done is done to the end."""
    stopped = _Stopped()

    def stop(*_: object) -> None:
        stopped.yes = True

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _show(job: Job, outcomes: Iterable[Sourced | None], *, unit: "Unit") -> int:
    """Write every outcome everywhere; return how many have no score, or lack a file.

    None among the outcomes says that the next may be long in coming: nothing waits for it.
    """
    left = iter(outcomes)
    # The first scan is read while the model is loaded, unless it may be long until it comes.
    first = [] if job.stays else list(islice(left, 1))
    _begin(job, unit)
    with ExitStack() as stack:  # no file is begun before it is clear that the model runs
        desk = _Desk(job, stack)
        for one in chain(first, left):
            if one is None:
                desk.flush()
            else:
                desk.take(*one)
        desk.flush()
    return desk.report(quiet=job.quiet)


def _begin(job: Job, unit: "Unit") -> None:
    """Say what runs, once it is loaded."""
    predictor = job.predictor
    predictor.require_unit(unit)
    engine = predictor.engine.name
    gc.enable()  # the command starts without it
    if not job.quiet:
        for note in predictor.notes:
            click.echo(note, err=True)
        click.echo(f"{commands.printable(str(predictor.model['name']))} on {engine}", err=True)


class _Desk:
    """Hands every outcome to all outputs, and counts."""

    def __init__(self, job: Job, stack: ExitStack) -> None:
        self._statuses: Counter[str] = Counter()
        self._unwritten = 0
        self._companions = _companions(job)
        self._sinks = [stack.enter_context(sink) for sink in _sinks(job)]
        self._log = _Audit(job, stack, self._statuses) if job.audit else None

    def take(self, outcome: Outcome, sources: Mapping[str, "Source"]) -> None:
        """Write one outcome."""
        files, failed = _write_files(self._companions, outcome, sources)
        self._unwritten += failed
        self._statuses[outcome.status] += 1
        if self._log is not None:
            self._log.add(outcome)
        for sink in self._sinks:
            sink.add(outcome, files)

    def flush(self) -> None:
        """Write what waited for a further frame."""
        self._unwritten += sum(companion.finish() for companion in self._companions)

    def report(self, *, quiet: bool) -> int:
        """Say on stderr how many have no score, or lack a file; return their number."""
        lost = self._statuses["error"] + self._statuses["refused"]
        if lost and not quiet:
            count = f"{lost} of {self._statuses.total()}"
            click.echo(f"{count} could not be read or were refused", err=True)
        if self._unwritten and not quiet:
            click.echo(f"{_files(self._unwritten)} could not be written", err=True)
        return lost + self._unwritten


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _sinks(job: Job) -> list[Sink]:
    sinks: list[Sink] = [JsonLines() if job.as_json else Table(job.predictor)]
    if job.csv is not None:
        from medtl_runtime.csv_file import CsvFile

        sinks.append(CsvFile(job.csv, job.predictor.description.heads, overwrite=job.overwrite))
    return sinks


def _companions(job: Job) -> list["Companion"]:
    if not (job.heatmap or job.heatmap_dicom or job.sr):
        return []
    from medtl_runtime import companions

    heads = job.predictor.description.heads
    if job.head is not None:
        find_head(heads, job.head)

    def names(folder: Path, suffix: str) -> companions.Names:
        return companions.Names(folder, suffix, overwrite=job.overwrite, number=job.stays)

    wanted: list[Companion] = []
    if job.heatmap:
        wanted.append(companions.HeatMaps(names(job.heatmap, ".png"), job.head))
    if job.heatmap_dicom:
        captures = names(job.heatmap_dicom, ".heatmap.dcm")
        wanted.append(companions.SecondaryCaptures(captures, job.head))
    if job.sr:
        commands.require_packages(("highdicom",), extra="sr", purpose="--sr")
        reports = names(job.sr, ".sr.dcm")
        wanted.append(companions.Reports(reports, heads, job.predictor.decision, job.codes))
    return wanted


def _write_files(
    companions: Sequence["Companion"], outcome: Outcome, sources: Mapping[str, "Source"]
) -> tuple[dict[str, Any], int]:
    """Return what a row says of the files of an outcome, and how many could not be written."""
    files: dict[str, Any] = {}
    failed = 0
    for companion in companions:
        try:
            paths = [str(path) for path in companion.write(outcome, sources)]
        except (ScanError, OutputExists, OutputNotWritten) as error:
            files[companion.kind] = {"reason": error.code, "message": _without_names(error)}
            failed += 1
            continue
        if paths:
            files[companion.kind] = paths[0] if len(paths) == 1 else paths
    return files, failed


def _without_names(error: ScanError | OutputExists | OutputNotWritten) -> str:
    """Return the text of a failure to write; files are named after scans, so it names none."""
    if isinstance(error, ScanError):
        return error.reason
    if isinstance(error, OutputExists):
        return "a file of that name exists; choose another folder or add --overwrite"
    return "the file could not be written"


class _Audit:
    """Writes what is done into the audit log, from the start to the end."""

    def __init__(self, job: Job, stack: ExitStack, statuses: Counter[str]) -> None:
        from medtl_runtime import audit, audit_entries

        assert job.audit is not None
        self._log = stack.enter_context(audit.AuditLog.open(job.audit, job.audit_key))
        self._entries_of = audit_entries.entries_of
        self._run = {"model": job.predictor.model, "engine": job.predictor.engine.name}
        options = {
            one.name: getattr(job, one.name) for one in fields(job) if one.name != "predictor"
        }
        self._log.append(audit_entries.start_entry(**self._run, options=options))
        stack.callback(self._stop, audit_entries.stop_entry, statuses, quiet=job.quiet)

    def _stop(self, entry: Callable, statuses: Counter[str], *, quiet: bool) -> None:
        head = self._log.append(entry(statuses))
        if not quiet:
            click.echo(f"audit head {head}", err=True)

    def add(self, outcome: Outcome) -> None:
        """Append the entries of one outcome."""
        self._log.append(*self._entries_of(outcome, self._log.key, **self._run))
