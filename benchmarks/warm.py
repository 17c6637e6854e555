"""A warm `Predictor` on one CT of 512 x 512, against decoding and session run measured alone.

python benchmarks/warm.py [--rounds 200] [--arch resnet18] [--precision int8]
"""

import argparse
import tempfile
from pathlib import Path

import common
import numpy as np
import pydicom

from medtl_runtime import Predictor


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", nargs="?", help="default: a CT of 512 x 512, made here")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", default="int8", choices=["fp32", "int8"])
    options = parser.parse_args()
    model = common.model_file(options.arch, options.size, options.precision)
    predictor = Predictor(model, device="cpu")
    image = np.random.default_rng(0).random((1, 1, options.size, options.size), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        scan = options.scan or str(common.ct_file(Path(folder)))

        def decode() -> None:
            pydicom.dcmread(scan).pixel_array  # noqa: B018 - decodes

        def run() -> None:
            predictor.engine.run(image)

        def whole() -> None:
            predictor(scan)

        steps = (decode, run, whole)
        for step in steps * 5:
            step()
        rounds = [[common.timed(step) for step in steps] for _ in range(options.rounds)]
    decoding, running, all_of_it = (list(column) for column in zip(*rounds, strict=True))
    alone = [a + b for a, b in zip(decoding, running, strict=True)]
    print(common.machine())
    print(f"{model.stem}, {options.rounds} rounds in turns, lower quartiles, ms")
    print(f"decode alone      {common.spread(decoding)}")
    print(f"session run alone {common.spread(running)}")
    print(f"Predictor         {common.spread(all_of_it)}")
    print(f"Predictor / (decode + run) {common.compare(alone, all_of_it)}")


if __name__ == "__main__":
    main()
