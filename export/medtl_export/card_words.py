"""What a model card says in words: sentences that follow from the facts of a description.

Plain text; the template escapes it. A sentence that a fact does not carry is not written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydicom.uid import UID

from medtl_runtime.decision import Decision
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
        f"Not for images to which none, or several, of {listed(description.classes)} apply: it "
        "always chooses among these classes.",
    ]
    if refused:
        found.append(
            f"Not for images that the rules refuse, by {listed(refused)}: they get no score."
        )
    return found


def decision_sentences(description: Description) -> list[str]:
    """Return how logits become a finding."""
    decision, point = description.decision, description.decision.operating_point
    found = [f"Probabilities are the softmax of the logits divided by {decision.temperature:.4g}."]
    chosen = f" The point was chosen by {point.chosen}." if point.chosen else ""
    if point.rule == "threshold":
        (other,) = [name for name in description.classes if name != point.positive]
        found.append(
            f"The finding is {point.positive} where its probability is {point.threshold:.4g} or "
            f"more, else {other}.{chosen}"
        )
    else:
        found.append("The finding is the most probable class.")
    found += [_triage(description), _novelty(decision)]
    rule, k = description.aggregation.rule, description.aggregation.k
    combined = {
        "max": "the maximum",
        "mean": "the mean",
        "top-k-mean": f"the mean of the {k} highest",
    }
    found.append(f"The probability of a series is {combined[rule]} of those of its slices.")
    return found


def _triage(description: Description) -> str:
    triage = description.decision.triage
    if triage is None:
        return "The model never abstains."
    named = zip(description.classes, triage.thresholds, strict=True)
    limits = ", ".join(f"{name} {threshold:.4g}" for name, threshold in named)
    return (
        f"A class is possible where its probability is at least: {limits}. The finding stands "
        "where it alone is possible; else the model abstains. Of the images of a class, at most "
        f"about {triage.error_rate:.1%} are without it among the possible ones (conformal "
        f"prediction, fitted on {counted(triage.images, 'image')})."
    )


def _novelty(decision: Decision) -> str:
    novelty = decision.novelty
    if novelty is None:
        return "No image is refused as unlike the training images."
    return (
        f"An image is refused as unlike the training images above an energy score of "
        f"{novelty.energy:.6g} or a Mahalanobis score of {novelty.mahalanobis:.6g}. That is to "
        f"refuse at most about {novelty.false_refusal_rate:.1%} of images like the "
        f"{novelty.images:,} that the limits were fitted on."
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
        "prevalence": _prevalence(facts),
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


def _few(description: Description) -> str | None:
    split, evaluation = _judged(description.provenance)
    counts = description.provenance["images"][split]
    by_class = {name: counts.get(name, 0) for name in description.classes}
    known = description.provenance["patients_known"]
    if min(by_class.values()) >= _ENOUGH and (evaluation["patients"] >= _ENOUGH or not known):
        return None
    parts = listed([f"{counted(n, 'image')} of {name}" for name, n in by_class.items()])
    whose = f" of {counted(evaluation['patients'], 'patient')}" if known else ""
    return (
        f"The figures rest on {parts}{whose}. A validation takes at least {_ENOUGH} cases of each "
        "class (Collins et al., Stat Med 2016); with fewer, read the intervals, not the values."
    )


def _few_trained(facts: Mapping[str, Any]) -> str | None:
    patients = facts["patients"]["train"]
    if patients >= _ENOUGH or not facts["patients_known"]:
        return None
    images = sum(facts["images"]["train"].values())
    return f"It learned from {counted(patients, 'patient')} only ({counted(images, 'image')})."


def _fitted(description: Description) -> str:
    decision = description.decision
    threshold = decision.operating_point.rule == "threshold"
    fitted = ["temperature", *(["operating point"] if threshold else [])]
    rates = [n for n in ("triage", "novelty") if getattr(decision, n)]
    hold = f" The rates of {listed(rates)} hold only nearly, for the same reason." if rates else ""
    return (
        f"The {listed(fitted)} {'were' if threshold else 'was'} fitted on the validation images, "
        f"which also chose the best epoch. The validation figures are too good for that.{hold} "
        "medtl-infer calibrate fits to local cases instead."
    )


def _prevalence(facts: Mapping[str, Any]) -> str:
    split, _ = _judged(facts)
    counts = facts["images"][split]
    total = sum(counts.values())
    shares = listed([f"{n / total:.0%} {name}" for name, n in counts.items()])
    return (
        "Precision, average precision, accuracy and F1 depend on how frequent the classes are. "
        f"They hold for the mix of these images: {shares}."
    )


def _no_width(facts: Mapping[str, Any], subgroups: Sequence[Mapping[str, Any]]) -> str | None:
    rows = [facts["validation"], facts["test"] or {}, *subgroups]
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
