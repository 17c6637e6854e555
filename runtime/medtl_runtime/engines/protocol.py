"""An engine is a protocol, so that tests and others can bring their own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from medtl_runtime.modelfile import Description


class Engine(Protocol):
    """What a `Predictor` needs of an engine."""

    @property
    def name(self) -> str:
        """What runs and where, with versions, for people, results and the self-test's marker."""
        ...

    @property
    def description(self) -> "Description":
        """What the loaded model says of itself."""
        ...

    def run(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        """Return ``logits`` [N, K], ``cam`` [N, K, h, w] and ``embedding`` [N, D].

        ``images`` are canonical: float32 in [0, 1], N x C x H x W. Threads may call it at the
        same time.
        """
        ...
