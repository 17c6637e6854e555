"""Epochs are compared by the named metric, and by the loss between equals."""

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from medtl_runtime.heads import Head
from medtl_train.fitting.selection import Selection
from medtl_train.options import config_from

SIDE = Head(name="side", classes=("left", "right"))
SIZE = Head(name="size", kind="regression", mean=30.0, std=10.0)
LOGITS = np.array([[1.0, 0.0, 0.5], [0.0, 0.3, -1.0], [0.4, 0.1, 0.0], [0.0, 2.0, 2.0]])
TARGETS = np.array([[0, 36.0], [1, 25.0], [1, 31.0], [1, 45.0]])
AUROC = roc_auc_score(TARGETS[:, 0], LOGITS[:, 1] - LOGITS[:, 0])
R2 = r2_score(TARGETS[:, 1], 30 + 10 * LOGITS[:, 2])


def selection(*heads: Head, targets: Any, **options: Any) -> Selection:
    return Selection(heads=heads, targets=targets, positive=None, config=config_from(options))


@pytest.mark.parametrize(
    ("heads", "columns", "monitor", "expected"),
    [
        ((SIDE,), slice(0, 2), "auroc", AUROC),
        ((SIZE,), slice(2, 3), "r2", R2),
        ((SIDE, SIZE), slice(0, 3), "auroc and r2", (AUROC + R2) / 2),
    ],
)
def test_auto_is_the_usual_metric_of_each_head(
    heads: tuple[Head, ...], columns: slice, monitor: str, expected: float
) -> None:
    targets = TARGETS[:, [0 if head is SIDE else 1 for head in heads]]
    found = selection(*heads, targets=targets)
    row = found.measure(LOGITS[:, columns])
    assert found.monitor == monitor
    assert row["monitored"] == pytest.approx(expected)
    assert found.score(row) == (pytest.approx(expected), -row["val_loss"])


@pytest.mark.parametrize("name", ["mae", "rmse", "loss"])
def test_of_errors_the_lower_is_the_better(name: str) -> None:
    found = selection(SIZE, targets=TARGETS[:, 1:], monitor=name)
    row = found.measure(LOGITS[:, 2:])
    assert row["monitored"] == row["val_loss" if name == "loss" else name] > 0
    assert found.score(row)[0] == -row["monitored"]


def test_a_metric_that_is_not_defined_is_below_all() -> None:
    found = selection(SIDE, targets=np.ones((4, 1)))
    row = found.measure(LOGITS[:, :2])
    assert math.isnan(row["monitored"])
    assert found.score(row) == (-math.inf, -row["val_loss"])
