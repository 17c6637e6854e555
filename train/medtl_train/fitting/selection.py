"""Which epoch is the best: what is measured on validation, and how epochs compare."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtl_runtime.heads import Head
from medtl_train.config import TrainConfig
from medtl_train.fitting.averaging import Score
from medtl_train.fitting.objective import validation_loss
from medtl_train.fitting.progress import EpochRow
from medtl_train.scoring import metrics

_LOWER_IS_BETTER = {"loss", *metrics.LOWER_IS_BETTER}


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """How networks are compared on the validation images."""

    heads: tuple[Head, ...]
    targets: NDArray[np.float64]
    """Of the validation images, N x heads."""
    positive: str | None
    config: TrainConfig

    @property
    def monitor(self) -> str:
        """What the best network is best at, in words; its value is ``monitored`` in a row."""
        if self.config.fit.monitor != "auto":
            return self.config.fit.monitor
        return " and ".join(sorted(set(map(_usual, self.heads))))

    def measure(self, logits: NDArray[np.floating]) -> EpochRow:
        """Return ``val_loss``, ``monitored`` and the metrics of logits, N x columns.

        Each metric is the mean over the heads for which it is defined.
        """
        loss = validation_loss(self.heads, self.config.tasks, logits, self.targets)
        found = metrics.monitored(self.heads, logits, self.targets, positive=self.positive)
        match self.config.fit.monitor:
            case "loss":
                value = loss
            case "auto":
                usual = [found[_usual(head)] for head in self.heads]
                defined = [one for one in usual if math.isfinite(one)]
                value = float(np.mean(defined)) if defined else math.nan
            case name:
                value = found[name]
        return {"val_loss": loss, "monitored": value, **found}

    def score(self, row: EpochRow) -> Score:
        """Return what orders rows, the best the highest; an undefined metric is below all."""
        value = row["monitored"]
        signed = -value if self.config.fit.monitor in _LOWER_IS_BETTER else value
        return (signed if math.isfinite(signed) else -math.inf, -row["val_loss"])


def _usual(head: Head) -> str:
    """Return the metric by which a head is judged unless another is named."""
    return "r2" if head.kind == "regression" else "auroc"
