"""Which images, whose, what is asked of them, and in which split."""

from dataclasses import dataclass
from typing import Annotated, Literal

from medtl_runtime.errors import UsageError
from medtl_train.config.checks import require, require_choice

MissingLabels = Literal["auto", "refuse", "drop", "mask"]
MissingCovariates = Literal["refuse", "drop", "impute", "mask"]
NearDuplicates = Literal["group", "drop", "keep"]

NO_CACHE = "none"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, whose, what is asked of them, and in which split."""

    path_column: Annotated[str, "Manifest column with the image's path."] = "path"
    label_column: Annotated[
        str,
        "Manifest columns with labels: COLUMN[:KIND], separated by commas. Kinds: classes, binary, "
        "grades or grades=LOW<…<HIGH, value or value=UNIT.",
    ] = "label"
    missing_labels: Annotated[
        MissingLabels,
        "An image without a label: refuse the data, drop the image, or mask the label in the loss. "
        "auto: refuse with one label column, mask with several.",
    ] = "auto"
    patient_column: Annotated[str, "Manifest column with the patient; used if present."] = (
        "patient_id"
    )
    split_column: Annotated[str, "Manifest column with train, val or test; used if present."] = (
        "split"
    )
    site_column: Annotated[str, "Manifest column with the site; used if present."] = "site"
    covariates: Annotated[
        str, "Manifest columns to report by, such as age,sex,scanner, separated by commas."
    ] = ""
    missing_covariates: Annotated[
        MissingCovariates,
        "An image without a covariate: refuse the data, drop the image, impute the training "
        "images' median or most frequent value, or mask it as unknown.",
    ] = "mask"
    val_fraction: Annotated[float, "Share of the patients for validation."] = 0.15
    test_fraction: Annotated[float, "Share of the patients for the test; 0 for none."] = 0.15
    folds: Annotated[
        int, "Cross-validation: each of so many folds is the test set once; 0 for none."
    ] = 0
    repeats: Annotated[int, "How often the folds are drawn anew."] = 1
    near_duplicates: Annotated[
        NearDuplicates,
        "Images that nearly equal another: group them into one split, drop all but one, or keep.",
    ] = "group"
    external: Annotated[
        str | None, "Other data with the same labels, for evaluation alone: the external test set."
    ] = None
    positive: Annotated[
        str | None, "Of two classes, the one to find; the second by name if not given."
    ] = None
    cache: Annotated[
        str | None,
        "Folder that keeps prepared images for the next run; none: only memory does. Default: "
        "medtl/train in the user's cache folder.",
    ] = None
    readers: Annotated[int | None, "Processes that read images. Default: one for each core."] = None

    def __post_init__(self) -> None:
        require(0 < self.val_fraction < 0.5, "val_fraction", self.val_fraction, "0 to 0.5")
        require(0 <= self.test_fraction < 0.5, "test_fraction", self.test_fraction, "0 to 0.5")
        require_choice(self, "missing_labels", MissingLabels)
        require_choice(self, "missing_covariates", MissingCovariates)
        require_choice(self, "near_duplicates", NearDuplicates)
        require(self.folds == 0 or self.folds >= 2, "folds", self.folds, "2 or more, or 0 for none")
        require(self.repeats >= 1, "repeats", self.repeats, "1 or more")
        if self.readers is not None:
            require(self.readers >= 1, "readers", self.readers, "1 or more")
        if self.repeats > 1 and not self.folds:
            raise UsageError("--repeats has no effect without --folds")
        if self.folds and self.test_fraction != type(self).test_fraction:
            raise UsageError("--test-fraction has no effect with --folds: each fold is a test set")
        if self.folds and 1 / self.folds + self.val_fraction > 0.8:
            raise UsageError(
                f"--folds {self.folds} with --val-fraction {self.val_fraction} leaves less than a "
                "fifth of the patients for training"
            )

    @property
    def covariate_names(self) -> tuple[str, ...]:
        """The columns of `covariates`."""
        return tuple(dict.fromkeys(n.strip() for n in self.covariates.split(",") if n.strip()))
