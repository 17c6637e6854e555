"""Ranges of activations, from calibration images, in memory that does not grow with them.

One image at a time runs through the float graph. Of each tensor remain its least and largest value
and a histogram of some of its values, whose bins double in width when a value lies outside.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from medtl_export.qdq import Range
from medtl_runtime.engines import import_onnxruntime
from medtl_runtime.modelfile import INPUT
from medtl_runtime.recipe import as_batch

Method = Literal["min-max", "percentile", "MSE"]
METHODS: tuple[Method, ...] = ("min-max", "percentile", "MSE")

_BINS = 4096
_VALUES = 8192
_OUTSIDE = 1e-4
_SHRINKS = np.linspace(1.0, 0.3, 36)
_LEVELS = 255


@dataclass(kw_only=True, eq=False)
class Spread:
    """How the values of a tensor are spread; grows with every image."""

    low: float = np.inf
    high: float = -np.inf
    limit: float = 0.0
    """The histogram reaches from -limit to limit."""
    histogram: NDArray[np.int64]

    @staticmethod
    def empty() -> "Spread":
        """Return a spread without values."""
        return Spread(histogram=np.zeros(_BINS, np.int64))

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in the values of one image: all for the bounds, up to 8192 for the histogram."""
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        some = values.reshape(-1)[:: _stride(values.size)]
        bins = ((some / (self.limit or 1) + 1) * (_BINS / 2)).astype(np.int64).clip(0, _BINS - 1)
        self.histogram += np.bincount(bins, minlength=_BINS)

    def _widen(self, largest: float) -> None:
        if self.limit == 0.0:  # only zeros so far, which are in the middle whatever the limit
            self.limit = largest
        while self.limit < largest:
            wider = np.zeros_like(self.histogram)
            wider[_BINS // 4 : 3 * _BINS // 4] = self.histogram.reshape(-1, 2).sum(axis=1)
            self.histogram, self.limit = wider, 2 * self.limit

    @property
    def centres(self) -> NDArray[np.float64]:
        """The values in the middle of the bins."""
        return np.linspace(-1, 1, _BINS, endpoint=False) * self.limit + self.limit / _BINS


def _stride(size: int) -> int:
    """Return which of so many values are taken: every n-th, at most 8192 in all.

    It has no divisor in common with the size, or it could fall on the same column of every row: of
    maps of 7 x 7 every 7th value is at the left border, where padding is.
    """
    stride = -(-size // _VALUES)
    while math.gcd(stride, size) != 1:
        stride += 1
    return stride


def collect(
    model: onnx.ModelProto,
    tensors: Iterable[str],
    pixels: NDArray[np.uint16],
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Spread]:
    """Return how values of a float graph are spread.

    Parameters
    ----------
    tensors
        Names of tensors of the graph; its input may be one of them.
    pixels
        Canonical calibration images, N x C x H x W.
    tick
        Called after each image.
    """
    names = sorted(set(tensors))
    spreads = {name: Spread.empty() for name in names}
    run = Probe(model, names)
    for image in pixels:
        for name, values in run(as_batch([image])).items():
            spreads[name].add(values)
        tick()
    return spreads


class Probe:
    """Runs a graph and returns tensors from its inside."""

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str]) -> None:
        given = {item.name for item in model.graph.input}
        self._inputs = [name for name in tensors if name in given]
        self._names = [name for name in tensors if name not in given]
        opened = onnx.ModelProto()
        opened.CopyFrom(model)
        del opened.graph.output[:]
        opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._names)
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        self._session: Any = runtime.InferenceSession(opened.SerializeToString(), options)

    def __call__(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the tensors by name; ``batch`` is N x C x H x W in [0, 1]."""
        values = self._session.run(self._names, {INPUT: batch}) if self._names else []
        return {**dict.fromkeys(self._inputs, batch), **dict(zip(self._names, values, strict=True))}


def ranges_of(spreads: Mapping[str, Spread], method: Method) -> dict[str, Range]:
    """Return the range of each tensor.

    - ``min-max``: all values.
    - ``percentile``: all but one in 20,000 at either end.
    - ``MSE``: the range whose 256 steps lose least, of values inside it to rounding and of values
      outside to clipping, by the mean of squares.
    """
    return {name: _range(spread, method) for name, spread in spreads.items()}


def _range(spread: Spread, method: Method) -> Range:
    match method:
        case "min-max":
            return Range(low=spread.low, high=spread.high)
        case "percentile":
            return _percentile(spread)
        case "MSE":
            return _least_error(spread)


def _percentile(spread: Spread) -> Range:
    shares = np.cumsum(spread.histogram) / spread.histogram.sum()
    low, high = np.searchsorted(shares, [_OUTSIDE / 2, 1 - _OUTSIDE / 2])
    centres = spread.centres
    return Range(
        low=max(spread.low, float(centres[low])), high=min(spread.high, float(centres[high]))
    )


def _least_error(spread: Spread) -> Range:
    centres, counts = spread.centres, spread.histogram
    low, high = min(spread.low, 0.0), max(spread.high, 0.0)
    errors = []
    for shrink in _SHRINKS:
        clipped = centres - centres.clip(shrink * low, shrink * high)
        step = shrink * (high - low) / _LEVELS
        rounding = (clipped == 0) * (step**2 / 12)
        errors.append(float(counts @ (clipped**2 + rounding)))
    best = float(_SHRINKS[int(np.argmin(errors))])
    return Range(low=best * spread.low, high=best * spread.high)
