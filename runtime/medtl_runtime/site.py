"""The site file: what a hospital fitted to its own cases, beside the model and bound to it.

Thresholds do not travel: another scanner, another population. ``medtl-infer calibrate`` refits the
`Decision` on local labelled cases; the network and the recipe stay what they were.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from medtl_runtime import __version__
from medtl_runtime.decision import Decision
from medtl_runtime.errors import SiteFileUnusable, UsageError
from medtl_runtime.files import refuse_existing, write_text
from medtl_runtime.heads import Head

SCHEMA_VERSION = 2

Unit = Literal["image", "series"]

_MOST_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site file that was read."""

    decision: Decision
    digest: str
    """``sha256:`` and the hexadecimal SHA-256 of the file."""
    unit: Unit
    """What it was fitted to: findings of images, or of series."""
    account: Mapping[str, Any]
    """On what it was fitted, and what it measured before and after."""


def site_path(model: Path) -> Path:
    """Return where the site file of a model file lies: ``liver.site.json`` for ``liver.onnx``."""
    return model.with_suffix(".site.json")


def find_site(model: Path) -> Path | None:
    """Return the site file beside a model file, or None."""
    path = site_path(model)
    return path if os.path.lexists(path) else None  # a link to nothing is not passed over


def write_site(
    path: Path,
    *,
    model_digest: str,
    decision: Decision,
    unit: Unit,
    account: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write a site file whole.

    Parameters
    ----------
    path
        See `site_path`.
    model_digest
        Of the model file that it is for, the only one that will take it.
    decision, unit
        See `Site`.
    account
        JSON values; counts and measures, nothing of a patient.

    Raises
    ------
    OutputExists, OutputNotWritten
        As their names say.
    """
    refuse_existing(path, overwrite=overwrite)
    document = {
        "schema_version": SCHEMA_VERSION,
        "medtl_version": __version__,
        "model_digest": model_digest,
        "decision": decision.to_json(),
        "unit": unit,
        "account": dict(account),
    }
    write_text(path, json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_site(path: Path, model_digest: str, heads: Sequence[Head]) -> Site:
    """Read the site file of a model.

    Raises
    ------
    SiteFileUnusable
        It was made for another model, or is damaged.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as cause:
        raise SiteFileUnusable(path, cause.strerror or "it cannot be read") from cause
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError("it is too large")
        document = json.loads(content)
        version, owner = document["schema_version"], document["model_digest"]
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        raise SiteFileUnusable(path, "it is damaged") from cause
    if version != SCHEMA_VERSION:
        expected = f"this version of medtl reads {SCHEMA_VERSION}"
        raise SiteFileUnusable(path, f"schema version {version}; {expected}")
    if owner != model_digest:
        digests = f"made for {owner}, and the model is {model_digest}"
        raise SiteFileUnusable(path, f"{digests}; fit it again, or use --no-site")
    try:
        decision = Decision.from_json(document["decision"], heads)
        unit, account = document["unit"], document["account"]
        if unit not in get_args(Unit) or not isinstance(account, dict):
            raise ValueError("unit or account make no sense")
    except (UsageError, KeyError, TypeError, ValueError) as cause:
        raise SiteFileUnusable(path, f"it is malformed ({cause})") from cause
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    return Site(decision=decision, digest=digest, unit=unit, account=account)
