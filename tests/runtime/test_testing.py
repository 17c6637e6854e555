"""The public fakes keep the promises that tests build on."""

import dataclasses

import numpy as np
import pytest

from medtl_runtime.engines import Engine
from medtl_runtime.modelfile import Description
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_runtime.selftest import self_test
from medtl_runtime.testing import FakeEngine, describe


def batch(count: int = 2, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(1).random((count, channels, 16, 16)).astype(np.float32)


def test_the_default_description_is_valid_in_a_model_file() -> None:
    assert Description.from_json(describe().to_json(), "m.onnx") == describe()


def test_every_field_can_be_overridden() -> None:
    for field in dataclasses.fields(Description):
        value = getattr(describe(classes=("a", "b"), name="other"), field.name)
        assert getattr(describe(**{field.name: value}), field.name) == value


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c", "d", "e")])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_fake_engine_passes_its_own_self_test(classes: tuple[str, ...], channels: int) -> None:
    recipe = Recipe(size=(24, 16), channels=channels, window=HeaderVoi())
    engine: Engine = FakeEngine(describe(classes=classes, recipe=recipe))
    assert self_test(engine).difference == 0


def test_the_default_logits_follow_the_pixels() -> None:
    engine = FakeEngine(describe(classes=("top", "middle", "bottom", "last")))
    images = np.zeros((2, 1, 16, 16), np.float32)
    images[0, :, 4:8] = 1
    images[1, :, 12:] = 0.5
    np.testing.assert_array_equal(engine.run(images)["logits"], [[0, 4, 0, 0], [0, 0, 0, 2]])


def test_the_mean_over_a_map_is_the_logit_and_the_map_is_not_flat() -> None:
    outputs = FakeEngine(describe()).run(batch())
    np.testing.assert_allclose(outputs["cam"].mean(axis=(2, 3)), outputs["logits"], atol=1e-6)
    assert (np.ptp(outputs["cam"], axis=(2, 3)) > 1).all()
    assert {name: value.shape for name, value in outputs.items()} == {
        "logits": (2, 2),
        "cam": (2, 2, 4, 4),
        "embedding": (2, 4),
    }
    assert {value.dtype for value in outputs.values()} == {np.dtype(np.float32)}


def test_logits_can_be_given() -> None:
    engine = FakeEngine(describe(), lambda images: np.tile([1.0, 2.0], (len(images), 1)))
    np.testing.assert_array_equal(engine.run(batch(3))["logits"], [[1, 2]] * 3)


def test_batches_are_remembered_as_they_were() -> None:
    engine = FakeEngine(describe())
    first = batch()
    engine.run(first)
    engine.run(batch(1))
    first[:] = 0
    assert [len(one) for one in engine.batches] == [2, 1]
    np.testing.assert_array_equal(engine.batches[0], batch())


@pytest.mark.parametrize(
    "images", [batch().astype(np.float64), batch(channels=3), batch()[..., :8], batch()[0]]
)
def test_images_that_the_recipe_does_not_make_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected float32"):
        FakeEngine(describe()).run(images)
