"""The engine that is chosen is the one that was asked for, or the best that works."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtl_runtime.devices import Device, parse_device
from medtl_runtime.engines import Loaded, load_engine
from medtl_runtime.engines.cuda import Gpu, find_gpu
from medtl_runtime.engines.load import (
    Here,
    candidates,
    first_that_works,
    overlooked,
    self_tested,
    this_machine,
)
from medtl_runtime.errors import (
    DeviceUnavailable,
    EngineMissing,
    ExtraMissing,
    MedtlError,
    ModelUnusable,
    SelfTestFailed,
    UsageError,
)
from medtl_runtime.modelfile import SelfTest
from medtl_runtime.onnxfile import read_model_file
from medtl_runtime.testing import FakeEngine, describe

MakeModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that stands for the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "medtl"


def here(*, ort: bool = True, openvino: bool = False, cuda: bool = False, driver=False) -> Here:
    return Here(
        onnxruntime=lambda: ort,
        openvino=lambda: openvino,
        cuda=lambda: cuda,
        nvidia_driver=lambda: driver,
    )


def names(devices: Sequence[Device]) -> list[str]:
    return [str(device) for device in devices]


# --- what is tried


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (here(), ["cpu"]),
        (here(openvino=True), ["cpu"]),
        (here(cuda=True, openvino=True), ["cuda", "cpu"]),
        (here(ort=False, openvino=True), ["openvino"]),
    ],
)
def test_auto_tries_what_is_there(machine: Here, expected: list[str]) -> None:
    assert names(candidates(parse_device("auto"), machine, "cpu")) == expected


@pytest.mark.parametrize("text", ["cpu", "cuda", "tensorrt", "plugin:x.so", "openvino:GPU"])
def test_a_named_device_is_the_only_one_that_is_tried(text: str) -> None:
    assert names(candidates(parse_device(text), here(cuda=True, openvino=True), "cpu")) == [text]


def test_without_any_engine_the_command_to_install_one_is_told() -> None:
    for text in ("auto", "cpu", "cuda"):
        with pytest.raises(EngineMissing, match=r'pip install "medtl\[cpu\]"'):
            candidates(parse_device(text), here(ort=False), "cpu")


def test_with_openvino_alone_the_other_devices_say_what_they_need() -> None:
    with pytest.raises(ExtraMissing, match=r'--device cpu needs .*onnxruntime.*medtl\[cpu\]"'):
        candidates(parse_device("cpu"), here(ort=False, openvino=True), "cpu")


def test_auto_prefers_openvino_for_a_model_that_was_made_for_it() -> None:
    auto = parse_device("auto")
    both = here(openvino=True, cuda=True)
    assert names(candidates(auto, both, "openvino")) == ["openvino", "cpu"]
    assert names(candidates(parse_device("cpu"), both, "openvino")) == ["cpu"]
    assert names(candidates(auto, here(), "openvino")) == ["cpu"]
    (note,) = overlooked(auto, here(), "openvino")
    assert 'pip install "medtl[openvino]"' in note
    assert overlooked(auto, both, "openvino") == ()


def test_a_gpu_that_auto_cannot_take_is_noted() -> None:
    auto = parse_device("auto")
    (note,) = overlooked(auto, here(driver=True), "cpu")
    assert 'pip install "medtl[gpu]"' in note
    assert overlooked(auto, here(driver=True, cuda=True), "cpu") == ()
    assert overlooked(auto, here(), "cpu") == ()
    assert overlooked(parse_device("cpu"), here(driver=True), "cpu") == ()
    assert overlooked(auto, here(ort=False, openvino=True, driver=True), "cpu") == ()


def test_this_machine_s_engines_are_found() -> None:
    machine = this_machine()
    assert machine.onnxruntime()
    assert machine.openvino() is (importlib.util.find_spec("openvino") is not None)
    assert not machine.cuda() or isinstance(find_gpu(), Gpu)


# --- the first that works


def loading(**failures: MedtlError) -> tuple[list[str], Callable[[Device], Loaded]]:
    """Return a list of what is tried, and a function that fails for some devices."""
    tried: list[str] = []

    def load(device: Device) -> Loaded:
        tried.append(device.kind)
        if device.kind in failures:
            raise failures[device.kind]
        return Loaded(engine=FakeEngine(describe()), notes=(f"on {device}",))

    return tried, load


DEVICES = [parse_device("cuda"), parse_device("cpu")]


def test_nothing_else_is_tried_when_the_first_works() -> None:
    tried, load = loading()
    assert first_that_works(DEVICES, load).notes == ("on cuda",)
    assert tried == ["cuda"]


@pytest.mark.parametrize(
    "failure", [DeviceUnavailable("cuda", "out of order"), SelfTestFailed("cuda differs by 3")]
)
def test_a_device_that_fails_is_passed_over_with_its_reason(failure: MedtlError) -> None:
    tried, load = loading(cuda=failure)
    loaded = first_that_works(DEVICES, load)
    assert tried == ["cuda", "cpu"]
    assert loaded.notes == (f"cuda is not used: {failure}", "on cpu")


def test_the_last_failure_is_the_one_that_is_reported() -> None:
    last = SelfTestFailed("cpu differs by 3")
    _, load = loading(cuda=DeviceUnavailable("cuda", "out of order"), cpu=last)
    with pytest.raises(SelfTestFailed) as error:
        first_that_works(DEVICES, load)
    assert error.value is last


def test_an_unusable_model_is_not_tried_elsewhere() -> None:
    tried, load = loading(cuda=ModelUnusable("m.onnx", "broken"))
    with pytest.raises(ModelUnusable):
        first_that_works(DEVICES, load)
    assert tried == ["cuda"]


class FailingEngine(FakeEngine):
    """An engine whose device breaks down when it runs."""

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:  # noqa: ARG002
        raise ModelUnusable("m.onnx", "the engine cannot run it")


@pytest.mark.parametrize("mode", ["once", "always"])
@pytest.mark.parametrize("name", ["cuda", "tensorrt", "plugin:x.so", "openvino:GPU"])
def test_a_device_that_cannot_run_the_model_is_unavailable(name: str, mode: Any) -> None:
    engine = FailingEngine(describe())
    with pytest.raises(DeviceUnavailable, match=f"--device {name}: .*the engine cannot run it"):
        self_tested(engine, "sha256:ab", parse_device(name), mode)


@pytest.mark.parametrize("name", ["cpu", "openvino", "openvino:CPU"])
def test_a_model_that_the_processor_cannot_run_is_unusable(name: str) -> None:
    engine = FailingEngine(describe())
    with pytest.raises(ModelUnusable, match="the engine cannot run it"):
        self_tested(engine, "sha256:ab", parse_device(name), "once")


def test_auto_goes_on_where_the_device_fails_while_running() -> None:
    def load(device: Device) -> Loaded:
        engine = (FakeEngine if device.is_cpu else FailingEngine)(describe())
        tested = self_tested(engine, "sha256:ab", device, "once")
        return Loaded(engine=engine, self_test=tested)

    loaded = first_that_works(DEVICES, load)
    assert not isinstance(loaded.engine, FailingEngine)
    (note,) = loaded.notes
    assert note.startswith("cuda is not used: ")


# --- for real


def test_a_model_is_loaded_tested_and_runs(tiny_model: Path, cache: Path) -> None:
    loaded = load_engine(read_model_file(tiny_model), device="cpu", threads=1)
    assert loaded.engine.name.endswith(", CPU")
    assert loaded.engine.description.name == "tiny"
    assert loaded.notes == ()
    assert loaded.self_test is not None
    assert loaded.self_test.images == 2
    (marker,) = (cache / "selftest").iterdir()
    assert json.loads(marker.read_text())["tolerance"] == 1e-4


def test_an_engine_that_fails_its_self_test_is_not_used(make_model: MakeModel, cache: Path) -> None:
    wrong = SelfTest(seeds=(1,), logits=((9.0, -9.0),), tolerance=0.1)
    model = read_model_file(make_model(self_test=wrong))
    for device in ("cpu", "auto"):
        with pytest.raises(SelfTestFailed, match=r"CPU differs from the stored logits by \d"):
            load_engine(model, device=device, threads=1)
    assert not cache.exists()
    loaded = load_engine(model, device="cpu", threads=1, self_test="never")
    assert loaded.self_test is None


def test_once_trusts_a_marker_and_always_does_not(make_model: MakeModel, cache: Path) -> None:
    model = read_model_file(make_model())
    load_engine(model, device="cpu", threads=1)
    (marker,) = (cache / "selftest").iterdir()
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"difference": 9e-5}))
    for mode, expected in (("once", 9e-5), ("always", 0)):
        tested = load_engine(model, device="cpu", threads=1, self_test=mode).self_test
        assert tested is not None
        assert tested.difference == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("device", ["openvino:GPU", "openvino:NPU"])
def test_threads_for_a_device_that_has_none_are_a_usage_error(
    tiny_model: Path, device: str
) -> None:
    with pytest.raises(UsageError, match=f"--threads is for processors; --device is {device}"):
        load_engine(read_model_file(tiny_model), device=device, threads=2)


def test_an_unknown_device_is_a_usage_error(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="--device is tpu; expected auto, cpu, cuda"):
        load_engine(read_model_file(tiny_model), device="tpu")


@pytest.mark.skipif(isinstance(find_gpu(), Gpu), reason="this machine has an NVIDIA GPU")
def test_cuda_without_a_gpu_is_refused_and_auto_takes_the_cpu(tiny_model: Path) -> None:
    model = read_model_file(tiny_model)
    with pytest.raises(DeviceUnavailable, match="--device cuda: "):
        load_engine(model, device="cuda")
    assert load_engine(model, device="auto", threads=1).engine.name.endswith(", CPU")


LOADS = """
import sys
for name in {missing}:
    sys.modules[name] = None
from pathlib import Path
from medtl_runtime.engines import load_engine
from medtl_runtime.errors import MedtlError
from medtl_runtime.onnxfile import read_model_file
model = read_model_file(Path(sys.argv[1]))
try:
    print(load_engine(model, device=sys.argv[2], threads=1).engine.name)
except MedtlError as error:
    print(error.code, error)
heavy = ("onnxruntime", "openvino", "torch", "onnx", "pydicom")
print([name for name in heavy if name in sys.modules])
"""


def loaded_without(missing: list[str], model: Path, device: str) -> list[str]:
    """Return what a new interpreter prints that does not find some packages."""
    program = LOADS.format(missing=missing)
    finished = subprocess.run(
        [sys.executable, "-c", program, model, device], capture_output=True, text=True, check=True
    )
    return finished.stdout.splitlines()


def test_without_packages_the_errors_say_what_to_install(tiny_model: Path) -> None:
    found = loaded_without(["onnxruntime", "openvino"], tiny_model, "auto")[0]
    assert found.startswith('engine-missing no engine is installed: pip install "medtl[cpu]"')
    found = loaded_without(["openvino"], tiny_model, "openvino")[0]
    assert found.startswith("extra-missing --device openvino needs the package openvino")
    assert found.endswith('pip install "medtl[openvino]"')


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="no openvino")
def test_auto_takes_openvino_where_it_is_the_only_engine(tiny_model: Path) -> None:
    name, _ = loaded_without(["onnxruntime"], tiny_model, "auto")
    assert name.startswith("OpenVINO ")


def test_only_the_engine_that_runs_is_imported(tiny_model: Path) -> None:
    assert loaded_without([], tiny_model, "cpu")[1] == "['onnxruntime']"
