"""Images reach the device with the bits that inference gives them, wherever they wait."""

import numpy as np
import pytest
import torch

from medtl_runtime.recipe import as_batch
from medtl_train.fitting.staging import (
    OnDevice,
    OnHost,
    Streamed,
    as_floats,
    as_signed,
    full_scale,
    stage,
)

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 2**16, (40, 3, 6, 5)).astype(np.uint16)
PARTS = [np.array([3, 1, 39]), np.array([0]), np.array([7, 7, 20, 21])]

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_every_value_becomes_the_float_that_inference_makes_of_it() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    found = as_floats(as_signed(every), full_scale(CPU))
    assert np.array_equal(found.numpy(), as_batch(every))


def test_the_processor_takes_images_where_they_are() -> None:
    staged = stage(PIXELS, CPU, largest=4, share=0.5)
    assert isinstance(staged, OnHost)
    for rows, images in zip(PARTS, staged.batches(PARTS), strict=True):
        assert np.array_equal(images.numpy(), as_batch(PIXELS[rows]))


def test_images_in_the_memory_of_a_device_are_gathered_there() -> None:
    staged = OnDevice(PIXELS, CPU)  # the same operations as on a GPU
    for rows, images in zip(PARTS, staged.batches(PARTS), strict=True):
        assert np.array_equal(images.numpy(), as_batch(PIXELS[rows]))


@gpu
@pytest.mark.parametrize(("share", "kind"), [(0.5, OnDevice), (0.0, Streamed)])
def test_a_gpu_gets_the_same_bits_from_its_memory_and_from_the_stream(
    share: float, kind: type
) -> None:
    staged = stage(PIXELS, torch.device("cuda"), largest=4, share=share)
    assert isinstance(staged, kind)
    for _ in range(3):
        for rows, images in zip(PARTS * 5, staged.batches(PARTS * 5), strict=True):
            assert np.array_equal(images.cpu().numpy(), as_batch(PIXELS[rows]))
