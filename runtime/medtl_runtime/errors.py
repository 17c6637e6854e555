"""Every failure that medtl reports to its user.

MedtlError                    exit code 1
├── UsageError                exit code 2: an option, a value, a combination
│   ├── ExtraMissing          a package of an optional extra is not installed
│   ├── EngineMissing         ONNX Runtime is not installed
│   ├── DeviceUnavailable     the device that was asked for is not there
│   └── OutputExists          nothing is overwritten without --overwrite
├── OutputNotWritten          the disk is full, or the place cannot be written to
├── AuditLogBroken            exit code 1: an entry of an audit log was changed or removed
├── ScanError                 exit code 3: one input; the others go on
│   ├── ScanNotFound          no such file, or nothing matches the pattern
│   ├── ScanUnreadable        corrupt, cut short, or not an image format that medtl reads
│   ├── ScanWithoutPixels     a DICOM object that is not an image (SR, waveform, ...)
│   ├── DecoderMissing        a compressed transfer syntax without an installed decoder
│   ├── ScanTooLarge          refused: more pixels or bytes than medtl takes in at once
│   ├── ScanUnfit             refused: the recipe cannot prepare it (colour for a grey model, ...)
│   ├── SeriesUnfit           refused: slices that do not make one regular series
│   └── ScanOutOfScope        refused: an image that the model was not made for
│       └── ScanNovel         refused: unlike what the model was trained on
└── ModelError                exit code 4: the model file, or what lies beside it
    ├── ModelNotFound         no such file, none to choose from, or several
    ├── ModelUnusable         not a medtl model, cut short, or of an unknown schema
    ├── ModelUntrusted        no signature by the required key, or one that does not fit
    ├── SiteFileUnusable      a site file of another model, or a damaged one
    └── SelfTestFailed        this machine does not reproduce the stored logits

The commands catch `MedtlError`, print its one line and exit with its code. A traceback is a bug.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal


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


class AuditLogBroken(MedtlError, ValueError):
    """The chain of an audit log does not hold: an entry was changed, moved or removed."""

    code = "audit-log-broken"


class ScanError(MedtlError):
    """One input cannot be used. The others go on."""

    exit_code = 3
    code = "scan-error"

    status: ClassVar[Literal["error", "refused"]] = "error"
    """``error``: it could not be read; ``refused``: it could, and no score is given for it."""

    def __init__(
        self,
        source: str,
        reason: str,
        *,
        attribute: str | None = None,
        found: object = None,
        expected: object = None,
    ) -> None:
        """Make an error.

        Parameters
        ----------
        source
            The name of the input.
        reason
            Why, without the name: logs show it, so it holds no patient data.
        attribute
            What was checked: a DICOM keyword, or the name of a score.
        found, expected
            Its value and what was asked for, as JSON values; results show them, logs do not.
        """
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason
        self.attribute = attribute
        self.found = found
        self.expected = expected


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


class ScanTooLarge(ScanError, ValueError):
    """The input claims or holds more than medtl takes in at once."""

    code = "scan-too-large"
    status = "refused"


class ScanUnfit(ScanError, ValueError):
    """The recipe cannot prepare this image."""

    code = "scan-unfit"
    status = "refused"


class SeriesUnfit(ScanError, ValueError):
    """The slices do not make one regular series."""

    code = "series-unfit"
    status = "refused"


class ScanOutOfScope(ScanError, ValueError):
    """The model was not made for this image."""

    code = "scan-out-of-scope"
    status = "refused"


class ScanNovel(ScanOutOfScope):
    """The image is unlike what the model was trained on."""

    code = "out-of-distribution"


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


class ModelUntrusted(ModelError, PermissionError):
    """The file is not signed by the required key, or was changed since it was signed."""

    code = "model-untrusted"
    __str__ = Exception.__str__


class SiteFileUnusable(ModelError, ValueError):
    """The site file beside a model is damaged, or was made for another model."""

    code = "site-file-unusable"

    def __init__(self, path: Path | str, found: str) -> None:
        super().__init__(f"{path} is not a usable site file: {found}")


class SelfTestFailed(ModelError, RuntimeError):
    """The engine on this machine does not reproduce the logits stored in the model file."""

    code = "self-test-failed"
