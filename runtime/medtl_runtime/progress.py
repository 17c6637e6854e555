"""Progress on stderr: how many of how many, at what rate, and when it will be done."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_SECONDS_BETWEEN_LINES = 10.0

Source = TypeVar("Source")
Outcome = TypeVar("Outcome")


class Progress:
    """Counts scans on stderr: a bar on a terminal, a line now and then in a log.

    Names no scan, because stderr ends up in logs.
    """

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        """Begin; ``total`` is how many scans there are."""
        self._total, self._done = total, 0
        self._started = self._shown = time.perf_counter()
        self._quiet = quiet
        self._bar: RichProgress | None = None
        if not quiet and sys.stderr.isatty():
            self._bar = _bar()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, rate="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self) -> None:
        """Count one scan."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{self._rate():.1f}/s")
        elif not self._quiet and time.perf_counter() - self._shown >= _SECONDS_BETWEEN_LINES:
            self._shown = time.perf_counter()
            left = (self._total - self._done) / self._rate()
            line = f"{self._done} of {self._total} scans, {self._rate():.1f}/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    def count(self, pairs: Iterable[tuple[Source, Outcome]]) -> Iterator[tuple[Source, Outcome]]:
        """Yield pairs, and count each scan once: of several frames, with the first."""
        before = None
        for source, outcome in pairs:
            yield source, outcome
            if source is not before:
                self.advance()
                before = source

    def _rate(self) -> float:
        return self._done / max(time.perf_counter() - self._started, 1e-9)


def _bar() -> "RichProgress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
