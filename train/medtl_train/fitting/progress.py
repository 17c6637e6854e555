"""How far a fit has come."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from medtl_train.fitting.averaging import Score

EpochRow = dict[str, Any]
"""epoch, phase, lr, train_loss, val_loss, monitored, seconds and the validation metrics."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the fit has come; all of it is stored in ``last.pt``."""

    history: tuple[EpochRow, ...] = ()
    best_epoch: int = 0
    best_score: Score = (-math.inf, -math.inf)
    """Of ``best.pt``."""
    stopped_early: bool = False
    soup: tuple[int, ...] = ()
    """The epochs whose mean ``best.pt`` is; empty where it is one epoch's."""

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.history)

    @property
    def best(self) -> EpochRow:
        """The row of the best epoch; there is one."""
        return self.history[self.best_epoch - 1]

    def after(self, row: EpochRow, score: Score) -> "Progress":
        """Return it with one more epoch."""
        further = replace(self, history=(*self.history, row))
        if score > self.best_score:
            return replace(further, best_epoch=row["epoch"], best_score=score)
        return further

    def to_json(self) -> str:
        """Return it as a JSON document."""
        return json.dumps(vars(self))

    @staticmethod
    def from_json(text: str) -> "Progress":
        """Read what `to_json` wrote."""
        document = json.loads(text)
        for name in ("history", "best_score", "soup"):
            document[name] = tuple(document[name])
        return Progress(**document)
