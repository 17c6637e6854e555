"""A folder of files: the pipeline against its two parts alone.

Measures, in turns, (a) all cores decoding and doing nothing else, (b) the engine alone at its best
batch size, and (c) `pipeline.run_sources`. Where reading and running share the same cores, as on a
machine without a GPU, no pipeline can be faster than both after each other on all cores,
1 / (1/a + 1/b); that bound is printed too. Memory of this process and its children is sampled.

    python benchmarks/throughput.py [--files 1000] [--repeat 1] [--arch resnet18] [--compressed]
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import common
import numpy as np
import pydicom

from medtl_runtime import Predictor
from medtl_runtime.pipeline import cores, run_sources
from medtl_runtime.reading import expand

_BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def decode(paths: Sequence[str]) -> int:
    """Decode files; runs in a child process."""
    return sum(pydicom.dcmread(path).pixel_array.size > 0 for path in paths)


def decoding_rate(pool: ProcessPoolExecutor, paths: list[str]) -> float:
    """Return files a second when all cores decode."""
    share = -(-len(paths) // cores())
    parts = [paths[i : i + share] for i in range(0, len(paths), share)]
    started = time.perf_counter()
    done = sum(pool.map(decode, parts))
    return done / (time.perf_counter() - started)


def engine_rate(predictor: Predictor, count: int) -> tuple[float, int]:
    """Return images a second at the best batch size, and that size."""
    recipe = predictor.description.recipe
    best = (0.0, 1)
    for size in _BATCH_SIZES:
        batch = np.random.default_rng(0).random((size, recipe.channels, *recipe.size), np.float32)
        predictor.engine.run(batch)
        runs = max(3, min(count, 128) // size)
        seconds = common.timed(lambda b=batch, n=runs: [predictor.engine.run(b) for _ in range(n)])
        best = max(best, (runs * size / seconds, size))
    return best


class Memory:
    """The largest resident memory of this process and its children, sampled five times a second."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.samples.append(sum(map(_resident, _family())) / 2**20)

    def stop(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()


def _family() -> list[int]:
    children = Path("/proc/self/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [int(Path("/proc/self").resolve().name), *pids]


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=1, help="go through the files so many times")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", default="int8", choices=["fp32", "int8"])
    parser.add_argument("--pixels", type=int, default=512, help="side of the images")
    parser.add_argument("--compressed", action="store_true", help="JPEG 2000 lossless")
    options = parser.parse_args()
    model = common.model_file(options.arch, options.size, options.precision)
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(cores()) as pool:
        for index in range(options.files):
            common.ct_file(
                Path(folder), size=options.pixels, seed=index, compressed=options.compressed
            )
        paths = sorted(str(path) for path in Path(folder).iterdir())
        decoding_rate(pool, paths[: 4 * cores()])  # starts the children
        predictor = Predictor(model, device="cpu")
        rows = []
        for number in range(options.rounds):
            a = decoding_rate(pool, paths)
            b, batch = engine_rate(predictor, options.files)
            memory = Memory()
            sources = [source for _ in range(options.repeat) for source in expand([folder])]
            started = time.perf_counter()
            done = sum(1 for _ in run_sources(predictor, sources))
            c = done / (time.perf_counter() - started)
            memory.stop()
            rows.append((a, b, c))
            half = len(memory.samples) // 2
            common.on_terminal(
                f"round {number + 1}: decoding {a:.0f}/s, engine {b:.0f}/s (batch {batch}), "
                f"pipeline {c:.0f}/s = {c / min(a, b):.2f} of the slower, "
                f"{c / (1 / (1 / a + 1 / b)):.2f} of what shared cores allow; peak memory, MiB: "
                f"{max(memory.samples[:half], default=0):.0f} in the first half, "
                f"{max(memory.samples[half:], default=0):.0f} in the second"
            )
    print(common.machine())
    print(f"{model.stem}, {options.files} x {options.repeat} files of {options.pixels} squared")
    a, b, c = np.median(rows, axis=0)
    print(f"(a) decoding alone  {a:8.0f} files/s")
    print(f"(b) engine alone    {b:8.0f} images/s")
    print(f"(c) pipeline        {c:8.0f} files/s")
    print(f"(c) / slower of (a) and (b)      {c / min(a, b):.2f}")
    print(f"(c) / both on the same cores     {c * (1 / a + 1 / b):.2f}")


if __name__ == "__main__":
    main()
