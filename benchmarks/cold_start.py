"""Cold start: `medtl-infer scan.dcm --json` against a bare script that does the same.

The bare script imports numpy, onnxruntime and pydicom, reads the file and runs the model, one after
the other. Both are started in turns, in new processes; wall time and peak memory are compared.

    python benchmarks/cold_start.py [--rounds 20] [--arch resnet18] [--precision int8] [SCAN]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

BARE = """
import sys
import numpy as np
import onnxruntime
import pydicom

dataset = pydicom.dcmread(sys.argv[1])
values = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
image = np.clip((values.astype(np.float32) + 160) / 400, 0, 1)
step = max(1, min(image.shape) // int(sys.argv[3]))
size = int(sys.argv[3])
image = image[::step, ::step][:size, :size]
image = np.pad(image, [(0, size - image.shape[0]), (0, size - image.shape[1])])
session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
print(session.run(["logits"], {"image": image[None, None].astype(np.float32)})[0].tolist())
"""


def measure(command: list[str]) -> tuple[float, float]:
    """Return wall seconds and peak resident memory in MiB of a command."""
    started = time.perf_counter()
    child = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},  # as medtl-infer sets it
    )
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - started
    if status:
        sys.exit(f"{command} failed:\n{errors.decode()}")
    return wall, usage.ru_maxrss / 1024


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", nargs="?", help="default: a CT of 512 x 512, made here")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", default="int8", choices=["fp32", "int8"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scan = options.scan or str(common.ct_file(Path(folder)))
        model = common.model_file(options.arch, options.size, options.precision)
        bare = [sys.executable, "-c", BARE, scan, str(model), str(options.size)]
        infer = Path(sys.executable).parent / "medtl-infer"
        medtl = [str(infer), scan, "--json", "--quiet", "--model", str(model), "--device", "cpu"]
        for command in (bare, medtl):  # byte code, file cache, and the self-test's mark
            measure(command)
        pairs = [(measure(bare), measure(medtl)) for _ in range(options.rounds)]
    wall = common.compare([a[0] for a, _ in pairs], [b[0] for _, b in pairs])
    memory = common.compare([a[1] for a, _ in pairs], [b[1] for _, b in pairs])
    print(common.machine())
    print(f"{model.stem}, {options.rounds} rounds in turns, lower quartiles")
    print("              bare script  medtl-infer  ratio")
    print(f"wall, ms      {1000 * wall.first:11.0f}  {1000 * wall.second:11.0f}  {wall}")
    print(f"memory, MiB   {memory.first:11.0f}  {memory.second:11.0f}  {memory}")


if __name__ == "__main__":
    main()
