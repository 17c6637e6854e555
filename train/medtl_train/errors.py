"""Failures of training, all of them `MedtlError`.

UsageError
├── DataUnfit                 a class is empty, a patient is in two splits, ...
├── RunUnfit                  a run to start from or to resume does not fit this one
├── ImagesMissing             images of a finished run are gone, or are not what they were
└── (WeightsUnfit, in medtl_models.weights)
MedtlError
├── CheckpointUnusable        not a checkpoint, damaged, or of another version
├── Diverged                  the loss is not a number
├── MemoryTooSmall            a step's images do not fit into the GPU's memory
├── ProcessLost               another process of torchrun has ended before its time
└── Interrupted               Ctrl-C; the last checkpoint is kept
"""

from pathlib import Path

from medtl_runtime.errors import MedtlError, UsageError


class DataUnfit(UsageError):
    """The data cannot be trained on as they are."""

    code = "data-unfit"


class RunUnfit(UsageError):
    """The run that was named does not fit this one."""

    code = "run-unfit"


class ImagesMissing(UsageError, FileNotFoundError):
    """Images of a run's splits cannot be read any more, or have changed since."""

    code = "images-missing"
    __str__ = Exception.__str__  # OSError's own shows errno fields that are not set here


class CheckpointUnusable(UsageError):
    """The file is not a checkpoint that this version reads."""

    code = "checkpoint-unusable"

    def __init__(self, path: Path, found: str) -> None:
        super().__init__(f"{path} is not a usable checkpoint: {found}")


class Diverged(MedtlError, ArithmeticError):
    """The loss became NaN or infinite."""

    code = "diverged"


class MemoryTooSmall(MedtlError, MemoryError):
    """A step's images do not fit into the device's memory."""

    code = "memory-too-small"


class ProcessLost(MedtlError, ConnectionError):
    """Another process of a run on several devices has ended before its time."""

    code = "process-lost"
    __str__ = Exception.__str__  # OSError's own shows errno fields that are not set here


class Interrupted(MedtlError):
    """Training was interrupted; what had been reached is kept."""

    exit_code = 130
    code = "interrupted"
