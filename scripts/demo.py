"""The main job from end to end on phantom data: what `make demo` runs.

Writes phantom CT studies, trains on a source organ, trains on a target organ with few patients
from that run and from scratch, exports the better start quantised, and runs it on unseen files.
The commands are those that a user types, and they are printed as such.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Container
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

OUT = Path("demo-output")
BIN = Path(sys.executable).parent.absolute()

# A small network input and few epochs, so that two CPU cores finish in a few minutes. Patience 0:
# every run gets its whole budget.
COMMON = "--size 64 --patience 0 --out runs --quiet"
SOURCE = "--window lung --weights none --epochs 12 --lr 1e-3"
# The liver shown as dark as the lung is, so that lesions look alike.
TARGET = "--window 160,160 --epochs 12 --batch-size 8"

SOME_REFUSED = 3
"""Exit code: the novelty check refuses a scan now and then, which is an answer, too."""
SHOWN = ("auroc", "balanced_accuracy", "recall", "specificity")


def main() -> None:
    """Run the demo in ``demo-output``, from an empty folder."""
    started = time.perf_counter()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    step("Phantom studies: a source organ with many patients, a target organ with few")
    phantoms("data/lung --organ lung --patients 160 --images 5 --seed 1")
    phantoms("data/liver/train --organ liver --patients 10 --images 4 --seed 2")
    phantoms("data/liver/val --organ liver --patients 30 --images 3 --seed 3")
    phantoms("data/liver/test --organ liver --patients 60 --images 3 --seed 4")
    phantoms("data/unseen --organ liver --patients 6 --images 1 --seed 5")
    step("Train on the source organ")
    run(f"medtl-train data/lung {SOURCE} {COMMON}")
    step("Train on the target organ: from the source run, and from scratch with the same budget")
    run(f"medtl-train data/liver --from runs/lung --name liver-transfer {TARGET} {COMMON}")
    run(f"medtl-train data/liver --weights none --name liver-scratch {TARGET} {COMMON}")
    step(
        "What the transfer brought: test set of the target organ, 95 % patient-bootstrap intervals"
    )
    print_comparison({"from scratch": "liver-scratch", "from runs/lung": "liver-transfer"})
    step("Export, quantised")
    run("medtl-export runs/liver-transfer --quiet --quantize --max-drop 0.02")
    step("Infer unseen scans")
    run("medtl-infer data/unseen --heatmap heatmaps", accepted={0, SOME_REFUSED})
    print(f"report  {OUT / 'runs/liver-transfer/report.html'}")
    print(f"model   {OUT / 'models/liver-transfer.onnx'}")
    print(f"heatmaps {OUT / 'heatmaps'}")
    print(f"demo finished in {time.perf_counter() - started:.0f} s")


def step(text: str) -> None:
    """Announce the next part."""
    print(f"\n== {text}", flush=True)


def phantoms(arguments: str) -> None:
    """Write phantom studies."""
    run(f"python -m medtl_train.phantoms {arguments}")


def run(command: str, accepted: Container[int] = (0,)) -> None:
    """Print a command and run it in the demo's folder; the demo stops where it fails."""
    print(f"$ {command}", flush=True)
    program, *arguments = shlex.split(command)
    finished = subprocess.run([BIN / program, *arguments], cwd=OUT, check=False)
    if finished.returncode not in accepted:
        sys.exit(finished.returncode)


def print_comparison(runs: dict[str, str]) -> None:
    """Print the test metrics of runs side by side."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("test metric")
    for title in runs:
        table.add_column(title, justify="right")
    found = {
        title: json.loads((OUT / "runs" / name / "metrics.json").read_text(encoding="utf-8"))
        for title, name in runs.items()
    }
    for metric in SHOWN:
        heads = [head for summary in found.values() for head in summary["test"]["heads"].values()]
        cells = [cell(head["metrics"][metric]) for head in heads]
        table.add_row(metric.replace("_", " "), *cells)
    Console().print(table)


def cell(metric: dict[str, float]) -> str:
    """Return a metric with its interval."""
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


if __name__ == "__main__":
    main()
