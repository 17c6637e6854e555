from dataclasses import replace

import numpy as np
import pytest

from medtl_export import compare
from medtl_export.errors import ParityFailed
from medtl_runtime.decision import Decision, HeadDecision, OperatingPoint
from medtl_runtime.heads import Head

HEADS = (Head(name="label", classes=("healthy", "lesion")),)


def asked(temperature: float = 1.0, threshold: float = 0.5) -> compare.Validation:
    point = OperatingPoint(rule="threshold", positive="lesion", threshold=threshold)
    own = HeadDecision(temperature=temperature, operating_point=point)
    return compare.Validation(
        heads=HEADS,
        targets=np.array([[0.0], [1], [1]]),
        patients=np.array(["a", "b", "c"]),
        decision=Decision(heads=(own,)),
    )


LOGITS = np.array([[2.0, -1.0], [-1.0, 1.0], [0.0, 0.5]], np.float32)


def test_equal_logits_have_parity() -> None:
    parity = compare.check_parity(LOGITS, LOGITS + 1e-6, asked())
    assert parity.images == 3
    assert parity.flips == 0
    assert 0 < parity.largest_difference < 2e-6


def test_a_difference_beyond_float_arithmetic_is_refused() -> None:
    other = LOGITS.copy()
    other[1, 0] += 0.01
    with pytest.raises(ParityFailed, match=r"differs from torch by 0\.01"):
        compare.check_parity(LOGITS, other, asked())


def test_nan_has_no_parity() -> None:
    other = LOGITS.copy()
    other[0, 0] = np.nan
    with pytest.raises(ParityFailed):
        compare.check_parity(LOGITS, other, asked())


def test_flips_count_changed_decisions() -> None:
    turned = LOGITS.copy()
    turned[0] = turned[0, ::-1]
    one, other = (asked().judged(logits) for logits in (LOGITS, turned))
    assert compare.flips(one, other) == 1


def test_decisions_are_taken_at_the_temperature() -> None:
    """The point's threshold of 0.8 is reached by a logit of 1 at temperature 0.5 and not at 1."""
    logits = np.array([[0.0, 1.0]] * 3, np.float32)
    found = [asked(t, 0.8).judged(logits).called[:, 0].tolist() for t in (0.5, 1.0)]
    assert found == [[1, 1, 1], [0, 0, 0]]


def test_images_are_run_one_by_one_and_come_back_in_their_order() -> None:
    class Mean:
        """Says of an image what its mean is."""

        def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
            assert len(images) == 1
            mean = images.mean((1, 2, 3))[:, None]
            logits = np.hstack([mean, -mean])
            cam = logits[:, :, None, None] + np.array([[-1.0, 1.25]])  # its mean is 1/8 too high
            return {"logits": logits, "embedding": 2 * mean, "cam": cam}

    pixels = np.stack([np.full((1, 4, 4), 13107 * k, np.uint16) for k in range(6)])
    found = compare.run_all(Mean(), pixels)
    np.testing.assert_allclose(found.logits[:, 0], np.arange(6) / 5, atol=1e-6)
    np.testing.assert_allclose(found.embeddings[:, 0], np.arange(6) / 2.5, atol=1e-6)
    assert found.map_gap == pytest.approx(0.125)


def test_maps_that_do_not_explain_the_logits_are_refused() -> None:
    outputs = compare.Outputs(logits=LOGITS, embeddings=LOGITS, map_gap=1.5e-4)
    with pytest.raises(ParityFailed, match=r"activation map differs from its logit by 0\.00015"):
        compare.check_maps(outputs, 1e-5)
    assert compare.check_maps(outputs, 1e-4) == 1.5e-4  # relative to the largest logit, which is 2
    with pytest.raises(ParityFailed):
        compare.check_maps(replace(outputs, map_gap=float("nan")), 1e-4)


def test_undefined_metrics_are_null_in_json() -> None:
    lesions = replace(asked(), targets=np.ones((3, 1)))
    found = compare.accuracy(lesions.judged(np.array([[0.0, 1.0]] * 3, np.float32)))
    assert found["label"]["auroc"] is None
    assert found["label"]["recall"] == 1.0


def test_the_machine_has_a_name() -> None:
    assert compare.machine()["cpu"]
