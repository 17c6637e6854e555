"""The model card: what a model file is, how good it is and what it is not for, for people.

The sections are those of Mitchell et al., Model Cards for Model Reporting (FAT* 2019), with what
TRIPOD+AI (Collins et al., BMJ 2024) and MI-CLAIM (Norgeot et al., Nat Med 2020) ask for beyond, as
far as medtl knows it; what it cannot know is listed as such. All of it follows from the description
in the model file, so that the same file has the same card.
"""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medtl_export import card_words as words
from medtl_export.card_decision import decision_sentences
from medtl_runtime.modelfile import Description

CARD_VERSION = 2

NAMES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "f1": "F1",
    "recall": "recall (sensitivity)",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "ece_adaptive": "expected calibration error, bins of equal counts",
    "agreement_low": "lower limit of agreement",
    "agreement_high": "upper limit of agreement",
    "mae": "mean absolute error",
    "rmse": "root mean square error",
    "r2": "R²",
    "pearson": "Pearson correlation",
    "concordance": "concordance correlation",
    "grade_mae": "mean absolute error in grades",
}
"""How metrics are called, where not by their own name with spaces."""

# Of the configuration; the others name columns, files and sizes that the card has elsewhere.
_TRAINING = (
    "mode",
    "epochs",
    "head_epochs",
    "batch_size",
    "optimizer",
    "lr",
    "head_lr",
    "lr_decay",
    "weight_decay",
    "dropout",
    "label_smoothing",
    "mixup",
    "cutmix",
    "ema",
    "imbalance",
    "head_weights",
    "monitor",
    "augment",
    "seed",
)
_SPLITS = {
    "train": "training",
    "val": "validation",
    "test": "test",
    "external": "external",
}

# What TRIPOD+AI asks for and no file tells.
_NOT_RECORDED = (
    "Who assigned the classes, by which criterion, and how often readers agreed (the reference "
    "standard).",
    "Where, when and on which scanners the images were acquired.",
    "How patients were chosen, and who was left out.",
    "Sex, ethnic group and other traits of the patients, apart from age where headers have it.",
    "Consent, ethics approval and funding.",
)


def card_json(
    description: Description,
    *,
    subgroups: Sequence[Mapping[str, Any]],
    digest: str,
    size_bytes: int,
    subgroup_split: str = "validation",
) -> dict[str, Any]:
    """Return the card as JSON values.

    Parameters
    ----------
    description
        As the exporter writes it, with the whole ``provenance``.
    subgroups
        Rows of `documents.subgroup_rows`; empty for none.
    digest
        ``sha256:`` and the SHA-256 of the model file, which has to be written already.
    size_bytes
        Of the model file.
    subgroup_split
        What images the subgroups are parts of: ``validation`` or ``test``.

    Returns
    -------
    Numbers as they were measured and sentences in plain text; no date and no path. The metrics that
    the quantisation account calls ``difference`` are chosen minus fp32.
    """
    assert re.fullmatch("sha256:[0-9a-f]{64}", digest), digest
    facts = description.provenance
    return {
        "card_version": CARD_VERSION,
        "model": _model(description, digest, size_bytes),
        "intended_use": {
            "rules": [words.rule_row(rule) for rule in description.intended_use.rules],
            "not_for": words.not_for(description),
        },
        "input": {"recipe": description.recipe.to_json(), "steps": words.steps(description.recipe)},
        "data": _data(facts),
        "evaluation": {
            "precision": words.evaluated_precision(description),
            **{name: facts[name] for name in ("validation", "test", "external")},
        },
        "decision": {
            **description.decision.to_json(),
            "sentences": decision_sentences(description),
        },
        "subgroups": {"split": subgroup_split, "rows": [dict(row) for row in subgroups]},
        "quantisation": _quantisation(description.quantisation),
        "parity": dict(facts["parity"]),
        "limitations": words.limitations(description, subgroups),
        "not_recorded": list(_NOT_RECORDED),
        "verification": _verification(description, digest),
    }


def _model(description: Description, digest: str, size_bytes: int) -> dict[str, Any]:
    facts, configuration = description.provenance, description.provenance["configuration"]
    return {
        "name": description.name,
        "version": description.version,
        "digest": digest,
        "size_bytes": size_bytes,
        "heads": [
            {**head.to_json(), "positive": own.operating_point.positive}
            for head, own in zip(description.heads, description.decision.heads, strict=True)
        ],
        "precision": description.precision,
        "architecture": facts["architecture"],
        "head": facts["head"],
        "parent_weights": facts["parent_weights"],
        "training": {n: configuration[n] for n in _TRAINING if configuration.get(n) is not None},
        "versions": dict(facts["versions"]),
        "requires": dict(description.requires),
    }


def _data(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "fingerprint": facts["data_fingerprint"],
        "patients_known": facts["patients_known"],
        "splits": [
            {
                "split": _SPLITS[split],
                "patients": facts["patients"][split],
                "images": images,
                "heads": facts["targets"][split],
            }
            for split, images in facts["images"].items()
        ],
    }


def _quantisation(account: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the account with what stayed in float counted by operator and reason."""
    if account is None:
        return None
    kept = account.get("kept_in_float") or ()
    reasons = Counter((one["operator"], one["reason"]) for one in kept)
    return {
        **account,
        "kept_in_float": [
            {"operator": operator, "reason": reason, "nodes": nodes}
            for (operator, reason), nodes in reasons.items()
        ],
    }


def _verification(description: Description, digest: str) -> dict[str, Any]:
    test, file = description.self_test, shlex.quote(f"{description.name}.onnx")
    commands = {
        "digest": f"sha256sum {file}",
        "selftest": f"medtl-infer --selftest --model {file}",
        "signature": f"medtl-infer --info --model {file} --require-signature KEY.pem",
    }
    return {
        "commands": commands,
        "digest": digest,
        "self_test": {"images": len(test.seeds), "tolerance": test.tolerance},
    }


def card_markdown(card: Mapping[str, Any]) -> str:
    """Return a card, as `card_json` made it, as GitHub-flavoured Markdown.

    Every value is escaped as it is filled in: names of classes hold what people typed.
    """
    environment = Environment(
        loader=PackageLoader("medtl_export"),
        undefined=StrictUndefined,
        finalize=_escaped,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": lambda text: Markup(" ".join(str(text).split())),
        "count": words.counted,
        "interval": _interval,
        "metric": lambda name: NAMES.get(name, name.replace("_", " ")),
        "number": _number,
    }
    text = environment.get_template("card.md.j2").render(card)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _escaped(value: Any) -> Any:
    """Return text that Markdown shows as it is, in a paragraph, list or cell of a table."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    line = " ".join(value.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word is no emphasis.
    line = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)
    # At the start of a line these make headings, lists and rules.
    return re.sub(r"^(\d*)([#+=.)-])(?=[\s#=-]|$)", r"\1\\\2", line)


def _number(value: float | None, places: int = 3) -> str:
    return "not defined" if value is None else f"{value:.{places}f}".replace("-", "−")


def _interval(measured: Mapping[str, float | None] | None, places: int = 3) -> str:
    """Return a value with its 95 % interval, as far as they are defined."""
    if measured is None or measured["value"] is None:
        return "not defined"
    value = _number(measured["value"], places)
    if measured["low"] is None:
        return value
    return f"{value} ({_number(measured['low'], places)} to {_number(measured['high'], places)})"
