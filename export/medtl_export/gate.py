"""Whether a candidate is no worse than the float network, as far as the validation images tell."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_export.compare import Accuracy, Judgement, Validation, accuracy, flips
from medtl_export.errors import GateUndefined
from medtl_train.scoring import metrics
from medtl_train.scoring.scored import Answers, ScoredValues

_NAME = {"auroc": "auroc", "balanced_accuracy": "balanced_accuracy", "sensitivity": "recall"}
OF_VALUES = "r2"
"""What must not drop of a regression, whatever the metric of heads with classes is."""

_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of a metric, candidate minus reference, with the 95 % interval of a paired bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the validation images say of a candidate."""

    difference: Difference | None
    """Of the head that loses most, by the lower bound; None where no metric is defined."""
    head: str | None
    """Which head that is."""
    flips: int
    """Images that a head decides otherwise."""
    accuracy: Accuracy
    accepted: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> "Verdict":
        """Read what `to_json` returned."""
        found = document["difference"]
        difference = None if found is None else Difference(**found)
        return Verdict(**{**document, "difference": difference})


@dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """What the float network says of the validation images, and what is asked of candidates.

    A head is judged where its metric is defined for both networks. Of a regression that is R^2, of
    grades the metric over the splits of the grades.
    """

    reference: Judgement
    """What candidates are compared with."""
    validation: Validation
    """With the temperatures and operating points of the candidates; those of the reference may be
    others, if it is a teacher."""
    metric: str
    """One of `settings.METRICS`."""
    max_drop: float | None
    """Largest accepted loss of each head; None accepts any."""

    def check(self) -> None:
        """Raise `GateUndefined` if no head's metric can be computed on the validation images."""
        if self.max_drop is None or self._judged:
            return
        reasons = [self._why_undefined(head) for head in self.reference.answers]
        raise GateUndefined(
            f"{self.metric.replace('_', ' ')} is not defined: {'; '.join(reasons)}; "
            "--max-drop none exports without this check"
        )

    @property
    def not_judged(self) -> tuple[str, ...]:
        """The heads whose metric is not defined on the validation images."""
        return tuple(head for head in self.reference.answers if head not in self._judged)

    @cached_property
    def _judged(self) -> set[str]:
        """The heads whose metric is defined for the reference."""
        return self._defined(self.reference)

    def _why_undefined(self, name: str) -> str:
        answers = self.reference.answers[name]
        whose = "" if len(self.reference.answers) == 1 else f"{name}: "
        few = f"{whose}too few images"
        if isinstance(answers, ScoredValues):
            return few
        counts = np.bincount(answers.labels, minlength=len(answers.classes))
        absent = [n for n, k in zip(answers.classes, counts, strict=True) if not k]
        return f"{whose}no validation images of {', '.join(absent)}" if absent else few

    def _metric_of(self, answers: Answers) -> str:
        return OF_VALUES if isinstance(answers, ScoredValues) else _NAME[self.metric]

    def _defined(self, judged: Judgement) -> set[str]:
        """Return the heads whose metric is defined."""
        return {
            head
            for head, answers in judged.answers.items()
            if len(answers.patients)
            and np.isfinite(metrics.measure(answers)[self._metric_of(answers)])
        }

    def judge(self, logits: NDArray[np.float32]) -> Verdict:
        """Return how a candidate compares, from its logits, (N, K), of the validation images.

        It is accepted where even the lower bound of each head's difference is no less than
        -``max_drop``.
        """
        after = self.validation.judged(logits)
        differences = self._differences(after)
        worst = min(differences, key=lambda head: differences[head].low, default=None)
        difference = None if worst is None else differences[worst]
        is_lost = self._judged - set(differences)
        accepted = self.max_drop is None or (
            difference is not None and difference.low >= -self.max_drop and not is_lost
        )
        return Verdict(
            difference=difference,
            head=worst,
            flips=flips(self.reference, after),
            accuracy=accuracy(after),
            accepted=bool(accepted and np.isfinite(logits).all()),
        )

    def _differences(self, after: Judgement) -> dict[str, Difference]:
        """Return the difference of each head for which one is defined."""
        found = {}
        both = self._judged & self._defined(after)
        for head in (name for name in self.reference.answers if name in both):
            before, now = self.reference.answers[head], after.answers[head]
            change = metrics.differences(before, now, seed=_SEED)[self._metric_of(before)]
            value, low, high = change["value"], change["low"], change["high"]
            if value is not None and low is not None and high is not None:
                found[head] = Difference(value=value, low=low, high=high)
        return found
