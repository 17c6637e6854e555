"""What decoding costs, by transfer syntax, and whether threads or processes do it side by side.

A projection image of 2048 x 2048 and 12 bits is written in each syntax that can be encoded here;
then one thread, all threads and all processes decode it.

    python benchmarks/decoding.py [--side 2048] [FILE...]
"""

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
import pydicom
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medtl_runtime.pipeline import cores
from medtl_runtime.reading import read_scan

_CORES = cores()


def decode(path: str) -> int:
    """Read and decode the first frame of a file, as the runtime does."""
    return next(read_scan(path).frames()).values.size


def projection(folder: Path, side: int, syntax: UID) -> Path:
    """Write a radiograph-like image and return its path."""
    path = common.ct_file(folder, size=side)
    dataset = pydicom.dcmread(path)
    smooth = np.add.outer(np.linspace(0, 1500, side), np.linspace(0, 1500, side))
    noise = np.random.default_rng(0).normal(0, 15, (side, side))
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.PixelData = (smooth + noise).clip(0, 4095).astype(np.uint16).tobytes()
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax)
    path = folder / f"{syntax.name.split(' ')[0].replace('/', '-')}-{side}.dcm"
    dataset.save_as(path)
    return path


def rate(pool: Executor, path: str, count: int) -> float:
    """Return images a second."""
    return count / common.timed(lambda: list(pool.map(decode, [path] * count)))


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--count", type=int, default=16)
    options = parser.parse_args()
    syntaxes = (ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless)
    print(common.machine())
    print(
        f"{'file':44} {'one, ms':>8} {'threads':>8} {'processes':>9}   (speed-up, {_CORES} cores)"
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(_CORES) as threads,
        ProcessPoolExecutor(_CORES) as processes,
    ):
        files = options.files or [projection(Path(folder), options.side, one) for one in syntaxes]
        for file in map(str, files):
            for pool in (threads, processes):
                rate(pool, file, 2 * _CORES)
            alone = min(common.timed(_one(file)) for _ in range(5))
            speed_ups = [rate(pool, file, options.count) * alone for pool in (threads, processes)]
            name = Path(file).name
            print(f"{name[:44]:44} {1000 * alone:8.1f} {speed_ups[0]:8.2f} {speed_ups[1]:9.2f}")


def _one(file: str) -> Callable[[], int]:
    return lambda: decode(file)


if __name__ == "__main__":
    main()
