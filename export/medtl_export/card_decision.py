"""What a model card says of how logits become findings; plain text, as in `card_words`."""

from collections.abc import Iterator

from medtl_export.card_words import counted
from medtl_runtime.aggregation import Aggregation
from medtl_runtime.decision import Decision, HeadDecision, Margin, Triage
from medtl_runtime.heads import Head
from medtl_runtime.modelfile import Description


def decision_sentences(description: Description) -> list[str]:
    """Return how logits become findings; each head's sentences begin with its name, if several."""
    found = []
    for head, own in zip(description.heads, description.decision.heads, strict=True):
        whose = "" if len(description.heads) == 1 else f"{head.name}: "
        found += [f"{whose}{sentence}" for sentence in _head_sentences(head, own)]
    kinds = {head.kind for head in description.heads}
    found.append(_novelty(description.decision))
    if kinds != {"regression"}:
        found.append(_series(description.aggregation))
    if "regression" in kinds:
        rule = "mean" if description.aggregation.rule == "mean" else "median"
        found.append(f"The value of a series is the {rule} of those of its slices.")
    return found


def _head_sentences(head: Head, own: HeadDecision) -> Iterator[str]:
    if head.kind == "regression":
        unit = f" {head.unit}" if head.unit else ""
        scaled = f"{head.mean:.6g} plus {head.std:.6g} times the logit"
        yield f"The value is {scaled}{f', in {head.unit}' if unit else ''}."
        yield _interval(own.interval, unit)
        return
    yield _probabilities(head, own.temperature)
    yield _finding(head, own)
    yield _triage(head, own.triage)


def _probabilities(head: Head, temperature: float) -> str:
    if head.kind == "multiclass":
        return f"Probabilities are the softmax of the logits divided by {temperature:.4g}."
    if head.kind == "binary":
        found = f"The probability of {head.classes[1]} is the sigmoid of the logit"
        return f"{found} divided by {temperature:.4g}."
    return (
        "The sigmoid of each logit, divided by "
        f"{temperature:.4g}, is the probability of lying above a grade, of the images that do not "
        "lie below it; probabilities of the grades follow from their products."
    )


def _finding(head: Head, own: HeadDecision) -> str:
    point = own.operating_point
    chosen = f" The point was chosen by {point.chosen}." if point.chosen else ""
    if point.rule == "threshold":
        (other,) = [name for name in head.classes if name != point.positive]
        return (
            f"The finding is {point.positive} where its probability is {point.threshold:.4g} or "
            f"more, else {other}.{chosen}"
        )
    if point.rule == "median":
        return "The finding is the median grade: the lowest with half of the probability up to it."
    return "The finding is the most probable class."


def _triage(head: Head, triage: Triage | None) -> str:
    if triage is None:
        return "The model never abstains."
    named = zip(head.classes, triage.thresholds, strict=True)
    limits = ", ".join(f"{name} {threshold:.4g}" for name, threshold in named)
    return (
        f"A class is possible where its probability is at least: {limits}. The finding stands "
        "where it alone is possible; else the model abstains. Of the images of a class, at most "
        f"about {triage.error_rate:.1%} are without it among the possible ones (conformal "
        f"prediction, fitted on {counted(triage.images, 'image')})."
    )


def _interval(margin: Margin | None, unit: str) -> str:
    if margin is None:
        return "No interval is given with it."
    return (
        f"Its interval is the value plus or minus {margin.half_width:.4g}{unit}, which holds the "
        f"true value of at least about {margin.coverage:.1%} of the images (conformal prediction, "
        f"fitted on {counted(margin.images, 'image')})."
    )


def _novelty(decision: Decision) -> str:
    novelty = decision.novelty
    if novelty is None:
        return "No image is refused as unlike the training images."
    energy = "" if novelty.energy is None else f"an energy score of {novelty.energy:.6g} or "
    return (
        f"An image is refused as unlike the training images above {energy}"
        f"a Mahalanobis score of {novelty.mahalanobis:.6g}. That is to "
        f"refuse at most about {novelty.false_refusal_rate:.1%} of images like the "
        f"{novelty.images:,} that the limits were fitted on."
    )


def _series(aggregation: Aggregation) -> str:
    combined = {
        "max": "the maximum",
        "mean": "the mean",
        "top-k-mean": f"the mean of the {aggregation.k} highest",
    }
    return f"The probability of a series is {combined[aggregation.rule]} of those of its slices."
