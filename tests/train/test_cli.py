"""The command as a user types it: help, options, exit codes, Ctrl-C."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from medtl_train.config import TrainConfig
from medtl_train.folders import OUTPUTS
from medtl_train.options import flat, to_toml
from medtl_train.scoring.metrics import NAMES

Run = Callable[..., subprocess.CompletedProcess[str]]

QUICK = [
    "--arch", "squeezenet1_1", "--weights", "none", "--size", "32", "--batch-size", "16",
    "--epochs", "1", "--lr", "1e-3", "--device", "cpu", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def medtl_train(run_module: Run) -> Run:
    """Return what runs the command with arguments, in a folder."""
    return partial(run_module, "medtl_train.cli")


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    """Require exit code 2, one line on stderr, and nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line


@pytest.fixture(scope="module")
def typed(
    lung: Path, tmp_path_factory: pytest.TempPathFactory, medtl_train: Run
) -> tuple[Path, str, str]:
    """Return the folder in which the command was run, its stdout and its stderr."""
    folder = tmp_path_factory.mktemp("work")
    done = medtl_train(lung, *QUICK, "--window", "lung", "--hflip", "--no-augment", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


def test_help_names_every_option_with_examples_and_without_torch() -> None:
    check = (
        "import sys\n"
        "sys.argv = ['medtl-train', '--help']\n"
        "from medtl_train.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "loaded = {'torch', 'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(code or (f'loaded: {loaded}' if loaded else 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "medtl-train data/liver --from runs/lung --window liver --epochs 20" in lines
    assert "Exit codes:" in done.stdout
    for name in flat(TrainConfig()):
        option = "--from" if name == "from_run" else f"--{name.replace('_', '-')}"
        assert re.search(rf"{option}\b", done.stdout), option


def test_a_run_prints_results_to_stdout_and_progress_to_stderr(
    typed: tuple[Path, str, str],
) -> None:
    folder, out, err = typed
    run = folder / "runs" / "lung"
    assert {path.name for path in run.iterdir()} == set(OUTPUTS)
    assert re.search(r"^ *auroc +\d\.\d{3} \(\d\.\d{3} to \d\.\d{3}\)", out, re.MULTILINE)
    assert f"report {Path('runs/lung/report.html')}" in out
    assert "medtl-export runs/lung --quantize" in out
    assert "epoch   1 all" in err
    assert "epoch" not in out


def test_stdout_shows_the_figures_of_metrics_json(typed: tuple[Path, str, str]) -> None:
    folder, out, _ = typed
    summary = json.loads((folder / "runs" / "lung" / "metrics.json").read_text(encoding="utf-8"))
    found = summary["test"]["heads"]["label"]["metrics"]
    assert set(NAMES) <= set(found)
    for name in NAMES:
        metric = found[name]
        row = next(x for x in out.splitlines() if x.strip().startswith(name.replace("_", " ")))
        assert row.rstrip().endswith(
            f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"
        )


def test_an_existing_run_of_the_name_of_the_data_is_refused(
    lung: Path, tmp_path: Path, medtl_train: Run
) -> None:
    (tmp_path / "liver.v2").symlink_to(lung)  # the name is the one that was typed
    (tmp_path / "runs" / "liver.v2").mkdir(parents=True)
    (tmp_path / "runs" / "liver.v2" / "best.pt").write_bytes(b"mine")
    done = medtl_train("liver.v2", *QUICK, cwd=tmp_path)
    refused(done, r"runs/liver\.v2 exists; .* --overwrite")
    assert (tmp_path / "runs" / "liver.v2" / "best.pt").read_bytes() == b"mine"


def test_a_written_configuration_runs_again_and_an_option_wins(
    typed: tuple[Path, str, str], lung: Path, tmp_path: Path, medtl_train: Run
) -> None:
    folder, _, _ = typed
    written = folder / "runs" / "lung" / "config.toml"
    more = ["--config", written, "--device", "cpu", "--threads", "1", "--quiet"]
    done = medtl_train(lung, *more, "--name", "same", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet
    assert (tmp_path / "runs" / "same" / "config.toml").read_text() == written.read_text()

    # From inside the folder of the data, which gives the run its name.
    changes = ["--seed", "3", "--augment", "--out", tmp_path / "elsewhere"]
    done = medtl_train(".", *more, *changes, cwd=lung)
    assert done.returncode == 0, done.stderr
    changed = (tmp_path / "elsewhere" / "lung" / "config.toml").read_text().splitlines()
    before = written.read_text().splitlines()
    assert [line for line in changed if line not in before] == ["seed = 3", "augment = true"]
    assert sorted(path.name for path in lung.iterdir()) == ["healthy", "lesion"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epocs = 3\n", "there is no option --epocs"),
        ("[training]\nepochs = 3\n", "there is no option --training"),
        ("epochs = \n", "is not TOML"),
    ],
)
def test_a_configuration_with_mistakes_is_refused(
    content: str, message: str, lung: Path, tmp_path: Path, medtl_train: Run
) -> None:
    (tmp_path / "c.toml").write_text(content)
    refused(medtl_train(lung, "--config", "c.toml", cwd=tmp_path), rf"c\.toml.*{message}")


def test_a_configuration_that_is_not_there_is_refused(
    lung: Path, tmp_path: Path, medtl_train: Run
) -> None:
    refused(medtl_train(lung, "--config", "no.toml", cwd=tmp_path), r"no\.toml: No such file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs is 0; expected 1 or more"),
        (["--arch", "resnet101"], "--arch is resnet101; expected resnet18, resnet34"),
        (["--from", "runs/a", "--weights", "none"], "give one"),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused_by_its_option(
    arguments: list[str], message: str, lung: Path, tmp_path: Path, medtl_train: Run
) -> None:
    refused(medtl_train(lung, *arguments, cwd=tmp_path), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["--epoch", "3"], ["--epochs", "three"], ["--optimizer", "lion"], ["--threads", "0"], []],
)
def test_a_wrong_option_is_a_matter_of_usage(
    arguments: list[str], lung: Path, tmp_path: Path, medtl_train: Run
) -> None:
    data = [lung] if arguments else []
    done = medtl_train(*data, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: medtl-train" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_data_is_one_line_and_exit_code_two(tmp_path: Path, medtl_train: Run) -> None:
    refused(medtl_train("nowhere", *QUICK, cwd=tmp_path), "^error: nowhere: no such folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["torch", "sklearn", "polars"])
def test_a_missing_extra_says_what_to_install(package: str, lung: Path, tmp_path: Path) -> None:
    hide = (
        "import sys\n"
        "real = list(sys.meta_path)\n"
        "class Hiding:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}:\n"
        "            return None\n"
        "        specs = (finder.find_spec(name, path, target) for finder in real)\n"
        "        return next((spec for spec in specs if spec is not None), None)\n"
        "sys.meta_path[:] = [Hiding]\n"
        f"sys.argv = ['medtl-train', {str(lung)!r}]\n"
        "from medtl_train.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    refused(done, rf'needs the package {package}, .*pip install "medtl\[cpu,train\]"')


def metrics_of(run: Path) -> dict:
    summary = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    del summary["training"]["seconds"]
    return summary


def test_ctrl_c_keeps_the_last_checkpoint_and_resume_reaches_the_same_result(
    lung: Path, tiny: Callable[..., TrainConfig], tmp_path: Path, medtl_train: Run
) -> None:
    config = tiny(epochs=8, window="lung", l2_sp=1e-3, patience=0)
    (tmp_path / "c.toml").write_text(to_toml(config), encoding="utf-8")
    common = [lung, "--config", "c.toml", "--device", "cpu", "--threads", "1"]
    through = medtl_train(*common, "--out", "through", "--quiet", cwd=tmp_path)
    assert through.returncode == 0, through.stderr

    command = [sys.executable, "-m", "medtl_train.cli", *map(str, common), "--out", "stopped"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch   2"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    last = rest.splitlines()[-1]
    assert re.fullmatch(
        r"error: interrupted after epoch \d+; the same command with --resume goes on from "
        r"stopped/lung/last\.pt",
        last,
    )
    assert "Traceback" not in rest
    assert not (tmp_path / "stopped" / "lung" / "metrics.json").exists()

    resumed = medtl_train(*common, "--out", "stopped", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"resuming after epoch \d+", resumed.stderr)
    assert metrics_of(tmp_path / "stopped" / "lung") == metrics_of(tmp_path / "through" / "lung")
