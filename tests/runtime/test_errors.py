"""Every failure has a code, a line and a way across processes."""

import inspect
import pickle
from pathlib import Path

import pytest

from medtl_runtime import errors
from medtl_runtime.errors import (
    AuditLogBroken,
    DecoderMissing,
    DeviceUnavailable,
    EngineMissing,
    ExtraMissing,
    MedtlError,
    ModelError,
    ModelNotFound,
    ModelUntrusted,
    ModelUnusable,
    OutputExists,
    OutputNotWritten,
    ScanError,
    ScanNotFound,
    ScanNovel,
    ScanOutOfScope,
    ScanTooLarge,
    ScanUnfit,
    ScanUnreadable,
    ScanWithoutPixels,
    SelfTestFailed,
    SeriesUnfit,
    SiteFileUnusable,
    UsageError,
)

FAILURES = [
    MedtlError("text"),
    UsageError("text"),
    ExtraMissing("torch", extra="train", purpose="training"),
    EngineMissing(),
    DeviceUnavailable("cuda", "there is no NVIDIA GPU"),
    OutputExists(Path("heat.png")),
    OutputNotWritten(Path("heat.png"), OSError(28, "No space left on device")),
    AuditLogBroken("text"),
    ScanError("scan.dcm", "reason"),
    ScanNotFound("scan.dcm", "no such file"),
    ScanUnreadable("scan.dcm", "reason"),
    ScanWithoutPixels("scan.dcm", "reason"),
    DecoderMissing("scan.dcm", "reason"),
    ScanTooLarge("scan.dcm", "reason", attribute="Rows", found=10**6, expected="at most 8192"),
    ScanUnfit("scan.dcm", "reason"),
    SeriesUnfit("study#1.2", "reason", attribute="Modality", found=["CT", "MR"]),
    ScanOutOfScope("scan.dcm", "reason", attribute="Modality", found="MR", expected="CT"),
    ScanNovel("scan.dcm", "reason", attribute="energy", found=3.5, expected="at most 2"),
    ModelError("text"),
    ModelNotFound("text"),
    ModelUnusable(Path("m.onnx"), "cut short"),
    ModelUntrusted("text"),
    SiteFileUnusable(Path("m.site.json"), "it is damaged"),
    SelfTestFailed("text"),
]


def test_the_list_above_is_complete() -> None:
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass)}
    assert {type(error) for error in FAILURES} == {k for k in kinds if issubclass(k, MedtlError)}


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_is_one_line_with_the_exit_code_of_its_family(error: MedtlError) -> None:
    families = {UsageError: 2, ScanError: 3, ModelError: 4}
    expected = next((code for kind, code in families.items() if isinstance(error, kind)), 1)
    assert error.exit_code == expected
    assert str(error)
    assert len(str(error).splitlines()) == 1
    assert "Errno" not in str(error)
    assert error.code == error.code.lower().replace(" ", "-")


def test_each_failure_has_a_code_of_its_own() -> None:
    codes = [error.code for error in FAILURES]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_gets_out_of_a_worker_process(error: MedtlError) -> None:
    """Process pools pickle what their workers raise."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_failures_are_also_of_the_builtin_kind_that_fits() -> None:
    assert issubclass(ScanNotFound, FileNotFoundError)
    assert issubclass(ScanUnreadable, ValueError)
    assert issubclass(OutputNotWritten, OSError)
    assert issubclass(OutputExists, FileExistsError)
    assert issubclass(ModelNotFound, FileNotFoundError)
    assert issubclass(EngineMissing, ImportError)


def test_what_can_be_read_and_is_not_scored_is_refused_and_the_rest_are_errors() -> None:
    refusals = {kind for kind in map(type, FAILURES) if getattr(kind, "status", "") == "refused"}
    assert refusals == {ScanTooLarge, ScanUnfit, SeriesUnfit, ScanOutOfScope, ScanNovel}
    assert ScanUnreadable.status == DecoderMissing.status == "error"
    assert issubclass(ScanNovel, ScanOutOfScope)


def test_the_facts_of_a_refusal_are_kept_apart_from_its_reason() -> None:
    error = ScanOutOfScope("a.dcm", "PatientAge is ...", attribute="PatientAge", found=3.0)
    assert (error.source, error.reason) == ("a.dcm", "PatientAge is ...")
    assert (error.attribute, error.found, error.expected) == ("PatientAge", 3.0, None)


def test_messages_are_built_from_the_facts() -> None:
    assert str(FAILURES[2]) == (
        'training needs the package torch, which is missing: pip install "medtl[train]"'
    )
    assert str(FAILURES[6]) == "heat.png was not written: No space left on device"
    assert str(FAILURES[9]) == "scan.dcm: no such file"
    unusable = ModelUnusable(Path("m.onnx"), "cut short")
    assert str(unusable) == "m.onnx is not a usable medtl model: cut short"
    damaged = SiteFileUnusable("m.site.json", "it is damaged")
    assert str(damaged) == "m.site.json is not a usable site file: it is damaged"
    assert "--device cuda: there is no NVIDIA GPU" in str(FAILURES[4])
    assert "--overwrite" in str(FAILURES[5])
