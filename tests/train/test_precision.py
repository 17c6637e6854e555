"""What runs in which precision is decided by the device, unless it was asked for."""

import pytest
import torch

from medtl_runtime.errors import UsageError
from medtl_train.config import SpeedConfig
from medtl_train.config.speed import PrecisionName
from medtl_train.fitting.precision import autocast, choose_precision, compiles, tuned
from medtl_train.options import config_from

CPU, GPU = torch.device("cpu"), torch.device("cuda")

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize(("name", "found"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")])
def test_the_processor_computes_in_float32_unless_asked(name: PrecisionName, found: str) -> None:
    assert choose_precision(name, CPU) == found


def test_bf16_is_that_of_products_and_not_of_the_weights() -> None:
    layer, given = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with autocast("bf16", CPU):
        assert layer(given).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert layer(given).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_a_long_run_on_a_gpu_is_compiled_and_a_short_one_is_not() -> None:
    assert compiles("auto", GPU, images=2_000_000, side=224)
    assert not compiles("auto", GPU, images=1_999_999, side=224)
    assert compiles("auto", GPU, images=500_000, side=448)
    assert not compiles("auto", GPU, images=2_000_000, side=112)
    assert not compiles("auto", CPU, images=10**9, side=224)


def test_what_is_asked_for_is_done_whatever_the_length() -> None:
    assert compiles("yes", CPU, images=1, side=32)
    assert not compiles("no", GPU, images=10**9, side=224)


def test_the_processor_needs_no_settings() -> None:
    before = torch.get_float32_matmul_precision()
    with tuned(CPU):
        assert torch.get_float32_matmul_precision() == before


@gpu
def test_a_gpu_takes_tf32_for_as_long_as_training_takes() -> None:
    torch.set_float32_matmul_precision("highest")
    with tuned(GPU):
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.benchmark
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.benchmark


@gpu
def test_a_gpu_computes_in_bf16_where_it_can() -> None:
    can = torch.cuda.is_bf16_supported(including_emulation=False)
    assert choose_precision("auto", GPU) == ("bf16" if can else "fp32")
    assert choose_precision("fp32", GPU) == "fp32"
    if not can:
        with pytest.raises(UsageError, match="--precision bf16"):
            choose_precision("bf16", GPU)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"precision": "fp16"}, "--precision is fp16; expected auto, fp32, bf16"),
        ({"compile": "maybe"}, "--compile is maybe; expected auto, yes, no"),
        ({"device_share": 1.0}, "--device-share is 1.0; expected 0 to 0.9"),
        ({"batch_size": 1}, "--batch-size is 1; expected 2 or more, or auto"),
        ({"batch_size": "large"}, "--batch-size is large; expected 2 or more, or auto"),
    ],
)
def test_what_cannot_be_is_refused_by_its_option(given: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config_from(given)


def test_everything_is_automatic_unless_said() -> None:
    assert SpeedConfig() == SpeedConfig(precision="auto", compile="auto")
    assert config_from({"batch_size": "auto"}).fit.step_images == 32
