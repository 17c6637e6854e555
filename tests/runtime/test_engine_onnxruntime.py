"""ONNX Runtime: sessions, plug-ins, and a device that is there or refused."""

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from ctypes.util import find_library
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from medtl_runtime.engines import OnnxRuntimeEngine, Session
from medtl_runtime.engines.cuda import Gpu, find_gpu
from medtl_runtime.engines.onnxruntime import import_onnxruntime, require_computed_there
from medtl_runtime.engines.providers import has_cuda, silent
from medtl_runtime.errors import DeviceUnavailable, ModelUnusable
from medtl_runtime.onnxfile import read_model_file

IMAGES = np.random.default_rng(6).random((3, 1, 32, 32), np.float32)
GPU = find_gpu()
TENSORRT = "TensorrtExecutionProvider" in import_onnxruntime().get_available_providers()
CUDA = isinstance(GPU, Gpu) and has_cuda(import_onnxruntime())


def changed(path: Path, folder: Path, **fields: Any) -> Path:
    """Write a model again with other top-level fields, and return the new file."""
    model = onnx.load(path)
    for name, value in fields.items():
        setattr(model, name, value)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def test_a_session_runs_a_graph_in_memory_or_a_file(tiny_model: Path) -> None:
    session = Session(tiny_model.read_bytes(), threads=1)
    np.testing.assert_array_equal(
        session.run(IMAGES)["logits"], Session(tiny_model, threads=2).run(IMAGES)["logits"]
    )
    inputs, outputs = session.shapes()
    assert inputs == {"image": ["N", 1, 32, 32]}
    assert outputs["logits"] == ["N", 2]
    assert session.input_type() == "tensor(float)"
    assert session.name == f"ONNX Runtime {import_onnxruntime().__version__}, CPU"
    assert session.notes == ()


def test_bytes_that_are_cut_short_do_not_load(tiny_model: Path) -> None:
    data = tiny_model.read_bytes()
    for length in (0, 1, len(data) // 2):
        with pytest.raises(ModelUnusable, match=r"the graph is not .* it may be cut short"):
            Session(data[:length])


def test_a_newer_ir_version_is_named(tiny_model: Path, tmp_path: Path) -> None:
    path = changed(tiny_model, tmp_path, ir_version=99)
    with pytest.raises(ModelUnusable, match=r"IR version 99; ONNX Runtime [\d.]+ reads up to \d+"):
        OnnxRuntimeEngine(read_model_file(path))


def test_a_newer_operator_set_is_named(tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model)
    model.opset_import[0].version = 99
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelUnusable, match=r"operator set 99; ONNX Runtime [\d.]+ has up to \d+"):
        OnnxRuntimeEngine(read_model_file(tmp_path / "m.onnx"))


def test_loading_and_failing_print_nothing(
    tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = Session(tiny_model)
    with pytest.raises(ModelUnusable, match="ONNX Runtime cannot run it"):
        session.run(IMAGES[..., 1:])
    with pytest.raises(ModelUnusable):
        Session(b"text")
    assert capfd.readouterr() == ("", "")


def test_only_the_loading_thread_is_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    with silent():
        sys.stdout.write("dropped")
        other = threading.Thread(target=print, args=("a result",), kwargs={"flush": True})
        other.start()
        other.join()
    sys.stdout.write("after\n")
    assert capsys.readouterr().out == "a result\nafter\n"


def test_no_telemetry_is_kept_or_sent(tiny_model: Path, tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from medtl_runtime.engines import Session\n"
        "Session(Path(sys.argv[1]), threads=1)\n"
        "tasks = '/proc/self/task'\n"
        "print(len(os.listdir(tasks)) if os.path.isdir(tasks) else 1)\n"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    finished = subprocess.run(
        [sys.executable, "-c", program, tiny_model],
        env=kept | home | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(finished.stdout) == 1  # no uploader beside the main thread
    assert list(tmp_path.iterdir()) == []  # and no queue of events


# --- a GPU


@pytest.mark.skipif(isinstance(GPU, Gpu), reason="this machine has an NVIDIA GPU")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_without_a_gpu_its_devices_are_refused(tiny_model: Path, device: str) -> None:
    found = "there is no NVIDIA driver|there is no NVIDIA GPU|the NVIDIA driver does not start"
    with pytest.raises(DeviceUnavailable, match=rf"--device {device}: ({found})"):
        Session(tiny_model, device=device)


@pytest.mark.skipif(not CUDA, reason="no NVIDIA GPU with an ONNX Runtime that has CUDA")
def test_a_gpu_gives_the_logits_of_the_processor(tiny_model: Path) -> None:
    session = Session(tiny_model, device="cuda")
    assert isinstance(GPU, Gpu)
    assert GPU.name in session.name
    expected = Session(tiny_model).run(IMAGES)["logits"]
    np.testing.assert_allclose(session.run(IMAGES)["logits"], expected, atol=1e-4)


@pytest.mark.skipif(not CUDA, reason="no NVIDIA GPU with an ONNX Runtime that has CUDA")
def test_a_broken_model_is_not_blamed_on_the_gpu() -> None:
    with pytest.raises(ModelUnusable, match="it may be cut short"):
        Session(b"text", device="cuda")


@pytest.mark.skipif(CUDA or not isinstance(GPU, Gpu), reason="no GPU, or CUDA for it")
def test_an_onnx_runtime_without_cuda_is_told_from_a_machine_without_gpu(tiny_model: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=r'pip install "medtl\[gpu\]" instead'):
        Session(tiny_model, device="cuda")


@pytest.mark.skipif(not (CUDA and TENSORRT), reason="no NVIDIA GPU, or no TensorRT in this build")
def test_tensorrt_is_taken_or_its_libraries_are_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    if find_library("nvinfer") is None:
        with pytest.raises(DeviceUnavailable, match=r"TensorRT|Tensorrt"):
            Session(tiny_model, device="tensorrt", compiled=tmp_path)
        pytest.skip("no TensorRT libraries")
    session = Session(tiny_model, device="tensorrt", compiled=tmp_path)
    assert "TensorRT on" in session.name
    expected = Session(tiny_model).run(IMAGES)["logits"]
    np.testing.assert_allclose(session.run(IMAGES)["logits"], expected, atol=1e-2)


# --- plug-ins


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no such library"),
        (b"", "ONNX Runtime cannot load it"),
        (b"a text file that poses as a library", "ONNX Runtime cannot load it"),
    ],
)
def test_a_file_that_is_no_library_is_refused_as_a_plug_in(
    tiny_model: Path, tmp_path: Path, content: bytes | None, expected: str
) -> None:
    library = tmp_path / "libprovider.so"
    if content is not None:
        library.write_bytes(content)
    with pytest.raises(DeviceUnavailable) as error:
        Session(tiny_model, device=f"plugin:{library}")
    assert str(error.value).startswith(f"--device plugin:{library}: {expected}")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="the library is one of Linux")
def test_a_library_that_is_no_plug_in_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (real,) = Path(importlib.util.find_spec("_ctypes").origin).parent.glob("_ctypes.*.so")  # pyright: ignore
    shutil.copy(real, tmp_path / "libprovider.so")
    with pytest.raises(DeviceUnavailable, match="ONNX Runtime cannot load it: "):
        Session(tiny_model, device=f"plugin:{tmp_path / 'libprovider.so'}")


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_ep_openvino") is None, reason="no plug-in is installed"
)
def test_a_plug_in_runs_the_model_again_and_again(tiny_model: Path) -> None:
    library = importlib.import_module("onnxruntime_ep_openvino").get_library_path()
    expected = Session(tiny_model).run(IMAGES)["logits"]
    for _ in range(2):  # its library is loaded only once in a process
        session = Session(tiny_model, device=f"plugin:{library}")
        assert "OpenVINO" in session.name
        np.testing.assert_allclose(session.run(IMAGES)["logits"], expected, atol=1e-2)
    with pytest.raises(ModelUnusable, match="it may be cut short"):
        Session(b"text", device=f"plugin:{library}")


def assignment(**counts: int) -> Any:
    """Return a function that answers as a session does: nodes by provider."""
    parts = [
        SimpleNamespace(ep_name=f"{name}ExecutionProvider", get_nodes=lambda n=n: [None] * n)
        for name, n in counts.items()
    ]
    return lambda: parts


def test_a_device_that_computes_nothing_is_refused() -> None:
    expected = "--device plugin:x: NPU computes none of the model's 7 operators"
    with pytest.raises(DeviceUnavailable, match=expected):
        require_computed_there("plugin:x", "NPUExecutionProvider", assignment(CPU=7))


def test_a_device_that_computes_a_part_is_noted() -> None:
    assert require_computed_there("plugin:x", "NPUExecutionProvider", assignment(NPU=7)) == ()
    (note,) = require_computed_there("plugin:x", "NPUExecutionProvider", assignment(CPU=2, NPU=5))
    assert note == "NPU computes 5 of 7 operators, CPU 2"
