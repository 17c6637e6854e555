"""What the image cache saves: reading data without it, the first start with it, and the second.

Each is a process of its own, timed from the first look at the data to the finished splits. The
operating system has the files in memory already, so the figures are those of decoding.

    python benchmarks/cache.py DATA [DATA...] [--size 224]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common


def prepare(data: Path, size: int, cache: str) -> tuple[float, float, float, int]:
    """Read, clean and split data.

    Return seconds, seconds of processors (those of child processes, too), the peak of memory in
    MiB, and the number of images.
    """
    from medtl_train.config import DataConfig, ImageConfig
    from medtl_train.data.dataset import build_dataset
    from medtl_train.data.recipes import decide_recipe
    from medtl_train.data.samples import find_samples

    config = DataConfig(cache=cache)
    started, before = time.perf_counter(), processor_seconds()
    found = find_samples(data, config)
    recipe = decide_recipe(found.samples, ImageConfig(size=size))
    dataset = build_dataset(found, recipe, config, seed=0)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    busy = processor_seconds() - before
    return seconds, busy, peak, sum(map(len, dataset.images.values()))


def processor_seconds() -> float:
    """Return what this process and its children that have ended have computed."""
    of = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in of)


def alone(data: Path, size: int, cache: str) -> tuple[float, float, float, int]:
    """`prepare` in a process of its own."""
    command = [sys.executable, __file__, str(data), "--size", str(size), "--cache", cache]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, busy, peak, images = done.stdout.split()
    return float(seconds), float(busy), float(peak), int(images)


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--cache", help="measure once, with this cache, and print the figures")
    options = parser.parse_args()
    if options.cache:
        print(*prepare(options.data[0], options.size, options.cache))
        return
    print(common.machine())
    print(f"{'data':20} cache  {'seconds':>8} {'CPU s':>7} {'peak MiB':>9} images {'disk MiB':>9}")
    for data in options.data:
        alone(data, options.size, "none")  # brings the files into memory
        with tempfile.TemporaryDirectory() as folder:
            for name, cache in (("none", "none"), ("first", folder), ("second", folder)):
                seconds, busy, peak, images = alone(data, options.size, cache)
                disk = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 2**20
                print(
                    f"{data.name:20} {name:6} {seconds:8.2f} {busy:7.2f} {peak:9.0f} {images:6} "
                    f"{disk:9.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
