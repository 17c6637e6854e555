"""Files that are written for an image: heat maps as PNG and DICOM, structured reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Protocol

from medtl_runtime.errors import OutputNotWritten, ScanError
from medtl_runtime.files import refuse_existing
from medtl_runtime.results import CaseResult, Failure, Outcome, Result, without_pixels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medtl_runtime.decision import Decision
    from medtl_runtime.heads import Head
    from medtl_runtime.scan import Source

Sources = Mapping[str, "Source"]
"""The sources of the scans that an outcome is about, by name."""


class Companion(Protocol):
    """Writes files for outcomes."""

    kind: str
    """Under which results name the file, such as ``heatmap``."""

    def write(self, outcome: Outcome, sources: Sources) -> list[Path]:
        """Write the files of one outcome and return their paths; none for a failure.

        Raises
        ------
        ScanError
            There can be no such file for this scan.
        OutputExists, OutputNotWritten, ExtraMissing
            As their names say.
        """
        ...

    def finish(self) -> int:
        """Write what waited for a scan's last frame; return how many could not be, since last."""
        ...


class Names:
    """Gives each image a file name of its own in one folder."""

    def __init__(self, folder: Path, suffix: str, *, overwrite: bool, number: bool = False) -> None:
        """Begin with no names taken.

        Parameters
        ----------
        overwrite
            Files of earlier runs may be replaced.
        number
            Where a file of an earlier run has the name and may not be replaced, take another name.
        """
        self._folder, self._suffix = folder, suffix
        self._overwrite, self._number = overwrite, number and not overwrite
        self._taken: set[str] = set()

    def take(self, scan: str, frame: int | None = None) -> Path:
        """Return a path for an image that no other image of this run has.

        Raises
        ------
        OutputExists
            An earlier run wrote it.
        """
        stem = PurePath(scan.rpartition("#")[2]).name.removesuffix(".dcm") or "scan"
        if frame:
            stem += f"-frame{frame}"
        number, unique = 1, stem
        while unique in self._taken or (self._number and self._path(unique).exists()):
            number += 1
            unique = f"{stem}-{number}"
        # A name that is refused is not taken: the next frame of the scan is refused like this one.
        refuse_existing(self._path(unique), overwrite=self._overwrite)
        self._taken.add(unique)
        return self._path(unique)

    def _path(self, stem: str) -> Path:
        return self._folder / f"{stem}{self._suffix}"


def _images(outcome: Outcome) -> list[Result]:
    if isinstance(outcome, CaseResult):
        return outcome.scored
    return [] if isinstance(outcome, Failure) else [outcome]


class HeatMaps:
    """A PNG overlay of the evidence for each finding."""

    kind = "heatmap"

    def __init__(self, names: Names, head: str | None = None) -> None:
        """Begin; ``head`` is whose finding, see `heatmap.shown_head`."""
        self._names, self._head = names, head

    def write(self, outcome: Outcome, sources: Sources) -> list[Path]:  # noqa: ARG002
        """Write a picture for each image; see `Companion.write`."""
        from medtl_runtime.heatmap import write_heatmap

        return [
            write_heatmap(one, self._names.take(one.scan, one.frame), self._head)
            for one in _images(outcome)
        ]

    def finish(self) -> int:
        """Nothing waits."""
        return 0


class SecondaryCaptures:
    """A DICOM Secondary Capture of the evidence for each finding."""

    kind = "secondary_capture"

    def __init__(self, names: Names, head: str | None = None) -> None:
        """Begin; ``head`` is whose finding, see `heatmap.shown_head`."""
        self._names, self._head = names, head

    def write(self, outcome: Outcome, sources: Sources) -> list[Path]:
        """Write an object for each image; see `Companion.write`."""
        return [self._write(one, _header(one, sources)) for one in _images(outcome)]

    def _write(self, result: Result, header: "Dataset") -> Path:
        from medtl_runtime.secondary_capture import write_secondary_capture

        path = self._names.take(result.scan, result.frame)
        return write_secondary_capture(result, header, path, head=self._head, overwrite=True)

    def finish(self) -> int:
        """Nothing waits."""
        return 0


class Reports:
    """A DICOM structured report of each scan, or of each series."""

    kind = "sr"

    def __init__(
        self,
        names: Names,
        heads: Sequence["Head"],
        decision: "Decision",
        codes: Path | None,
    ) -> None:
        from medtl_runtime.codes import Codes, read_codes

        self._names, self._decision = names, decision
        self._codes = read_codes(codes, heads) if codes else Codes()
        self._frames: list[Result] = []
        self._headers: list[Dataset] = []
        self._path = Path()
        self._lost = 0

    def write(self, outcome: Outcome, sources: Sources) -> list[Path]:
        """Write the report of a series; that of a scan waits for its last frame."""
        if isinstance(outcome, CaseResult):
            self._finish_scan()
            headers = [_header(one, sources) for one in _first_of_each_scan(outcome.scored)]
            path = self._names.take(outcome.scan)
            self._write(outcome, headers, path)
            return [path]
        if isinstance(outcome, Failure):
            return []
        if not self._frames or self._frames[0].scan != outcome.scan:
            self._finish_scan()
            self._headers = [_header(outcome, sources)]
            self._path = self._names.take(outcome.scan)
        self._frames.append(without_pixels(outcome))
        return [self._path]

    def finish(self) -> int:
        """Write the report of the scan whose frames have been seen; see `Companion.finish`."""
        self._finish_scan()
        lost, self._lost = self._lost, 0
        return lost

    def _finish_scan(self) -> None:
        frames, self._frames = self._frames, []
        if frames:
            try:
                self._write(frames, self._headers, self._path)
            except (ScanError, OutputNotWritten):  # the rows that name it have been shown
                self._lost += 1

    def _write(
        self, outcome: CaseResult | Sequence[Result], headers: "list[Dataset]", path: Path
    ) -> None:
        from medtl_runtime.structured_report import write_sr

        write_sr(outcome, headers, self._codes, self._decision, path, overwrite=True)


def _first_of_each_scan(results: Sequence[Result]) -> list[Result]:
    return list({one.scan: one for one in reversed(results)}.values())


def _header(result: Result, sources: Sources) -> "Dataset":
    """Return the DICOM header of the scan of a result, read again.

    Raises
    ------
    ScanUnfit
        The scan is no DICOM object, or lacks an identifier that a new one has to refer to.
    """
    from medtl_runtime.derived import source_of
    from medtl_runtime.reading import read_header

    if not result.header.is_dicom:
        source_of(result, {})  # says so
    header = read_header(sources[result.scan])
    return source_of(result, {str(header.get("SOPInstanceUID") or ""): header})
