"""The file of what a site fitted, bound to its model."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from medtl_runtime.decision import Decision, HeadDecision, NoveltyCutoffs, OperatingPoint, Triage
from medtl_runtime.errors import OutputExists, OutputNotWritten, SiteFileUnusable
from medtl_runtime.heads import Head
from medtl_runtime.site import find_site, read_site, site_path, write_site

HEADS = (Head(name="label", classes=("healthy", "lesion")),)
MODEL = "sha256:" + "a" * 64
DECISION = Decision(
    heads=(
        HeadDecision(
            temperature=1 / 3,
            operating_point=OperatingPoint(
                rule="threshold", positive="lesion", threshold=0.1 + 0.2
            ),
            triage=Triage(error_rate=0.1, thresholds=(0.2, 2 / 3), images=120),
        ),
    ),
    novelty=NoveltyCutoffs(energy=-1.5, mahalanobis=80.0, false_refusal_rate=0.02, images=120),
)
ACCOUNT = {"cases": {"healthy": 60, "lesion": 60}, "after": {"accuracy": 0.9}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "liver.site.json"
    write_site(path, model_digest=MODEL, decision=DECISION, unit="image", account=ACCOUNT)
    return path


def test_what_was_written_is_read_to_the_last_bit(path: Path) -> None:
    site = read_site(path, MODEL, HEADS)
    assert (site.decision, site.unit, site.account) == (DECISION, "image", ACCOUNT)
    assert site.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_lies_beside_its_model(tmp_path: Path) -> None:
    model = tmp_path / "liver.v2.onnx"
    assert site_path(model) == tmp_path / "liver.v2.site.json"
    assert find_site(model) is None
    site_path(model).touch()
    assert find_site(model) == site_path(model)


def test_a_link_to_nothing_is_an_error_and_not_passed_over(tmp_path: Path) -> None:
    model = tmp_path / "liver.onnx"
    site_path(model).symlink_to(tmp_path / "gone.json")
    found = find_site(model)
    assert found is not None
    with pytest.raises(SiteFileUnusable):
        read_site(found, MODEL, HEADS)


def test_that_of_another_model_is_refused_with_both_digests(path: Path) -> None:
    other = "sha256:" + "b" * 64
    with pytest.raises(SiteFileUnusable, match=f"{MODEL}, and the model is {other}.*--no-site"):
        read_site(path, other, HEADS)


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def with_temperature(value: float) -> dict[str, Any]:
    document = DECISION.to_json()
    document["heads"][0]["temperature"] = value
    return document


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 99}, "schema version 99; this version of medtl reads 2"),
        ({"schema_version": None}, "schema version None"),
        ({"decision": None}, "malformed"),
        ({"decision": with_temperature(0)}, "temperature is 0"),
        ({"decision": with_temperature(float("nan"))}, "temperature is nan"),
        ({"decision": {**DECISION.to_json(), "extra": 1}}, "extra"),
        ({"unit": "patient"}, "unit"),
        ({"account": [1]}, "account"),
    ],
)
def test_a_field_that_makes_no_sense_is_refused_by_name(
    path: Path, change: dict[str, Any], words: str
) -> None:
    changed(path, **change)
    with pytest.raises(SiteFileUnusable, match=words):
        read_site(path, MODEL, HEADS)


def test_a_missing_field_is_refused(path: Path) -> None:
    document = json.loads(path.read_text())
    for name in set(document) - {"medtl_version"}:
        path.write_text(json.dumps({key: one for key, one in document.items() if key != name}))
        with pytest.raises(SiteFileUnusable):
            read_site(path, MODEL, HEADS)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b"[" * 100_000, b" " * (1 << 20) + b"{}"],
    ids=["empty", "cut", "list", "text", "null", "bytes", "deep", "large"],
)
def test_a_damaged_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(SiteFileUnusable, match="damaged"):
        read_site(path, MODEL, HEADS)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteFileUnusable):
        read_site(tmp_path, MODEL, HEADS)


def test_classes_of_another_model_are_refused(path: Path) -> None:
    with pytest.raises(SiteFileUnusable, match="malformed"):
        read_site(path, MODEL, ("healthy", "cyst", "lesion"))


def test_nothing_is_overwritten_unless_it_may(path: Path) -> None:
    before = path.read_bytes()
    fields: dict[str, Any] = {"model_digest": MODEL, "unit": "series", "account": {}}
    with pytest.raises(OutputExists):
        write_site(path, decision=Decision(heads=(HeadDecision(),)), **fields)
    assert path.read_bytes() == before
    write_site(path, decision=Decision(heads=(HeadDecision(),)), overwrite=True, **fields)
    site = read_site(path, MODEL, HEADS)
    assert (site.decision, site.unit) == (Decision(heads=(HeadDecision(),)), "series")


def test_a_place_that_cannot_be_written_to_is_an_error(path: Path) -> None:
    with pytest.raises(OutputNotWritten):
        write_site(
            path / "below.json", model_digest=MODEL, decision=DECISION, unit="image", account={}
        )
