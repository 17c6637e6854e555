"""An entry says which image and which outcome, and nothing of the patient."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medtl_runtime import __version__
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.answers import Answer
from medtl_runtime.audit_entries import entries_of, instance_hash, start_entry, stop_entry
from medtl_runtime.errors import ScanNotFound, ScanOutOfScope
from medtl_runtime.heads import Head
from medtl_runtime.recipe import Canonical
from medtl_runtime.results import CaseResult, Failure, Result
from medtl_runtime.scan import Header

KEY = bytes(range(32))
UID = "1.2.826.0.1.3680043.8.498.1"
MODEL = {"name": "liver", "version": "1", "precision": "int8", "digest": "sha256:ab", "site": None}
RUN: dict[str, Any] = {"model": MODEL, "engine": "fake engine"}
HEADER = Header(sop_instance_uid=UID, patient_id="PLANTED", modality="MR", patient_age=61.5)


HEADS = (Head(name="label", classes=("lesion", "normal")),)
ANSWERS = {
    "label": Answer(
        kind="multiclass", finding="lesion", probabilities={"lesion": 0.9, "normal": 0.1}
    )
}


def result(**changes: Any) -> Result:
    one = Result(
        scan="/PLANTED/PLANTED.dcm",
        frame=3,
        header=HEADER,
        answers=ANSWERS,
        heads=HEADS,
        novelty=None,
        warnings=(),
        logits=np.zeros(2, np.float32),
        cam=np.zeros((2, 4, 4), np.float32),
        embedding=np.zeros(4, np.float32),
        canonical=Canonical(pixels=np.zeros((1, 8, 8), np.uint16), voi="header"),
        model=dict(MODEL),
        engine="fake engine",
        milliseconds={},
    )
    return dataclasses.replace(one, **changes)


def refusal() -> Failure:
    error = ScanOutOfScope(
        "/PLANTED.dcm",
        "PatientAge is PLANTED",
        attribute="PatientAge",
        found="PLANTED",
        expected="18 to 99",
    )
    return Failure(scan="/PLANTED.dcm", error=error, header=HEADER, frame=0)


def reference_hmac(key: bytes, message: bytes) -> str:
    """HMAC-SHA256 as RFC 2104 defines it, for keys of up to 64 bytes."""
    padded = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in padded) + message).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in padded) + inner).hexdigest()


def test_an_image_is_known_by_a_keyed_hash() -> None:
    assert instance_hash(KEY, UID) == reference_hmac(KEY, UID.encode())
    assert instance_hash(KEY, UID) != instance_hash(KEY[::-1], UID)
    assert instance_hash(KEY, UID) != instance_hash(KEY, UID + "1")
    assert len(instance_hash(KEY, "\udce5 of a damaged file")) == 64


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_the_hash_is_what_openssl_computes_as_documented() -> None:
    command = f"printf %s {UID} | openssl dgst -sha256 -mac HMAC -macopt hexkey:{KEY.hex()}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == instance_hash(KEY, UID)


def test_the_entry_of_a_result() -> None:
    assert entries_of(result(), KEY, **RUN) == [
        {
            "event": "scan",
            "model": "sha256:ab",
            "site": None,
            "engine": "fake engine",
            "instance": instance_hash(KEY, UID),
            "frame": 3,
            "status": "ok",
            "answers": {"label": "lesion"},
            "reason": None,
            "attribute": None,
        }
    ]


def test_the_entry_of_an_abstention_has_no_finding() -> None:
    unsure = {"label": dataclasses.replace(ANSWERS["label"], finding=None)}
    (entry,) = entries_of(result(answers=unsure), KEY, **RUN)
    assert (entry["status"], entry["reason"]) == ("abstained", None)
    assert entry["answers"] == {"label": None}


def test_the_entry_of_several_heads_has_the_answer_of_each() -> None:
    age = Answer(kind="regression", value=61.4999999, unit="a")
    (entry,) = entries_of(result(answers={**ANSWERS, "age": age}), KEY, **RUN)
    assert entry["answers"] == {"label": "lesion", "age": 61.5}


def test_the_entry_of_a_refusal_names_the_attribute_and_not_its_value() -> None:
    (entry,) = entries_of(refusal(), KEY, model={**MODEL, "site": "sha256:cd"}, engine="e")
    assert entry == {
        "event": "scan",
        "model": "sha256:ab",
        "site": "sha256:cd",
        "engine": "e",
        "instance": instance_hash(KEY, UID),
        "frame": 0,
        "status": "refused",
        "answers": None,
        "reason": "scan-out-of-scope",
        "attribute": "PatientAge",
    }


def test_an_image_without_a_uid_has_no_hash() -> None:
    missing = Failure(scan="PLANTED.dcm", error=ScanNotFound("PLANTED.dcm", "no such file"))
    for outcome in (missing, result(header=Header())):
        (entry,) = entries_of(outcome, KEY, **RUN)
        assert entry["instance"] is None
    (entry,) = entries_of(missing, KEY, **RUN)
    assert (entry["frame"], entry["status"], entry["reason"]) == (None, "error", "scan-not-found")


def test_a_series_is_the_entries_of_its_slices_and_its_own() -> None:
    case = CaseResult(
        scan="/PLANTED",
        series_instance_uid="1.2.3",
        aggregation=Aggregation(),
        answers=ANSWERS,
        notes=("PLANTED",),
        slices=[result(frame=0), refusal(), result(frame=1)],
    )
    *slices, series = entries_of(case, KEY, **RUN)
    assert slices == [entry for one in case.slices for entry in entries_of(one, KEY, **RUN)]
    assert series == {
        "event": "series",
        "model": "sha256:ab",
        "site": None,
        "engine": "fake engine",
        "instance": instance_hash(KEY, "1.2.3"),
        "status": "ok",
        "answers": {"label": "lesion"},
        "slices": {"ok": 2, "refused": 1},
    }


def test_no_entry_holds_what_is_of_the_patient_or_a_path() -> None:
    for outcome in (result(), refusal()):
        written = json.dumps(entries_of(outcome, KEY, **RUN))
        for planted in ("PLANTED", "61.5", UID, ".dcm", "18 to 99"):
            assert planted not in written


class Choice(StrEnum):
    fast = "fast"


def test_the_start_keeps_switches_numbers_and_choices_and_no_other_value() -> None:
    options = {
        "as_json": True,
        "threads": 4,
        "rate": 0.5,
        "mode": Choice.fast,
        "heatmap": Path("/PLANTED"),
        "scans": ["PLANTED"],
        "device": "PLANTED",
        "csv": None,
    }
    assert start_entry(**RUN, options=options) == {
        "event": "start",
        "version": __version__,
        "model": "sha256:ab",
        "site": None,
        "engine": "fake engine",
        "options": {
            "as_json": True,
            "threads": 4,
            "rate": 0.5,
            "mode": "fast",
            "heatmap": "given",
            "scans": "given",
            "device": "given",
        },
    }


def test_the_stop_counts_outcomes() -> None:
    assert stop_entry({"ok": 3, "error": 1}) == {
        "event": "stop",
        "counts": {"ok": 3, "error": 1},
    }
