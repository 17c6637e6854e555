"""What a process of `conftest.run_module` runs: a command, as if it had been typed.

It gets ``GIVEN``: module, arguments, cwd, environment, and the files of stdout and stderr.
"""

import os
import runpy
import sys


def run(
    module: str, arguments: list[str], cwd: str, out: str, err: str, environment: dict[str, str]
) -> None:
    """Run a module as ``python -m`` does."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run(**globals()["GIVEN"])
