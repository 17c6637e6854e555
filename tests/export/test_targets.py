"""Each target's rules, on machines of all kinds."""

import platform
import sys

import numpy as np
import onnx
import pytest

from medtl_export import settings, targets
from medtl_export.qdq import Format
from medtl_export.targets import TARGETS, find_target, not_measured, open_session
from medtl_runtime.engines import Session
from medtl_runtime.engines.load import Here
from medtl_runtime.errors import ExtraMissing


def machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    kind: str = "x86_64",
    vnni: bool = True,
    cuda: bool = False,
    openvino: bool = True,
) -> None:
    """Pretend to be another machine."""
    monkeypatch.setattr(platform, "machine", lambda: kind)
    monkeypatch.setattr(targets, "may_saturate", lambda: not vnni and kind in ("x86_64", "AMD64"))
    here = Here(
        onnxruntime=lambda: True,
        openvino=lambda: openvino,
        cuda=lambda: cuda,
        nvidia_driver=lambda: cuda,
    )
    monkeypatch.setattr(targets, "this_machine", lambda: here)


def test_targets_are_those_of_the_settings_under_their_own_names() -> None:
    assert tuple(TARGETS) == settings.TARGETS
    assert all(name == target.name for name, target in TARGETS.items())


@pytest.mark.parametrize("name", ["cpu", "cpu-avx2", "openvino"])
def test_activations_are_uint8_where_x86_computes(name: str) -> None:
    form = TARGETS[name].form
    assert form is not None
    assert not form.signed
    assert form.exact_pairs is (name == "cpu-avx2")


def test_activations_are_int8_on_arm_and_for_tensorrt() -> None:
    assert TARGETS["arm"].form == Format(signed=True)
    form = TARGETS["tensorrt"].form
    assert form == Format(signed=True, symmetric=True, outputs=False, integer_bias=False)


def test_outputs_are_rounded_for_onnxruntime_s_own_kernels_only() -> None:
    rounded = {name for name, one in TARGETS.items() if one.form is not None and one.form.outputs}
    assert rounded == {"cpu", "cpu-avx2", "arm"}


def test_cuda_gets_float16_and_all_others_int8() -> None:
    assert {name for name, one in TARGETS.items() if one.precision == "fp16"} == {"cuda"}
    assert {one.precision for one in TARGETS.values()} == {"fp16", "int8"}


def test_only_openvino_has_an_engine_of_its_own() -> None:
    assert {name for name, one in TARGETS.items() if one.engine == "openvino"} == {"openvino"}
    assert {name: one.device for name, one in TARGETS.items()} == {
        "cpu": "cpu",
        "cpu-avx2": "cpu",
        "arm": "cpu",
        "openvino": "openvino",
        "cuda": "cuda",
        "tensorrt": "tensorrt",
    }


@pytest.mark.parametrize(
    ("kind", "vnni", "found"),
    [
        ("x86_64", True, "cpu"),
        ("x86_64", False, "cpu-avx2"),
        ("AMD64", False, "cpu-avx2"),
        ("aarch64", False, "arm"),
        ("arm64", False, "arm"),
        ("ARM64", False, "arm"),
    ],
)
def test_cpu_is_the_target_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, kind: str, vnni: bool, found: str
) -> None:
    machine(monkeypatch, kind=kind, vnni=vnni)
    assert find_target("cpu") is TARGETS[found]
    assert not_measured(find_target("cpu")) is None


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "cpu"])
def test_any_other_target_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    machine(monkeypatch, vnni=False)
    assert find_target(name) is TARGETS[name]


@pytest.mark.parametrize(
    ("target", "here", "why"),
    [
        ("cpu", {}, None),
        ("arm", {}, "no ARM"),
        ("arm", {"kind": "aarch64"}, None),
        ("arm", {"kind": "arm64"}, None),
        ("cpu-avx2", {}, "VNNI"),
        ("cpu-avx2", {"vnni": False}, None),
        ("cpu-avx2", {"kind": "aarch64", "vnni": False}, "no x86"),
        ("openvino", {}, None),
        ("cuda", {}, "no NVIDIA GPU"),
        ("cuda", {"cuda": True}, None),
        ("tensorrt", {}, "no NVIDIA GPU"),
        ("tensorrt", {"cuda": True}, None),
    ],
)
def test_why_a_target_cannot_be_timed_is_said(
    monkeypatch: pytest.MonkeyPatch, target: str, here: dict, why: str | None
) -> None:
    machine(monkeypatch, **here)
    found = not_measured(TARGETS[target])
    assert found is None if why is None else why in (found or "")


def test_without_openvino_its_target_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, openvino=False)
    with pytest.raises(ExtraMissing, match=r"medtl\[openvino\]"):
        find_target("openvino")
    assert find_target("cpu").name == "cpu"


def test_openvino_that_cannot_be_imported_is_missing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExtraMissing):
        find_target("openvino")


@pytest.fixture(scope="module")
def network(graph_of) -> bytes:
    weight = np.ones((2, 1, 1, 1), np.float32)
    axes = np.array([2, 3], np.int64)
    body = """
        cam = Conv(image, w)
        logits = ReduceMean<keepdims=0>(cam, axes)
        embedding = ReduceMean<keepdims=0>(image, axes)
    """
    model: onnx.ModelProto = graph_of(
        body, {"w": weight, "axes": axes}, outputs={"logits": 2, "cam": 4, "embedding": 2}
    )
    return model.SerializeToString()


IMAGE = np.random.default_rng(0).random((1, 1, 16, 16), dtype=np.float32)


@pytest.mark.parametrize("name", ["cpu", "arm", "cuda", "tensorrt"])
def test_what_is_not_this_machine_is_computed_on_the_cpu(network: bytes, name: str) -> None:
    session = open_session(TARGETS[name], network, threads=1, measured=False)
    assert isinstance(session, Session)
    assert "CPU" in session.name
    np.testing.assert_allclose(session.run(IMAGE)["logits"], IMAGE.mean((2, 3)).repeat(2, 1), 1e-5)


def test_for_openvino_it_is_computed_by_openvino(network: bytes) -> None:
    pytest.importorskip("openvino")
    session = open_session(TARGETS["openvino"], network, threads=1, measured=True)
    assert "OpenVINO" in getattr(session, "name", "")
    np.testing.assert_allclose(session.run(IMAGE)["logits"], IMAGE.mean((2, 3)).repeat(2, 1), 1e-5)
