"""For tests of code that uses medtl: a description and an engine that need no model file.

>>> import numpy as np
>>> from medtl_runtime import Predictor
>>> from medtl_runtime.testing import FakeEngine, describe
>>> predictor = Predictor(engine=FakeEngine(describe(classes=("top", "bottom"))))
>>> image = np.zeros((16, 16), np.uint8)
>>> image[8:] = 255
>>> predictor(image).finding
'bottom'
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.decision import plain_decision
from medtl_runtime.heads import Head, width
from medtl_runtime.modelfile import Description, SelfTest
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_runtime.selftest import synthetic_logits

Logits = Callable[[NDArray[np.float32]], NDArray[np.floating]]

_SEEDS = (1, 2)
_MAP = (4, 4)


def describe(
    *,
    classes: Sequence[str] = ("negative", "positive"),
    heads: Sequence[Head] = (),
    recipe: Recipe | None = None,
    **fields: Any,
) -> Description:
    """Return a small, valid description.

    Parameters
    ----------
    classes
        Of the only head, ``label``, in the order of the logits.
    heads
        In place of that one.
    recipe
        By default grey, 16 x 16 pixels, windowed by the header.
    fields
        Other fields of `Description`, in place of the defaults. The default self-test is what a
        `FakeEngine` with its default logits passes.
    """
    heads = tuple(heads) or (Head(name="label", classes=tuple(classes)),)
    recipe = recipe or Recipe(size=(16, 16), channels=1, window=HeaderVoi())
    if "self_test" not in fields:
        logits = synthetic_logits(_Strips(width(heads)), recipe, _SEEDS)
        rows = tuple(tuple(map(float, row)) for row in logits)
        fields["self_test"] = SelfTest(seeds=_SEEDS, logits=rows, tolerance=1e-4)
    defaults: dict[str, Any] = {
        "name": "fake",
        "version": "1",
        "decision": plain_decision(heads),
        "provenance": {},
        "requires": {},
    }
    return Description(heads=heads, recipe=recipe, **(defaults | fields))


class FakeEngine:
    """An `Engine` that computes something simple and remembers what it was given.

    Attributes
    ----------
    name
        ``"fake engine"``.
    description
        As given.
    batches
        Copies of the batches that `run` saw, oldest first; float32, N x C x H x W.
    """

    def __init__(self, description: Description, logits: Logits | None = None) -> None:
        """Make an engine.

        Parameters
        ----------
        description
            What the model says of itself; see `describe`.
        logits
            A function from images, float32 N x C x H x W, to logits, N x K. By default an image is
            cut into K equal strips in the order of its rows, and the logit of a column is four
            times the mean of its strip.
        """
        self.name = "fake engine"
        self.description = description
        self.batches: list[NDArray[np.float32]] = []
        self._logits = logits or _Strips(width(description.heads))

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return ``logits`` [N, K], ``cam`` [N, K, 4, 4] and ``embedding`` [N, 4].

        The mean over a map is the column's logit, and the map grows from the upper left to the
        lower right, the more the higher the column's index. The embedding is the image's mean,
        standard deviation, minimum and maximum.

        Raises
        ------
        ValueError
            The images are not what the description's recipe makes.
        """
        expected = (self.description.recipe.channels, *self.description.recipe.size)
        if images.dtype != np.float32 or images.shape[1:] != expected:
            found = f"{images.dtype} {images.shape}"
            raise ValueError(f"images are {found}; expected float32 (N, *{expected})")
        self.batches.append(images.copy())
        logits = np.asarray(self._logits(images), np.float32)
        ramp = np.linspace(-1, 1, _MAP[0] * _MAP[1]).reshape(_MAP)
        slopes = np.arange(1, logits.shape[1] + 1)[:, None, None]
        flat = images.reshape(len(images), -1)
        measures = [flat.mean(1), flat.std(1), flat.min(1), flat.max(1)]
        return {
            "logits": logits,
            "cam": (logits[..., None, None] + slopes * ramp).astype(np.float32),
            "embedding": np.stack(measures, axis=1).astype(np.float32),
        }


class _Strips:
    """The default logits, callable for an engine and runnable for a self-test."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        pixels = images.mean(axis=1).reshape(len(images), -1)
        strips = np.array_split(pixels, self._count, axis=1)
        means = [strip.mean(axis=1) for strip in strips]
        return np.stack(means, axis=1).astype(np.float32) * np.float32(4)

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return {"logits": self(images)}
