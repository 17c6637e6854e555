"""Whether a candidate is no worse than the float network, as far as the validation images tell."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl_export.compare import accuracy, flips, with_logits
from medtl_export.errors import GateUndefined
from medtl_runtime.decision import OperatingPoint
from medtl_train import metrics

_NAME = {"auroc": "auroc", "balanced_accuracy": "balanced_accuracy", "sensitivity": "recall"}
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
    """None where the metric is not defined and --max-drop is none."""
    flips: int
    """Images that are decided otherwise."""
    accuracy: dict[str, float | None]
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
    """The validation images with what the float network says of them, and what is asked."""

    reference: metrics.Scored
    """What candidates are compared with."""
    temperature: float
    point: OperatingPoint
    """Of the candidates; those of the reference may be others, if it is a teacher."""
    metric: str
    """One of `settings.METRICS`."""
    max_drop: float | None
    """Largest accepted loss; None accepts any."""

    def check(self) -> None:
        """Raise `GateUndefined` if the metric cannot be computed on the validation images."""
        if self.max_drop is None or self._defined(self.reference):
            return
        counts = np.bincount(self.reference.labels, minlength=len(self.reference.classes))
        absent = [n for n, k in zip(self.reference.classes, counts, strict=True) if not k]
        why = f"no validation images of {', '.join(absent)}" if absent else "too few images"
        raise GateUndefined(
            f"{self.metric.replace('_', ' ')} is not defined: {why}; "
            "--max-drop none exports without this check"
        )

    def _defined(self, scored: metrics.Scored) -> bool:
        return np.isfinite(metrics.measure(scored)[_NAME[self.metric]])

    def judge(self, logits: NDArray[np.float32]) -> Verdict:
        """Return how a candidate compares, from its logits, (N, K), of the validation images.

        It is accepted where even the lower bound of the difference is no less than -``max_drop``.
        """
        after = replace(with_logits(self.reference, logits, self.temperature), point=self.point)
        difference = self._difference(after)
        accepted = self.max_drop is None or (
            difference is not None and difference.low >= -self.max_drop
        )
        return Verdict(
            difference=difference,
            flips=flips(self.reference, after),
            accuracy=accuracy(after),
            accepted=bool(accepted and np.isfinite(logits).all()),
        )

    def _difference(self, after: metrics.Scored) -> Difference | None:
        if not (self._defined(self.reference) and self._defined(after)):
            return None
        found = metrics.differences(self.reference, after, seed=_SEED)[_NAME[self.metric]]
        if found["value"] is None or found["low"] is None or found["high"] is None:
            return None
        return Difference(value=found["value"], low=found["low"], high=found["high"])
