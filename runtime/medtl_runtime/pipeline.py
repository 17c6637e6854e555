"""Many scans at the speed of the engine: child processes read and prepare, this one runs.

    sources -> [child processes: read, decode, prepare] -> batches -> [engine] -> outcomes, in order

The queues between are bounded, so memory does not grow with the number of scans. Children also keep
a damaged file's harm to themselves: one that crashes or hangs is replaced, and its scan is a
`Failure`.
"""

import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from medtl_runtime.errors import ScanError
from medtl_runtime.intended_use import IntendedUse
from medtl_runtime.isolated import Worker
from medtl_runtime.preparation import Chunk, Prepared
from medtl_runtime.recipe import Recipe
from medtl_runtime.results import Failure, Result

if TYPE_CHECKING:
    from medtl_runtime.predictor import Predictor
    from medtl_runtime.scan import Source

_AHEAD = 4
"""Scans that are read ahead for each worker."""

_MOST_PENDING = 64
"""Frames that wait for a batch, failures between them included."""

_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_TRIALS = 3
_WORTHWHILE = 0.97
"""A larger batch is taken when an image takes at most this share of the time."""


def run_sources(
    predictor: "Predictor",
    sources: "Iterable[Source | ScanError]",
    *,
    workers: int | None = None,
    batch_size: int | None = None,
) -> "Iterator[tuple[Source | ScanError, Result | Failure]]":
    """Yield each source with the outcome of each of its frames, in order.

    Parameters
    ----------
    workers
        Processes that read; by default one for each core that this process may use.
    batch_size
        Images that the engine gets at once; found by measuring if None.

    Raises
    ------
    ModelUnusable
        The engine cannot run the network.
    """
    sizes = BatchSize(batch_size)
    pending: list[tuple[Source | ScanError, Prepared | Failure]] = []
    ready = 0
    described = predictor.description
    with Readers(workers or cores(), described.recipe, described.intended_use) as readers:
        for source, one in readers.read_ahead(sources):
            if isinstance(one, Failure) and not ready:
                yield source, one  # nothing before it waits for a batch
                continue
            pending.append((source, one))
            ready += isinstance(one, Prepared)
            if ready >= sizes.now or len(pending) >= _MOST_PENDING:
                yield from _run(predictor, pending, sizes)
                pending, ready = [], 0
        yield from _run(predictor, pending, sizes)


def _run(
    predictor: "Predictor",
    pending: "Sequence[tuple[Source | ScanError, Prepared | Failure]]",
    sizes: "BatchSize",
) -> "Iterator[tuple[Source | ScanError, Result | Failure]]":
    """Run what is prepared of ``pending`` as one batch and yield all in their order."""
    batch = [one for _, one in pending if isinstance(one, Prepared)]
    started = time.perf_counter()
    results = iter(predictor.run(batch) if batch else ())
    sizes.took(len(batch), time.perf_counter() - started)
    for source, one in pending:
        yield source, one if isinstance(one, Failure) else next(results)


class Readers:
    """Child processes that read and prepare, each driven by a thread of its own."""

    def __init__(self, count: int, recipe: Recipe, intended_use: IntendedUse) -> None:
        self._recipe, self._intended_use = recipe, intended_use
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="medtl-read")
        self._workers = [Worker() for _ in range(count)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def read_ahead(
        self, sources: "Iterable[Source | ScanError]"
    ) -> "Iterator[tuple[Source | ScanError, Prepared | Failure]]":
        """Yield each source with each of its prepared frames, in order."""
        window: deque[tuple[Source | ScanError, Future[Chunk]]] = deque()
        for source in sources:
            window.append((source, self.submit(source)))
            if len(window) >= _AHEAD * len(self._workers):
                yield from self._all_frames(*window.popleft())
        while window:
            yield from self._all_frames(*window.popleft())

    def _all_frames(
        self, source: "Source | ScanError", first: "Future[Chunk]"
    ) -> "Iterator[tuple[Source | ScanError, Prepared | Failure]]":
        chunk = first.result()
        while chunk.next is not None:  # of many frames, the next are read while these run
            following = self.submit(source, chunk.next)
            yield from ((source, one) for one in chunk.items)
            chunk = following.result()
        yield from ((source, one) for one in chunk.items)

    def submit(self, source: "Source | ScanError", first: int = 0) -> "Future[Chunk]":
        """Read and prepare a source's frames from ``first`` on, up to a chunk of them."""
        return self._threads.submit(self._read, source, first)

    def _read(self, source: "Source | ScanError", first: int) -> Chunk:
        if isinstance(source, ScanError):
            return Chunk(items=[Failure(scan=source.source, error=source)], next=None)
        worker = self._idle.get()
        try:
            return worker.call("prepare", source, self._recipe, self._intended_use, first)
        except ScanError as error:
            return Chunk(items=[Failure(scan=str(source), error=error)], next=None)
        finally:
            self._idle.put(worker)


class BatchSize:
    """Finds how many images at once take the least time each, while the work goes on.

    Sizes are tried from small to large, until one is no better than the one before.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._sizes = iter(_BATCH_SIZES)
        self.now = fixed or next(self._sizes)
        """The size to use for the next batch."""
        self._settled = fixed is not None
        self._last = (self.now, math.inf)
        self._trials: list[float] = []

    def took(self, images: int, seconds: float) -> None:
        """Note how long a batch took; ``images`` may be fewer than `now` at the end."""
        if self._settled or images != self.now:
            return
        self._trials.append(seconds / images)
        if len(self._trials) <= _TRIALS:
            return
        each, self._trials = min(self._trials), []
        size, before = self._last
        if each > _WORTHWHILE * before:
            self.now, self._settled = size, True
            return
        self._last = (self.now, each)
        larger = next(self._sizes, None)
        self._settled = larger is None
        self.now = larger or self.now


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
