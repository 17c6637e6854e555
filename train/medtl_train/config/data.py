"""Which images, whose, and in which split."""

from dataclasses import dataclass
from typing import Annotated

from medtl_train.config.checks import require


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, whose, and in which split."""

    path_column: Annotated[str, "Manifest column with the image's path."] = "path"
    label_column: Annotated[str, "Manifest column with the label."] = "label"
    patient_column: Annotated[str, "Manifest column with the patient; used if present."] = (
        "patient_id"
    )
    split_column: Annotated[str, "Manifest column with train, val or test; used if present."] = (
        "split"
    )
    val_fraction: Annotated[float, "Share of the patients for validation."] = 0.15
    test_fraction: Annotated[float, "Share of the patients for the test; 0 for none."] = 0.15
    positive: Annotated[
        str | None, "Of two classes, the one to find; the second by name if not given."
    ] = None

    def __post_init__(self) -> None:
        require(0 < self.val_fraction < 0.5, "val_fraction", self.val_fraction, "0 to 0.5")
        require(0 <= self.test_fraction < 0.5, "test_fraction", self.test_fraction, "0 to 0.5")
