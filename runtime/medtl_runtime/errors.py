"""Every failure that medtl reports to its user.

MedtlError                    exit code 1
├── UsageError                exit code 2: an option, a value, a combination
│   ├── ExtraMissing          a package of an optional extra is not installed
│   ├── EngineMissing         ONNX Runtime is not installed
│   ├── DeviceUnavailable     the device that was asked for is not there
│   └── OutputExists          nothing is overwritten without --overwrite
├── OutputNotWritten          the disk is full, or the place cannot be written to
├── ScanError                 exit code 3: one input; the others go on
│   ├── ScanNotFound          no such file, or nothing matches the pattern
│   ├── ScanUnreadable        corrupt, cut short, or not an image format that medtl reads
│   ├── ScanWithoutPixels     a DICOM object that is not an image (SR, waveform, ...)
│   ├── DecoderMissing        a compressed transfer syntax without an installed decoder
│   ├── ScanUnfit             an image that the recipe cannot prepare (colour for a grey model, ...)
│   └── ScanOutOfScope        an image that the model was not made for
└── ModelError                exit code 4: the model file
    ├── ModelNotFound         no such file, none to choose from, or several
    ├── ModelUnusable         not a medtl model, cut short, or of an unknown schema
    └── SelfTestFailed        this machine does not reproduce the stored logits

The commands catch `MedtlError`, print its one line and exit with its code. A traceback is a bug.
"""

from pathlib import Path
from typing import Any, ClassVar


class MedtlError(Exception):
    """Base of all failures that medtl reports; its text is one line for the user."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "internal-error"

    def __reduce__(self) -> tuple[Any, ...]:
        # Constructors take the facts, not the text; pickle's default would call them with the text
        # and fail, and an error would not get out of a worker process.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[MedtlError], args: tuple[Any, ...], facts: dict[str, Any]) -> MedtlError:
    base = (
        OSError if issubclass(kind, OSError) else Exception
    )  # only these two allocate differently
    error = base.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class UsageError(MedtlError, ValueError):
    """An option or a value that cannot be honoured."""

    exit_code = 2
    code = "usage"


class ExtraMissing(UsageError, ImportError):
    """A package that belongs to an optional extra is not installed."""

    code = "extra-missing"

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f'{purpose} needs the package {package}, which is missing: pip install "medtl[{extra}]"'
        )


class EngineMissing(UsageError, ImportError):
    """No engine is installed that could run a model."""

    code = "engine-missing"

    def __init__(self) -> None:
        super().__init__(
            'no engine is installed: pip install "medtl[cpu]", '
            'or "medtl[gpu]" where there is an NVIDIA GPU'
        )


class DeviceUnavailable(UsageError, RuntimeError):
    """The device that was asked for cannot be had; medtl never falls back silently."""

    code = "device-unavailable"

    def __init__(self, device: str, found: str) -> None:
        super().__init__(f"--device {device}: {found}; use --device auto or --device cpu")


class OutputExists(UsageError, FileExistsError):
    """The output is there already."""

    code = "output-exists"

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists; choose another name or add --overwrite")


class OutputNotWritten(MedtlError, OSError):
    """An output could not be written; nothing is left under its name."""

    code = "output-not-written"

    def __init__(self, path: Path, cause: OSError) -> None:
        reason = cause.strerror or str(cause)
        super().__init__(f"{path} was not written: {reason}")


class ScanError(MedtlError):
    """One input cannot be used. The others go on."""

    exit_code = 3
    code = "scan-error"

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason


class ScanNotFound(ScanError, FileNotFoundError):
    """No such file or folder, or a pattern that matches nothing."""

    code = "scan-not-found"

    # OSError's own __str__ shows errno fields that are not set here.
    __str__ = Exception.__str__


class ScanUnreadable(ScanError, ValueError):
    """The file is corrupt, cut short, or of a format that medtl does not read."""

    code = "scan-unreadable"


class ScanWithoutPixels(ScanError, ValueError):
    """The DICOM object carries no image."""

    code = "scan-without-pixels"


class DecoderMissing(ScanError, RuntimeError):
    """No installed package decodes this transfer syntax."""

    code = "decoder-missing"


class ScanUnfit(ScanError, ValueError):
    """The recipe cannot prepare this image."""

    code = "scan-unfit"


class ScanOutOfScope(ScanError, ValueError):
    """The model was not made for this image."""

    code = "scan-out-of-scope"


class ModelError(MedtlError):
    """The model file cannot be used."""

    exit_code = 4
    code = "model-error"


class ModelNotFound(ModelError, FileNotFoundError):
    """No model file, or several to choose from."""

    code = "model-not-found"
    __str__ = Exception.__str__


class ModelUnusable(ModelError, ValueError):
    """The file is not a medtl model that this version can run."""

    code = "model-unusable"

    def __init__(self, path: Path | str, found: str) -> None:
        super().__init__(f"{path} is not a usable medtl model: {found}")


class SelfTestFailed(ModelError, RuntimeError):
    """The engine on this machine does not reproduce the logits stored in the model file."""

    code = "self-test-failed"
