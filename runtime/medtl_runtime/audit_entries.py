"""What the audit log says: which model, which engine, which image, which outcome.

No names, identifiers, dates of a patient or paths are in it. An image is known by a keyed hash of
its SOP Instance UID, HMAC-SHA256 (RFC 2104), because without a key anyone with a list of UIDs could
look them up. Who has the key finds an image with `instance_hash`, or with any other tool::

    printf %s UID | openssl dgst -sha256 -mac HMAC -macopt hexkey:$(cat audit.jsonl.key)
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from medtl_runtime import __version__

if TYPE_CHECKING:
    from medtl_runtime.results import Answered, Outcome


def instance_hash(key: bytes, uid: str) -> str:
    """Return the keyed hash by which the log knows a SOP or Series Instance UID, 64 hex digits."""
    return hmac.new(key, uid.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def start_entry(
    *, model: Mapping[str, str | None], engine: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the entry that begins a run.

    Parameters
    ----------
    model
        `Predictor.model`.
    engine
        The engine's name.
    options
        The command's options. Numbers, switches and choices (`Enum`) are kept; of anything else,
        which could be a path, only that it was given.
    """
    shown = {name: _shown(value) for name, value in options.items() if value is not None}
    return {
        "event": "start",
        "version": __version__,
        **_run(model, engine),
        "options": shown,
    }


def _shown(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, bool | int | float) else "given"


def _run(model: Mapping[str, str | None], engine: str) -> dict[str, Any]:
    return {"model": model["digest"], "site": model["site"], "engine": engine}


def entries_of(
    outcome: "Outcome", key: bytes, *, model: Mapping[str, str | None], engine: str
) -> list[dict[str, Any]]:
    """Return the entries for one outcome: one ``scan``, or for a series its slices and itself.

    ``instance`` is the keyed hash of the SOP Instance UID, of a ``series`` that of its Series
    Instance UID; None for images that have none, and for files that could not be read. Of a
    refusal the attribute is named, not its value.

    Parameters
    ----------
    key
        `AuditLog.key`.
    model, engine
        As for `start_entry`.
    """
    from medtl_runtime.results import CaseResult, Failure

    run = _run(model, engine)
    if isinstance(outcome, CaseResult):
        entries = []
        for one in outcome.slices:
            entries += entries_of(one, key, model=model, engine=engine)
        series = {
            "event": "series",
            **run,
            "instance": _hashed(key, outcome.series_instance_uid),
            "status": outcome.status,
            "answers": _answers(outcome),
            "slices": dict(Counter(one.status for one in outcome.slices)),
        }
        return [*entries, series]
    failed = isinstance(outcome, Failure)
    scan = {
        "event": "scan",
        **run,
        "instance": _hashed(key, outcome.header.sop_instance_uid),
        "frame": outcome.frame,
        "status": outcome.status,
        "answers": None if failed else _answers(outcome),
        "reason": outcome.error.code if failed else None,
        "attribute": outcome.error.attribute if failed else None,
    }
    return [scan]


def _answers(outcome: "Answered") -> dict[str, str | float | None]:
    """Return the finding, or the value, of each head; None where it abstains."""
    return {
        name: one.finding if one.value is None else round(one.value, 6)
        for name, one in outcome.answers.items()
    }


def _hashed(key: bytes, uid: str) -> str | None:
    return instance_hash(key, uid) if uid else None


def stop_entry(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the entry that ends a run; ``counts`` is the number of outcomes by their status."""
    return {"event": "stop", "counts": dict(counts)}
