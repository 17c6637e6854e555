"""Reads many images at once, in child processes where there are many.

A child that crashes or hangs on a damaged file costs this file and not the run; see
`medtl_runtime.isolated`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

from medtl_runtime.errors import ScanError, ScanUnreadable
from medtl_runtime.isolated import Worker
from medtl_runtime.pipeline import cores
from medtl_runtime.reading import read_scan
from medtl_runtime.recipe import Recipe
from medtl_train.data.decoding import Chunk, Decoded, decode_chunk, decode_scan, joined
from medtl_train.data.samples import Sample

WORTH_PROCESSES = 256
"""Of fewer files, threads are done before child processes have started."""

_AHEAD = 4
"""Files that are read ahead for each reader, so that memory does not grow with their number."""

_TASK = "medtl_train.data.decoding:decode_chunk"

_Read = Callable[[str, Recipe, int], Chunk]


def read_samples(
    samples: Sequence[Sample], recipe: Recipe, *, readers: int | None = None
) -> Iterator[Decoded | ScanError]:
    """Yield what each sample holds, or why it cannot be used, in order.

    Parameters
    ----------
    readers
        Samples that are read at once; by default one for each core that this process may use.
    """
    count = readers or cores()
    with _reading(len(samples), count) as read, ThreadPoolExecutor(count) as threads:
        window: deque[Future[Decoded | ScanError]] = deque()
        try:
            for sample in samples:
                window.append(threads.submit(_decode, sample, recipe, read))
                if len(window) >= _AHEAD * count:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _decode(sample: Sample, recipe: Recipe, read: _Read) -> Decoded | ScanError:
    try:
        array = sample.array()
        if array is not None:
            return decode_scan(read_scan(array, name=sample.source), recipe)
        chunk = read(sample.source, recipe, 0)
        parts = [chunk.decoded]
        while chunk.next is not None:
            chunk = read(sample.source, recipe, chunk.next)
            parts.append(chunk.decoded)
        return joined(parts)
    except ScanError as error:
        return error


@contextmanager
def _reading(samples: int, count: int) -> Iterator[_Read]:
    """Yield what reads a chunk of a file: this process, or the next idle one of its children."""
    if samples < WORTH_PROCESSES:
        yield decode_chunk
        return
    workers = [Worker() for _ in range(count)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def read(source: str, recipe: Recipe, first: int) -> Chunk:
        worker = idle.get()
        try:
            return worker.call(_TASK, source, recipe, first)
        except ScanError:
            raise  # one of them is a RuntimeError, too
        except RuntimeError as cause:  # out of memory, or a mistake of ours: it costs one file
            raise ScanUnreadable(source, f"the reader failed: {cause}") from cause
        finally:
            idle.put(worker)

    try:
        yield read
    finally:
        for worker in workers:
            worker.close()
