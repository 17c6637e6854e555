"""A device's name is read as it was meant, or refused."""

import pytest

from medtl_runtime.devices import Device, parse_device, require_training_device
from medtl_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        ("auto", "auto", ""),
        ("cpu", "cpu", ""),
        ("cuda", "cuda", ""),
        ("tensorrt", "tensorrt", ""),
        ("openvino", "openvino", ""),
        ("openvino:GPU", "openvino", "GPU"),
        ("openvino:GPU.1", "openvino", "GPU.1"),
        ("openvino:NPU", "openvino", "NPU"),
        ("plugin:libprovider.so", "plugin", "libprovider.so"),
        ("plugin:C:\\ep\\provider.dll", "plugin", "C:\\ep\\provider.dll"),
    ],
)
def test_a_name_is_read_and_written_back(text: str, kind: str, detail: str) -> None:
    device = parse_device(text)
    assert (device.kind, device.detail) == (kind, detail)
    assert str(device) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tpu",
        "CPU",
        "cpu:",
        "cuda:0",
        "auto:cpu",
        "plugin",
        "plugin:",
        "openvino:",
        "openvino:gpu",
    ],
)
def test_another_name_is_refused_with_those_that_there_are(text: str) -> None:
    expected = "expected auto, cpu, cuda, tensorrt, openvino, openvino:NAME or plugin:LIBRARY"
    with pytest.raises(UsageError) as error:
        parse_device(text)
    assert str(error.value) == f"--device is {text}; {expected}"


@pytest.mark.parametrize("chooser", ["AUTO", "MULTI", "HETERO", "BATCH"])
def test_a_device_of_openvino_that_chooses_by_itself_is_refused(chooser: str) -> None:
    with pytest.raises(UsageError, match=f"OpenVINO's {chooser} chooses a device without a word"):
        parse_device(f"openvino:{chooser}")


def test_training_has_no_engines_of_inference() -> None:
    for name in ("auto", "cpu", "cuda"):
        require_training_device(name)
    for name in ("openvino", "tensorrt", "plugin:x.so", ""):
        with pytest.raises(UsageError, match=f"--device is {name}; expected auto, cpu or cuda"):
            require_training_device(name)


def test_a_device_without_details_is_only_its_kind() -> None:
    assert str(Device(kind="cpu")) == "cpu"
