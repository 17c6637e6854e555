import time

import numpy as np
import pytest

from medtl_export import compare
from medtl_export.errors import ParityFailed
from medtl_runtime.modelfile import OperatingPoint
from medtl_train.metrics import Scored


class Sleeper:
    """A network that takes a given time and answers zeros."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(self.seconds)
        return {"logits": np.zeros((len(images), 2), np.float32)}


@pytest.fixture
def scored() -> Scored:
    return Scored(
        labels=np.array([0, 1, 1]),
        probabilities=np.full((3, 2), 0.5),
        patients=np.array(["a", "b", "c"]),
        classes=("healthy", "lesion"),
        point=OperatingPoint(rule="threshold", positive="lesion", threshold=0.5),
    )


LOGITS = np.array([[2.0, -1.0], [-1.0, 1.0], [0.0, 0.5]], np.float32)


def test_equal_logits_have_parity(scored: Scored) -> None:
    parity = compare.check_parity(LOGITS, LOGITS + 1e-6, scored)
    assert parity.images == 3
    assert parity.flips == 0
    assert 0 < parity.largest_difference < 2e-6


def test_a_difference_beyond_float_arithmetic_is_refused(scored: Scored) -> None:
    other = LOGITS.copy()
    other[1, 0] += 0.01
    with pytest.raises(ParityFailed, match=r"differs from torch by 0\.01"):
        compare.check_parity(LOGITS, other, scored)


def test_nan_has_no_parity(scored: Scored) -> None:
    other = LOGITS.copy()
    other[0, 0] = np.nan
    with pytest.raises(ParityFailed):
        compare.check_parity(LOGITS, other, scored)


def test_flips_count_changed_decisions(scored: Scored) -> None:
    turned = LOGITS.copy()
    turned[0] = turned[0, ::-1]
    one, other = (compare.with_logits(scored, logits) for logits in (LOGITS, turned))
    assert compare.flips(one, other) == 1


def test_the_speed_up_is_that_of_the_two_networks() -> None:
    pixels = np.zeros((1, 1, 8, 8), np.uint16)
    latency = compare.compare_latency(Sleeper(0.004), Sleeper(0.001), pixels)
    assert latency.low <= latency.speed_up <= latency.high
    assert latency.low > 1.5
    slower = compare.compare_latency(Sleeper(0.001), Sleeper(0.004), pixels)
    assert slower.high < 1


def test_undefined_metrics_are_null_in_json(scored: Scored) -> None:
    one_class = Scored(
        labels=np.array([1, 1]),
        probabilities=scored.probabilities[:2],
        patients=scored.patients[:2],
        classes=scored.classes,
        point=scored.point,
    )
    assert compare.accuracy(one_class)["auroc"] is None
    assert compare.accuracy(one_class)["recall"] == 1.0


def test_the_machine_has_a_name() -> None:
    assert compare.machine()["cpu"]
