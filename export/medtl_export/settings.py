"""What the user of the exporter decides."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtl_export.intended_use import edits
from medtl_runtime.decision import Aggregation
from medtl_runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that determines a model file, given the run and the machine.

    Raises
    ------
    UsageError
        A value is out of its limits; the message names the option.
    """

    quantise: bool = False
    """Write the int8 model, if it is faster here and no worse than ``max_drop`` allows."""
    max_drop: float = 0.005
    """Largest accepted loss of AUROC on the validation set."""
    false_refusal_rate: float | None = None
    """Of the images like those of the validation set, the share that may be refused as novel; 0 for
    no check. None: `cutoffs.DEFAULT_RATE`, or the lowest rate up to 0.05 that the images can hold;
    no check where they cannot."""
    error_rate: float | None = None
    """Of the images of a class, the share that may lack the class in the prediction set; None for
    a model that never abstains."""
    aggregation: Aggregation = field(default_factory=Aggregation)
    """Over the slices of a series."""
    intended_use: Mapping[str, Any] = field(default_factory=dict)
    """The configuration's table; see `intended_use.edits`."""
    sign: Path | None = None
    """An Ed25519 private key in PEM form."""

    def __post_init__(self) -> None:
        if self.false_refusal_rate is not None and not 0 <= self.false_refusal_rate < 1:
            found = self.false_refusal_rate
            raise UsageError(f"--false-refusal-rate is {found}; expected 0 to less than 1")
        if self.error_rate is not None and not 0 < self.error_rate < 1:
            raise UsageError(f"--error-rate is {self.error_rate}; expected between 0 and 1")
        edits(self.intended_use)
