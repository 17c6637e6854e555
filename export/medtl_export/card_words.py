"""What a model card says in words: sentences that follow from the facts of a description.

Plain text; the template escapes it. A sentence that a fact does not carry is not written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydicom.uid import UID

from medtl_runtime.heads import Head
from medtl_runtime.intended_use import IntendedUse, Rule
from medtl_runtime.modelfile import Description
from medtl_runtime.recipe import FixedWindow, Recipe, WindowPolicy

ACTIONS = {"allow": "scored", "warn": "scored, with a warning", "reject": "refused"}

_FITS = {
    "letterbox": "resized to fit, with its aspect ratio, and set in black bars",
    "crop": "cut about its middle to the aspect ratio, and resized",
    "stretch": "resized to the size, whatever its aspect ratio",
}
_ENOUGH = 100
"""Cases of each class that the validation of a model takes (Collins et al., Stat Med 2016)."""


def listed(names: Sequence[str], word: str = "and") -> str:
    """Return names as ``a, b and c``."""
    return f" {word} ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def steps(recipe: Recipe) -> list[str]:
    """Return what is done to an image before the network, in order."""
    height, width = recipe.size
    kind = "grey" if recipe.channels == 1 else "RGB"
    grey = "A colour image is refused" if recipe.channels == 1 else "A grey image is repeated"
    inverse = (
        "Images that are stored inverted (MONOCHROME1, or Presentation LUT Shape INVERSE) are "
        "turned, so that white is what a viewer shows white."
        if recipe.polarity == "display"
        else "Grey values keep their order: images that are stored inverted are not turned."
    )
    return [
        "Stored values become modality values by rescale slope and intercept, or the modality LUT.",
        _window(recipe.window),
        inverse,
        "Padded pixels become black.",
        f"The network sees {kind}. {grey}"
        f"{', unless its channels are nearly equal' if recipe.channels == 1 else ''}.",
        f"The image is {_FITS[recipe.fit]}: {height} rows by {width} columns, {recipe.kernel} "
        "kernel, widened when it shrinks.",
        "Values are rounded to 16 bits. Normalisation is part of the network.",
    ]


def _window(policy: WindowPolicy) -> str:
    if isinstance(policy, FixedWindow):
        low, high = policy.centre - policy.width / 2, policy.centre + policy.width / 2
        return (
            f"Modality values (Hounsfield units in CT) from {low:g} to {high:g} become 0 to 1 "
            f"(window centre {policy.centre:g}, width {policy.width:g}); what lies outside is "
            "clipped. Images without modality values, such as PNG and JPEG, are refused."
        )
    otherwise = "the range of the stored bits"
    if policy.fallback is not None:
        fallback = policy.fallback
        otherwise = f"a window of centre {fallback.centre:g} and width {fallback.width:g}"
    return (
        "The header's VOI LUT, or its first window, makes the values 0 to 1. Without either, "
        f"{otherwise} does."
    )


def rule_row(rule: Rule) -> dict[str, str]:
    """Return a rule of the intended use in words."""
    expected = rule.expected
    if rule.attribute == "SOPClassUID":
        for uid in (*rule.values, *rule.forbidden):
            expected = expected.replace(uid, UID(uid).name)
    return {
        "attribute": rule.attribute,
        "expected": expected,
        "mismatch": ACTIONS[rule.mismatch],
        "missing": ACTIONS[rule.missing],
    }


def not_for(description: Description) -> list[str]:
    """Return what the model is not for."""
    rules = description.intended_use.rules
    refused = [r.attribute for r in rules if "reject" in (r.mismatch, r.missing)]
    found = [
        "Not for diagnosis or treatment: this is research software and not a medical device.",
        *(_beyond(head) for head in description.heads),
    ]
    if refused:
        found.append(
            f"Not for images that the rules refuse, by {listed(refused)}: they get no score."
        )
    return found


def _beyond(head: Head) -> str:
    """Return on which images the answer of a head means nothing."""
    if head.kind == "multiclass":
        return (
            f"Not for images to which none, or several, of {listed(head.classes)} apply: it "
            "always chooses among these classes."
        )
    if head.kind == "binary":
        return f"Not for findings other than {head.name}, which it does not look for."
    if head.kind == "ordinal":
        return f"Not for images that have no {head.name}: it always gives one of the grades."
    return (
        f"Not for values of {head.name} far from {head.mean:.4g} {head.unit}".rstrip()
        + f" (the training values' mean; their standard deviation is {head.std:.4g})."
    )


def evaluated_precision(description: Description) -> str:
    """Return what the figures by split were measured with; a run's are of the float network."""
    return str(description.provenance.get("evaluated_precision", "fp32"))


def limitations(
    description: Description, subgroups: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Return the limitations that follow from the facts, each with the name of the fact."""
    facts = description.provenance
    found = {
        "no_test_set": None
        if facts["test"]
        else "There is no test set. The validation images also chose the best epoch, so that the "
        "figures are too good.",
        "unknown_patients": None
        if facts["patients_known"]
        else "Which images are of one patient is not known. The intervals are by image, hence too "
        "narrow where patients have several, and images of a patient may be in two splits.",
        "few_patients": _few(description),
        "few_training_patients": _few_trained(facts),
        "no_external_test": "No test on images of another hospital or scanner is recorded. What is "
        "measured here holds for images like these.",
        "fitted_on_validation": _fitted(description),
        "other_precision": None
        if evaluated_precision(description) == description.precision
        else f"The figures by split were measured with {evaluated_precision(description)}, before "
        "quantisation. What quantisation changed was measured on the validation images only.",
        "prevalence": _prevalence(description),
        "no_width": _no_width(facts, subgroups),
        "by_image": "All figures count images. How good the rule for a series is was not measured.",
        **_scope(description.intended_use),
        "no_subgroups": None
        if subgroups
        else "No subgroup is measured: how good the model is for one age, body part, view or "
        "modality against another is not known.",
        "latency": None
        if not (description.quantisation or {}).get("latency")
        else "The times hold for the processor and the engine that they were measured on.",
    }
    return [{"fact": fact, "text": text} for fact, text in found.items() if text]


def _judged(facts: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the split whose figures count, and its evaluation."""
    return ("test", facts["test"]) if facts["test"] else ("val", facts["validation"])


def _whose(description: Description, head: Head) -> str:
    """Return the name of a head where there are several, to begin a sentence with."""
    return "" if len(description.heads) == 1 else f"{head.name}: "


def _few(description: Description) -> str | None:
    split, evaluation = _judged(description.provenance)
    known = description.provenance["patients_known"]
    counted_by_head = description.provenance["targets"][split]
    found = []
    for head in description.heads:
        row = counted_by_head[head.name]
        by_class = row.get("counts") or {"": description.provenance["images"][split]}
        if head.kind == "regression":
            by_class = {"": by_class[""] - row["unknown"]}
        if min(by_class.values()) < _ENOUGH:
            parts = [f"{counted(n, 'image')} of {name}" for name, n in by_class.items()]
            found.append(f"{_whose(description, head)}{listed(parts)}".removesuffix(" of "))
    if not found and known and evaluation["patients"] < _ENOUGH:
        found = [counted(evaluation["images"], "image")]
    if not found:
        return None
    whose = f" of {counted(evaluation['patients'], 'patient')}" if known else ""
    return (
        f"The figures rest on {'; '.join(found)}{whose}. A validation takes at least {_ENOUGH} "
        "cases of each class (Collins et al., Stat Med 2016); with fewer, read the intervals, not "
        "the values."
    )


def _few_trained(facts: Mapping[str, Any]) -> str | None:
    patients = facts["patients"]["train"]
    if patients >= _ENOUGH or not facts["patients_known"]:
        return None
    images = facts["images"]["train"]
    return f"It learned from {counted(patients, 'patient')} only ({counted(images, 'image')})."


def _fitted(description: Description) -> str | None:
    decision, heads = description.decision, description.decision.heads
    has_classes = any(head.kind != "regression" for head in description.heads)
    threshold = any(own.operating_point.rule == "threshold" for own in heads)
    fitted = [
        *(["temperature"] if has_classes else []),
        *(["operating point"] if threshold else []),
    ]
    rates = [n for n in ("triage", "interval") if any(getattr(own, n) for own in heads)]
    rates += ["novelty"] if decision.novelty else []
    if not (fitted or rates):
        return None
    hold = f" The rates of {listed(rates)} hold only nearly, for the same reason." if rates else ""
    what = listed(fitted) or listed(rates)
    several = len(fitted or rates) > 1
    return (
        f"The {what} {'were' if several else 'was'} fitted on the validation images, "
        f"which also chose the best epoch. The validation figures are too good for that.{hold} "
        "medtl-infer calibrate fits to local cases instead."
    )


def _prevalence(description: Description) -> str | None:
    split, _ = _judged(description.provenance)
    mixes = []
    for head in description.heads:
        counts = description.provenance["targets"][split][head.name].get("counts")
        if counts and sum(counts.values()):
            total = sum(counts.values())
            shares = listed([f"{n / total:.0%} {name}" for name, n in counts.items()])
            mixes.append(f"{_whose(description, head)}{shares}")
    if not mixes:
        return None
    return (
        "Precision, average precision, accuracy and F1 depend on how frequent the classes are. "
        f"They hold for the mix of these images: {'; '.join(mixes)}."
    )


def _no_width(facts: Mapping[str, Any], subgroups: Sequence[Mapping[str, Any]]) -> str | None:
    splits = [facts["validation"], facts["test"] or {}]
    rows = [*subgroups, *(row for split in splits for row in split.get("heads", {}).values())]
    metrics = [one for row in rows for one in row.get("metrics", {}).values()]
    if not any(one["low"] is not None and one["low"] == one["high"] for one in metrics):
        return None
    return (
        "Some intervals have no width. There the cases are too few to tell, or all are called "
        "right or wrong; it is no certainty."
    )


def _scope(use: IntendedUse) -> dict[str, str | None]:
    """Return the limits of what the model was shown, by the rules that name one value."""
    words = {"Modality": "modality", "BodyPartExamined": "body part", "ViewPosition": "view"}
    single = [
        f"one {words[rule.attribute]} ({rule.values[0]})"
        for rule in use.rules
        if rule.attribute in words and len(rule.values) == 1
    ]
    return {
        "single_scope": f"The intended use names {listed(single)}. Of others nothing is known."
        if single
        else None,
        "no_rules": None
        if use.rules
        else "No rule on headers limits its use: it scores any image that the input recipe takes.",
    }
