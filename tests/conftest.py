"""Commands as a user types them."""

import multiprocessing
import os
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_module(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return what runs ``python -m MODULE ARGUMENTS`` in a folder, and what it printed.

    Each is a process of its own. It is forked from one that has imported torch and its like
    already, which takes seconds otherwise, and nothing of medtl.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(
        ["torch", "torchvision", "sklearn.metrics", "matplotlib.figure", "onnx", "onnxscript"]
    )
    target = str(Path(__file__).with_name("in_process.py"))
    folder = tmp_path_factory.mktemp("module")

    def run(module: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        out, err = folder / "out", folder / "err"
        words = list(map(str, arguments))
        given = {
            "module": module, "arguments": words, "cwd": str(cwd),
            "out": str(out), "err": str(err), "environment": dict(os.environ),
        }  # fmt: skip
        process = forks.Process(target=runpy.run_path, args=(target, {"GIVEN": given}, "__main__"))
        process.start()
        process.join(300)
        assert process.exitcode is not None, f"{module} {words} has not ended in 5 minutes"
        return subprocess.CompletedProcess(
            [module, *words],
            process.exitcode,
            out.read_text(encoding="utf-8"),
            err.read_text(encoding="utf-8"),
        )

    return run
