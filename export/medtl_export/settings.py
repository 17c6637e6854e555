"""What the user of the exporter decides."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtl_export.intended_use import edits
from medtl_models.architectures import ARCHITECTURES
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.errors import UsageError

METRICS = ("auroc", "balanced_accuracy", "sensitivity")
TARGETS = ("cpu", "cpu-avx2", "arm", "openvino", "cuda", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class Quantising:
    """How the quantised model is looked for, and what it has to hold."""

    metric: str = "auroc"
    """That must not drop: one of `METRICS`; sensitivity is at the operating point. Of a regression
    it is R^2."""
    max_drop: float | None = 0.005
    """Largest accepted loss of each head's metric on the validation set, by the lower bound of its
    95 % interval. None accepts any."""
    calibration_images: int = 300
    """Training images that ranges are taken from."""
    batch_size: int = 1
    """Images that are timed together."""
    threads: int | None = None
    """While times are measured; None for as many as physical cores."""
    qat: bool = False
    """Fine-tune with rounded weights if no int8 candidate is accurate enough."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(f"--metric {self.metric}: expected {', '.join(METRICS)}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise UsageError(f"--max-drop is {self.max_drop}; expected 0 to 1, or none")
        for name in ("calibration_images", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that determines a model file, given the run and the machine.

    Raises
    ------
    UsageError
        A value is out of its limits; the message names the option.
    """

    target: str = "cpu"
    """What the file is made for: one of `TARGETS`; see `medtl_export.targets`."""
    quantise: Quantising | None = None
    """None for the float network."""
    distil: str | None = None
    """An architecture to train on the run's outputs; its network is exported instead."""
    false_refusal_rate: float | None = None
    """Of the images like those of the validation set, the share that may be refused as novel; 0 for
    no check. None: `cutoffs.DEFAULT_RATE`, or the lowest rate up to 0.05 that the images can hold;
    no check where they cannot."""
    error_rate: float | None = None
    """Of the images of a class, the share that may lack the class in the prediction set; None for
    a model that never abstains. Of a regression, how often its interval may miss; None:
    `cutoffs.DEFAULT_MISSES`."""
    aggregation: Aggregation = field(default_factory=Aggregation)
    """Over the slices of a series."""
    intended_use: Mapping[str, Any] = field(default_factory=dict)
    """The configuration's table; see `intended_use.edits`."""
    sign: Path | None = None
    """An Ed25519 private key in PEM form."""

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise UsageError(f"--target {self.target}: expected {', '.join(TARGETS)}")
        if self.distil is not None and self.distil not in ARCHITECTURES:
            raise UsageError(f"--distil {self.distil}: expected {', '.join(ARCHITECTURES)}")
        if self.distil is not None and self.quantise is None:
            raise UsageError("--distil needs --quantize, whose gate compares student and teacher")
        if self.false_refusal_rate is not None and not 0 <= self.false_refusal_rate < 1:
            found = self.false_refusal_rate
            raise UsageError(f"--false-refusal-rate is {found}; expected 0 to less than 1")
        if self.error_rate is not None and not 0 < self.error_rate < 1:
            raise UsageError(f"--error-rate is {self.error_rate}; expected between 0 and 1")
        edits(self.intended_use)


def parse_max_drop(text: str) -> float | None:
    """Read ``--max-drop``: a share from 0 to 1, or ``none``.

    Raises
    ------
    UsageError
        It is neither.
    """
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError as cause:
        raise UsageError(f"--max-drop is {text}; expected 0 to 1, or none") from cause
