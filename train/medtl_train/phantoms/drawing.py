"""Draws that drift from slice to slice, and a canvas to paint them on.

Lengths are fractions of the image side with 0 at the image centre. A point is a complex number:
the real part grows to the image's right (the patient's left), the imaginary part downwards
(posterior).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Tubes = tuple[NDArray[np.complexfloating], NDArray[np.complexfloating], Array]
"""Starts, ends and radii of round-ended tubes."""
Range = tuple[float, float]
"""Lowest and highest of a draw, or an extent in x and y."""


class Vary:
    """Draws that belong to a patient and drift a little with the level of the slice."""

    def __init__(self, rng: np.random.Generator, level: float) -> None:
        self.rng, self.level = rng, level

    def __call__(self, low: float, high: float) -> float:
        """Draw a number from a range; the drift may carry it a little beyond."""
        base, drift = self.rng.uniform(low, high), self.rng.uniform(-1, 1)
        return base + 0.12 * self.level * drift * (high - low)

    def point(self, x: Range, y: Range) -> complex:
        """Draw a point from a box."""
        return complex(self(*x), self(*y))

    def wobble(self, amplitude: float, orders: range = range(2, 6)) -> list[complex]:
        """Fourier coefficients of an outline, by order; their moduli sum to `amplitude`."""
        parts = [complex(self(-1, 1), self(-1, 1)) / order for order in orders]
        total = sum(map(abs, parts))
        return [0j] * orders.start + [amplitude * part / total for part in parts]

    def field(self, size: int, cycles: Range) -> Array:
        """Band-limited texture of zero mean and unit variance, the same at every `size`."""
        top = int(cycles[1])
        a, b = self.rng.standard_normal((2, 2, 2 * top + 1, top + 1))
        turned = np.cos(0.8 * self.level) * a + np.sin(0.8 * self.level) * b
        fy, fx = np.arange(-top, top + 1)[:, None], np.arange(top + 1)[None]
        frequency = np.hypot(fy, fx)
        gain = ((frequency >= cycles[0]) & (frequency <= top)) / (1 + frequency)
        spectrum = np.zeros((size, size // 2 + 1), np.complex64)
        spectrum[fy % size, fx] = gain * (turned[0] + 1j * turned[1])
        texture = np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32)
        return texture / texture.std()


class Canvas:
    """A slice being painted: `hu` is [size, size] float32 and starts as air."""

    def __init__(self, size: int) -> None:
        self.size = size
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        self.x, self.y = np.meshgrid(axis, axis)
        self.hu = np.full((size, size), -1000, np.float32)

    def outline(
        self, centre: complex, axes: Range, wobble: Sequence[complex] = (), tilt: float = 0.0
    ) -> Array:
        """Distance to a wavy ellipse along the ray from its centre, negative inside."""
        x, y = self.x - np.float32(centre.real), self.y - np.float32(centre.imag)
        cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
        x, y = cos * x + sin * y, cos * y - sin * x
        u, v = x * np.float32(1 / axes[0]), y * np.float32(1 / axes[1])
        reach = np.sqrt(u * u + v * v) + np.float32(1e-6)
        rim: Array | float = 1.0
        if wobble:
            ray = (u + 1j * v) / reach
            turns = np.zeros_like(ray)
            for coefficient in reversed(wobble):  # Horner's rule: the sum of c_k * ray ** k
                turns = turns * ray + np.complex64(coefficient)
            rim = 1 + turns.real
        return np.sqrt(x * x + y * y) * (1 - rim / reach)

    def cover(self, outline: Array, edge: float = 0.0) -> Array:
        """Share of each pixel inside an outline, for an edge of at least one pixel."""
        return np.clip(0.5 - outline / np.float32(max(edge, 1 / self.size)), 0, 1)

    def tubes(self, tubes: Tubes) -> Array:
        """Share of each pixel inside round-ended tubes."""
        start, end, radius = (part[:, None, None] for part in tubes)
        n, along = self.size, end - start
        side = int(np.ceil((np.abs(along) + 2 * radius).max() * n)) + 3
        corner = ((start + end) / 2 + 0.5 + 0.5j) * n - (0.5 + 0.5j) * side
        col = np.floor(corner.real).astype(int) + np.arange(side)[None, None, :]
        row = np.floor(corner.imag).astype(int) + np.arange(side)[None, :, None]
        point = (col + 0.5 + 1j * (row + 0.5)) / n - (0.5 + 0.5j) - start
        share = (point * along.conj()).real / np.maximum(np.abs(along) ** 2, 1e-12)
        away = np.abs(point - np.clip(share, 0, 1) * along)
        # What is thinner than a pixel is drawn a pixel wide and fainter (partial volume).
        wide = np.maximum(radius, 0.6 / n)
        cover = np.clip(0.5 - (away - wide) * n, 0, 1) * (radius / wide)
        row, col = np.broadcast_arrays(row, col)
        on = (cover > 0) & (row >= 0) & (row < n) & (col >= 0) & (col < n)
        total = np.zeros((n, n), np.float32)
        np.maximum.at(total, (row[on], col[on]), cover[on].astype(np.float32))
        return total

    def blend(self, cover: Array, hu: float | Array) -> None:
        """Paint over the share of each pixel that is covered."""
        self.hu += cover * (np.asarray(hu, np.float32) - self.hu)

    def fill(self, outline: Array, hu: float | Array, edge: float = 0.0) -> None:
        """Paint the inside of an outline."""
        self.blend(self.cover(outline, edge), hu)

    def disc(self, centre: complex, radius: float, hu: float) -> None:
        """Paint a disc, however small."""
        self.blend(self.tubes((np.array([centre]), np.array([centre]), np.array([radius]))), hu)
