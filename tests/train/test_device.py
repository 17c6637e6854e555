"""A device is the one that was asked for, or a refusal."""

import pytest
import torch

from medtl_runtime.errors import DeviceUnavailable, UsageError
from medtl_train.device import choose_device, device_name

CPU = torch.device("cpu")


def test_the_processor_is_always_there_and_has_a_name() -> None:
    assert choose_device("cpu") == CPU
    assert device_name(CPU) == f"cpu, {torch.get_num_threads()} threads"


@pytest.mark.parametrize("name", ["gpu", "", "cuda:7", "mps", "CPU"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device is {name}; expected auto, cpu or cuda"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_and_never_replaced() -> None:
    assert choose_device("auto") == CPU
    with pytest.raises(DeviceUnavailable, match="--device cuda: torch finds no usable NVIDIA GPU"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_chosen_where_there_is_one() -> None:
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert device_name(choose_device("cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_name_of_a_gpu_is_asked_of_torch() -> None:
    with pytest.raises((RuntimeError, AssertionError)):  # what torch raises without a driver
        device_name(torch.device("cuda"))
