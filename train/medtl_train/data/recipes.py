"""Decides the recipe of a run from its configuration and, where that says auto, from the data."""

import math
from collections.abc import Sequence

from medtl_runtime.errors import ScanError, UsageError
from medtl_runtime.recipe import FixedWindow, HeaderVoi, Recipe, WindowPolicy, is_grey
from medtl_runtime.scan import Frame, Header
from medtl_runtime.voi import HOUNSFIELD_PRESETS
from medtl_train.config import ImageConfig
from medtl_train.data.samples import Sample

_PEEKED = 64


def decide_recipe(samples: Sequence[Sample], config: ImageConfig) -> Recipe:
    """Return the recipe; ``auto`` values are decided on up to 64 samples spread over the data.

    External samples have no say: they are prepared as the run's own.

    Raises
    ------
    UsageError
        The window is not one.
    """
    own = [sample for sample in samples if sample.split != "external"]
    peeked = _peek(own) if "auto" in (config.window, config.channels) else []
    return Recipe(
        size=(config.size, config.size),
        channels=_channels(config, peeked),
        window=_window(config, peeked),
        fit=config.fit,
        kernel=config.kernel,
    )


def _peek(samples: Sequence[Sample]) -> list[tuple[Header, Frame]]:
    step = max(1, math.ceil(len(samples) / _PEEKED))
    seen = []
    for sample in samples[::step]:
        try:
            scan = sample.read()
            seen.append((scan.header, next(scan.frames())))
        except ScanError:
            continue  # listed when everything is read
    return seen


def _channels(config: ImageConfig, peeked: list[tuple[Header, Frame]]) -> int:
    if config.channels != "auto":
        return int(config.channels)
    return 3 if any(_in_colour(frame) for _, frame in peeked) else 1


def _in_colour(frame: Frame) -> bool:
    _, highest = frame.value_range or (0.0, 1.0)
    return frame.is_colour and not is_grey(frame.values, full_scale=highest)


def _window(config: ImageConfig, peeked: list[tuple[Header, Frame]]) -> WindowPolicy:
    if config.window == "auto":
        modalities = {header.modality for header, _ in peeked}
        return _fixed("ct-wide") if modalities == {"CT"} else HeaderVoi()
    if config.window == "voi":
        return HeaderVoi()
    return _fixed(config.window)


def _fixed(text: str) -> FixedWindow:
    if text in HOUNSFIELD_PRESETS:
        centre, width = HOUNSFIELD_PRESETS[text]
        return FixedWindow(centre=centre, width=width)
    try:
        centre, width = (float(number) for number in text.split(","))
    except ValueError as cause:
        names = ", ".join(HOUNSFIELD_PRESETS)
        expected = f"auto, voi, CENTRE,WIDTH or one of {names}"
        raise UsageError(f"--window is {text}; expected {expected}") from cause
    return FixedWindow(centre=centre, width=width)
