"""The recipe: how a frame becomes the canonical image that a network sees.

    Frame -> window or VOI -> padding to black, polarity -> channels -> fit and resize -> uint16

There is one implementation, and training, calibration, evaluation and inference all call it. The
canonical image is fixed-point (0 stands for 0.0, 65535 for 1.0), so that the last bit of a float
cannot tell a server from a scanner.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medtl_runtime.errors import ScanUnfit, UsageError
from medtl_runtime.scan import Frame
from medtl_runtime.voi import Voi, Window, full_range

FULL_SCALE = 65535

Polarity = Literal["display", "modality"]
Fit = Literal["letterbox", "crop", "stretch"]
Kernel = Literal["bilinear", "bicubic", "lanczos", "box"]

_KERNELS: dict[str, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}

# Channels that differ by less than this share of the range are a grey image saved as colour (JPEG
# rounds its chroma); more is colour.
_GREY_TOLERANCE = 1 / 16


@dataclass(frozen=True, kw_only=True)
class FixedWindow:
    """The same window for every image, in the units of the modality values.

    The policy for CT: Hounsfield units mean the same on every scanner. An image that holds no
    modality values (PNG, JPEG) is refused, because its window is unknown.
    """

    centre: float
    width: float

    def __post_init__(self) -> None:
        self.window  # noqa: B018  - validates centre and width

    @property
    def window(self) -> Window:
        """The window as an exact linear ramp (PS3.3 C.11.2.1.3.2)."""
        return Window(centre=self.centre, width=self.width, function="LINEAR_EXACT")

    def choose(self, frame: Frame, source: str) -> tuple[Voi, str]:
        """Return the mapping for ``frame`` and the words by which a result records it."""
        if frame.quantity == "display":
            raise ScanUnfit(
                source,
                f"the image has no modality values for the fixed {self}; "
                "expected grey DICOM or NPY",
            )
        return self.window, f"fixed {self}"

    def __str__(self) -> str:
        return f"window {self.centre:g}/{self.width:g}"

    def to_json(self) -> dict[str, Any]:
        """Return the policy as JSON values."""
        return {"kind": "fixed", "centre": self.centre, "width": self.width}


@dataclass(frozen=True, kw_only=True)
class HeaderVoi:
    """The header's own VOI LUT or first window; the policy for projection X-ray and MR.

    Where the header has none, ``fallback`` is used and the result says so: a fixed window, or with
    None the range of the stored bits. Never the image's own minimum and maximum.
    """

    fallback: FixedWindow | None = None

    def choose(self, frame: Frame, source: str) -> tuple[Voi, str]:
        """Return the mapping for ``frame`` and the words by which a result records it."""
        if frame.quantity == "modality":
            if frame.voi is not None:
                return frame.voi, f"header {frame.voi}"
            if self.fallback is not None:
                return self.fallback.window, f"fallback {self.fallback}"
        if frame.value_range is None:
            raise ScanUnfit(
                source,
                "floating-point or 32-bit values without a window in the header; "
                "expected a recipe with a fixed window or a fallback",
            )
        words = "fallback stored range" if frame.quantity == "modality" else "display range"
        return full_range(*frame.value_range), words

    def __str__(self) -> str:
        return f"header VOI, else {self.fallback or 'the stored range'}"

    def to_json(self) -> dict[str, Any]:
        """Return the policy as JSON values."""
        fallback = None if self.fallback is None else self.fallback.to_json()
        return {"kind": "header", "fallback": fallback}


WindowPolicy = FixedWindow | HeaderVoi


@dataclass(frozen=True, kw_only=True, eq=False)
class Canonical:
    """An image as every network of medtl gets it.

    ``pixels`` is uint16, C x H x W, 0 to 65535 for 0.0 to 1.0; ``voi`` says how its grey values
    were made.
    """

    pixels: NDArray[np.uint16]
    voi: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that is done to a pixel between the modality LUT and the network.

    Stored in every checkpoint and model file.
    """

    size: tuple[int, int]
    """Height and width of the canonical image, in pixels."""

    channels: int
    """1 (grey) or 3 (RGB; a grey image is repeated)."""

    window: WindowPolicy
    """How modality values become [0, 1]."""

    polarity: Polarity = "display"
    """``display`` inverts MONOCHROME1 and Presentation LUT INVERSE, after VOI (PS3.3 C.11.6);
    ``modality`` keeps the order of the modality values whatever the header says."""

    fit: Fit = "letterbox"
    """``letterbox`` keeps all and the aspect ratio, with black bars; ``crop`` keeps the aspect
    ratio and cuts the longer side in the middle; ``stretch`` keeps all and distorts."""

    kernel: Kernel = "bilinear"
    """Resampling kernel; widened when shrinking, so that nothing aliases."""

    def __post_init__(self) -> None:
        if not (
            isinstance(self.size, tuple)
            and len(self.size) == 2
            and all(isinstance(n, int) and 8 <= n <= 4096 for n in self.size)
        ):
            raise UsageError(f"recipe size is {self.size}; expected two integers from 8 to 4096")
        if not isinstance(self.channels, int) or self.channels not in (1, 3):
            raise UsageError(f"recipe channels is {self.channels}; expected 1 or 3")
        for name, choices in (("polarity", Polarity), ("fit", Fit), ("kernel", Kernel)):
            if getattr(self, name) not in get_args(choices):
                expected = ", ".join(get_args(choices))
                raise UsageError(f"recipe {name} is {getattr(self, name)}; expected {expected}")

    def apply(self, frame: Frame, source: str = "frame") -> Canonical:
        """Return the canonical image of a frame.

        Raises
        ------
        ScanUnfit
            Colour for a grey recipe, or nothing to make a window of.
        """
        voi, words = self.window.choose(frame, source)
        # Up to here, each level is computed once, however many pixels have it.
        shown = voi.apply(frame.levels)
        if frame.inverted and self.polarity == "display":
            shown = 1 - shown
        if frame.padded is not None:
            shown = np.where(frame.padded, np.float32(0), shown)
        grey = _as_channels(frame.image_of(shown), self.channels, source)
        planes = [grey] if grey.ndim == 2 else [grey[..., c] for c in range(3)]
        fixed = [_fixed_point(self._fitted(np.ascontiguousarray(plane))) for plane in planes]
        if len(fixed) < self.channels:
            fixed *= self.channels
        return Canonical(pixels=np.stack(fixed), voi=words)

    def _fitted(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        """Crop, resize and pad one plane to `size`."""
        height, width = self.size
        rows, columns = plane.shape
        kernel = _KERNELS[self.kernel]
        image = Image.fromarray(plane)
        if self.fit == "stretch" or rows * width == columns * height:
            return np.asarray(image.resize((width, height), kernel))
        if self.fit == "crop":
            scale = min(rows / height, columns / width)
            # Rounding can put the longer side a hair outside the image, which Pillow refuses.
            left = max(0.0, (columns - width * scale) / 2)
            top = max(0.0, (rows - height * scale) / 2)
            box = (left, top, columns - left, rows - top)
            return np.asarray(image.resize((width, height), kernel, box=box))
        scale = min(height / rows, width / columns)
        fit_height = min(height, max(1, round(rows * scale)))
        fit_width = min(width, max(1, round(columns * scale)))
        canvas = np.zeros(self.size, np.float32)
        top, left = (height - fit_height) // 2, (width - fit_width) // 2
        inner = np.asarray(image.resize((fit_width, fit_height), kernel))
        canvas[top : top + fit_height, left : left + fit_width] = inner
        return canvas

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values; `from_json` is its inverse."""
        return {
            "size": list(self.size),
            "channels": self.channels,
            "window": self.window.to_json(),
            "polarity": self.polarity,
            "fit": self.fit,
            "kernel": self.kernel,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Recipe":
        """Return the recipe that `to_json` wrote.

        Raises
        ------
        UsageError
            A field is missing, unknown or out of range.
        """
        expected = {"size", "channels", "window", "polarity", "fit", "kernel"}
        if not isinstance(data, Mapping):
            raise UsageError(f"recipe is {data}; expected an object")
        if set(data) != expected:
            odd = ", ".join(sorted(set(data) ^ expected))
            raise UsageError(f"recipe with missing or unknown fields: {odd}")
        size = data["size"]
        return Recipe(
            size=tuple(size) if isinstance(size, list) else size,
            channels=data["channels"],
            window=_policy_from_json(data["window"]),
            polarity=data["polarity"],
            fit=data["fit"],
            kernel=data["kernel"],
        )


def _policy_from_json(data: Any) -> WindowPolicy:
    kind = data.get("kind") if isinstance(data, Mapping) else data
    if kind == "fixed":
        return _fixed_from_json(data, "window")
    if kind == "header":
        if set(data) != {"kind", "fallback"}:
            raise UsageError(f"recipe window is {data}; expected kind and fallback")
        if data["fallback"] is None:
            return HeaderVoi()
        return HeaderVoi(fallback=_fixed_from_json(data["fallback"], "window fallback"))
    raise UsageError(f"recipe window kind is {kind}; expected fixed or header")


def _fixed_from_json(data: Any, field: str) -> FixedWindow:
    if (
        not isinstance(data, Mapping)
        or set(data) != {"kind", "centre", "width"}
        or data["kind"] != "fixed"
        or not all(isinstance(data[name], int | float) for name in ("centre", "width"))
    ):
        raise UsageError(f"recipe {field} is {data}; expected kind fixed, a centre and a width")
    return FixedWindow(centre=data["centre"], width=data["width"])


def _as_channels(image: NDArray[np.float32], channels: int, source: str) -> NDArray[np.float32]:
    """Return H x W, or H x W x 3 where the recipe wants colour and the image has it."""
    if image.ndim == 2 or channels == 3:
        return image
    if is_grey(image):
        return image[..., 0]
    raise ScanUnfit(source, "colour image; the model expects a grey one")


def is_grey(image: NDArray[np.float32], full_scale: float = 1.0) -> bool:
    """Whether an H x W x 3 image is a grey one saved as colour."""
    spread = image.max(axis=-1) - image.min(axis=-1)
    return bool(spread.max() <= _GREY_TOLERANCE * full_scale)


def _fixed_point(plane: NDArray[np.float32]) -> NDArray[np.uint16]:
    # Bicubic and Lanczos kernels overshoot, hence the clip.
    return np.rint(np.clip(plane, 0, 1) * np.float32(FULL_SCALE)).astype(np.uint16)


def as_batch(
    pixels: NDArray[np.uint16] | Sequence[NDArray[np.uint16]],
) -> NDArray[np.float32]:
    """Return canonical images as the network's input: float32 in [0, 1], N x C x H x W."""
    return np.asarray(pixels).astype(np.float32) / np.float32(FULL_SCALE)
