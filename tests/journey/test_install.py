"""The wheel, installed as at a scanner: no torch, and everything that medtl-infer needs."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from medtl_runtime.modelfile import METADATA_KEY

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, arguments)), cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder)
    done = run(sys.executable, "-m", "pip", "wheel", *options, ROOT, cwd=folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def scanner(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a fresh environment with the wheel and its `cpu` extra."""
    folder = tmp_path_factory.mktemp("scanner")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    done = run(python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]", cwd=folder)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no package registry is reachable")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_holds_the_four_packages_and_the_report_template(wheel: Path) -> None:
    listing = run(sys.executable, "-m", "zipfile", "-l", wheel, cwd=wheel.parent).stdout
    for file in (
        "medtl_runtime/cli.py",
        "medtl_models/network.py",
        "medtl_train/templates/report.html.j2",
        "medtl_export/run.py",
        "medtl_runtime/py.typed",
    ):
        assert file in listing
    assert "tests/" not in listing


def test_no_torch_is_installed_and_inference_works(scanner: Path, tmp_path: Path) -> None:
    python = scanner / "env" / "bin" / "python"
    assert run(python, "-c", "import torch", cwd=scanner).returncode != 0
    model = tiny_model(tmp_path)
    script = f"""
import json, sys
from pydicom.data import get_testdata_file
import medtl_runtime
result = medtl_runtime.Predictor({str(model)!r})(get_testdata_file("CT_small.dcm"))
heavy = [name for name in ("torch", "onnx", "sklearn", "scipy") if name in sys.modules]
print(json.dumps({{"finding": result.finding, "heavy": heavy}}))
"""
    done = run(python, "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["finding"] in ("dark", "bright")
    assert found["heavy"] == []


def test_the_command_runs_a_dicom_file(scanner: Path, tmp_path: Path) -> None:
    python, model = scanner / "env" / "bin" / "python", tiny_model(tmp_path)
    locate = "from pydicom.data import get_testdata_file as f; print(f('CT_small.dcm'))"
    scan = run(python, "-c", locate, cwd=tmp_path).stdout.strip()
    command = scanner / "env" / "bin" / "medtl-infer"
    done = run(command, scan, "--model", model, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "ok"


@pytest.mark.parametrize("command", ["medtl-train", "medtl-export"])
def test_the_other_commands_say_what_to_install(scanner: Path, command: str) -> None:
    program = scanner / "env" / "bin" / command
    assert run(program, "--help", cwd=scanner).returncode == 0
    done = run(program, "data", cwd=scanner)
    assert done.returncode == 2
    assert 'pip install "medtl[cpu,' in done.stderr
    assert "Traceback" not in done.stderr


def tiny_model(folder: Path) -> Path:
    """Write a model file that calls an image bright or dark by its mean."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from medtl_runtime.decision import plain_decision
    from medtl_runtime.heads import Head
    from medtl_runtime.modelfile import Description, SelfTest
    from medtl_runtime.recipe import FixedWindow, Recipe

    weight = np.array([[[[-1.0]]], [[[1.0]]]], np.float32)
    bias = np.array([0.5, -0.5], np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["cam"]),
        helper.make_node("ReduceMean", ["cam", "axes"], ["logits"], keepdims=0),
        helper.make_node("ReduceMean", ["image", "axes"], ["embedding"], keepdims=0),
    ]
    values = {"w": weight, "b": bias, "axes": np.array([2, 3], np.int64)}
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 32, 32])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["N", 2, 32, 32]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 1]),
        ],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    heads = (Head(name="label", classes=("dark", "bright")),)
    description = Description(
        name="brightness",
        version="1",
        heads=heads,
        decision=plain_decision(heads),
        recipe=Recipe(size=(32, 32), channels=1, window=FixedWindow(centre=0, width=2000)),
        self_test=SelfTest(seeds=(1,), logits=((0.0, 0.0),), tolerance=1.0),
        provenance={},
        requires={},
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: description.to_json()})
    onnx.save(model, folder / "brightness.onnx")
    return folder / "brightness.onnx"
