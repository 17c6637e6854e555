"""Progress and notes on stderr; stdout is for results."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter:
    """Tells a person what is going on; a quiet one tells nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def tracker(self, label: str, total: int) -> Callable[[Iterable], Iterator]:
        """Return a wrapper for an iterable that shows a bar with rate and time left."""

        def track(items: Iterable) -> Iterator:
            with self._bar() as bar:
                task = bar.add_task(label, total=total)
                for item in items:
                    bar.advance(task)
                    yield item

        return track

    @contextmanager
    def fitting(self, steps: int, monitor: str) -> Iterator[tuple[Callable[[], None], Any]]:
        """Yield callbacks for steps and epochs, with a bar over all steps and a line an epoch."""
        with self._bar() as bar:
            task = bar.add_task("training", total=steps)

            def on_epoch(row: dict) -> None:
                value = row["monitored"]
                bar.console.print(
                    f"epoch {row['epoch']:3d} {row['phase']:4s}  train loss {row['train_loss']:.4f}"
                    f"  val loss {row['val_loss']:.4f}  val {monitor} {value:.4f}"
                    f"  {row['seconds']:.1f} s",
                    markup=False,
                )

            yield lambda: bar.advance(task), on_epoch

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
