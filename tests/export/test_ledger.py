"""Measurements outlive the process that made them, and only for the same question."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medtl_export.ledger import FOLDER, Ledger, ledger_for


def never() -> Any:
    raise AssertionError("measured again")


class Interrupted(BaseException):
    pass


def interrupted() -> Any:
    raise Interrupted


def test_what_is_measured_is_measured_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.json")
    assert ledger.measured("time", lambda: 3.5) == 3.5
    assert ledger.measured("time", never) == 3.5
    assert ledger.found == 1


def test_a_new_process_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.json"
    first = Ledger(path)
    first.measured("one", lambda: {"low": 0.1 + 0.2, "rounds": 60, "of": [1, None, "x"]})
    with pytest.raises(Interrupted):
        first.measured("two", interrupted)
    second = Ledger(path)
    assert second.found == 1
    assert second.measured("one", never) == {"low": 0.1 + 0.2, "rounds": 60, "of": [1, None, "x"]}
    assert second.measured("two", lambda: 2) == 2
    assert Ledger(path).measured("two", never) == 2


@pytest.mark.parametrize("value", [{"pair": (1, 2)}, {1: 0.5}, (0.1, None), True, "word"])
def test_the_first_answer_is_what_every_later_one_will_be(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "ledger.json"
    first = Ledger(path).measured("it", lambda: value)
    again = Ledger(path).measured("it", never)
    assert repr(first) == repr(again)
    assert repr(Ledger(None).measured("it", lambda: value)) == repr(first)


def test_without_a_file_it_remembers_for_as_long_as_it_lives() -> None:
    ledger = Ledger(None)
    assert ledger.measured("one", lambda: 1) == ledger.measured("one", never) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"one": 1', b"[1, 2]", b"null", b'"one"', b"\xff\xfe\x00", b"\x00" * 20],
)
def test_a_damaged_file_counts_as_none_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.json"
    path.write_bytes(content)
    ledger = Ledger(path)
    assert ledger.found == 0
    assert ledger.measured("one", lambda: 1) == 1
    assert json.loads(path.read_text()) == {"one": 1}


def test_a_folder_in_the_place_of_the_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").mkdir()
    assert Ledger(tmp_path / "ledger.json").measured("one", lambda: 1) == 1


def test_where_it_cannot_be_written_it_goes_on_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "no folder"
    file.write_text("a file where the folder would be")
    ledger = Ledger(file / "ledger.json")
    assert ledger.measured("one", lambda: 1) == 1
    assert ledger.measured("two", lambda: 2) == 2
    assert ledger.measured("one", never) == 1
    assert file.read_text() == "a file where the folder would be"


def test_the_same_facts_have_the_same_ledger_in_whatever_order(tmp_path: Path) -> None:
    ledger_for(tmp_path, {"target": "cpu", "threads": None}).measured("one", lambda: 1)
    assert ledger_for(tmp_path, {"threads": None, "target": "cpu"}).measured("one", never) == 1
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts | {"target": "arm"},
        lambda facts: facts | {"threads": 1},
        lambda facts: facts | {"machine": {"cpu": "other", "cores": 2}},
        lambda facts: facts | {"more": 0},
        lambda facts: {"target": facts["target"]},
    ],
)
def test_other_facts_have_another_ledger(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    facts = {"target": "cpu", "threads": None, "machine": {"cpu": "this", "cores": 2}}
    ledger_for(tmp_path, facts).measured("one", lambda: 1)
    other = ledger_for(tmp_path, change(facts))
    assert other.found == 0
    assert other.measured("one", lambda: 2) == 2
    assert ledger_for(tmp_path, facts).measured("one", never) == 1
