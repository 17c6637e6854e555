"""Solved heads are scikit-learn's models, written as a linear layer."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from medtl_runtime.heads import Head, columns_of
from medtl_train.fitting.features import STRENGTHS, LinearWeights, solve

NAN = np.nan
SIDE = Head(name="side", classes=("left", "right"))
ORGAN = Head(name="organ", classes=("a", "b", "c"))
CYST = Head(name="cyst", kind="binary", classes=("absent", "present"))
GRADE = Head(name="grade", kind="ordinal", classes=("0", "1", "2"))
SIZE = Head(name="size", kind="regression", mean=30.0, std=10.0)
COUNT, WIDTH = 120, 6


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    """Return embeddings of different sizes; the last column carries nothing."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(COUNT, WIDTH)) * [1, 10, 0.1, 5, 1, 0] + [0, 3, 1, 0, -2, 0.7]
    return found.astype(np.float32)


def targets_of(embeddings: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    noisy = embeddings[:, 0] + rng.normal(scale=0.7, size=COUNT)
    side = noisy > 0
    organ = np.digitize(noisy, [-0.6, 0.6])
    found = np.stack([side, organ, ~side, organ, 30 + 8 * noisy], 1).astype(float)
    found[::7, 1:] = NAN
    return found


HEADS = (SIDE, ORGAN, CYST, GRADE, SIZE)


def solved(embeddings: np.ndarray, *, balanced: bool = False) -> dict[float, LinearWeights]:
    return dict(solve(HEADS, embeddings, targets_of(embeddings), balanced=balanced))


@pytest.mark.parametrize("balanced", [False, True])
def test_the_logits_are_the_decision_functions(embeddings: np.ndarray, balanced: bool) -> None:
    strength = STRENGTHS[6]
    found = solved(embeddings, balanced=balanced)[strength].logits(embeddings)
    scaled = StandardScaler().fit_transform(embeddings.astype(np.float64))
    targets = targets_of(embeddings)
    known = np.isfinite(targets[:, 1])
    columns = dict(zip((head.name for head in HEADS), columns_of(HEADS), strict=True))

    def regression(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        weights = "balanced" if balanced else None
        model = LogisticRegression(C=strength, class_weight=weights, max_iter=1000)
        return model.fit(scaled[rows], labels[rows]).decision_function(scaled)

    side = found[:, columns["side"]]
    np.testing.assert_allclose(
        side[:, 1] - side[:, 0], regression(np.full(COUNT, True), targets[:, 0]), atol=1e-3
    )
    np.testing.assert_allclose(
        found[:, columns["organ"]], regression(known, targets[:, 1]), atol=1e-3
    )
    np.testing.assert_allclose(
        found[:, columns["cyst"]][:, 0], regression(known, targets[:, 2]), atol=1e-3
    )
    grade = found[:, columns["grade"]]
    above = regression(known, (targets[:, 3] > 0).astype(float))
    np.testing.assert_allclose(grade[:, 0], above, atol=1e-3)
    least = known & (targets[:, 3] >= 1)
    above = regression(least, (targets[:, 3] > 1).astype(float))
    np.testing.assert_allclose(grade[:, 1], above, atol=1e-3)
    ridge = Ridge(alpha=1 / strength).fit(scaled[known], targets[known, 4])
    size = SIZE.values(found[:, columns["size"]])
    np.testing.assert_allclose(size, ridge.predict(scaled), rtol=0.01)


def test_weaker_penalties_come_last_and_give_larger_weights(embeddings: np.ndarray) -> None:
    found = solved(embeddings)
    assert tuple(found) == STRENGTHS == tuple(sorted(STRENGTHS))
    sizes = [np.linalg.norm(one.weight) for one in found.values()]
    assert sizes == sorted(sizes)


def test_a_column_without_variation_has_no_weight(embeddings: np.ndarray) -> None:
    for one in solved(embeddings).values():
        assert np.isfinite(one.weight).all()
        assert (one.weight[:, -1] == 0).all()


def test_a_question_with_one_answer_only_gives_its_frequency(embeddings: np.ndarray) -> None:
    targets = np.where(np.arange(COUNT) < 9, 0.0, NAN)[:, None]
    for _, one in solve([CYST], embeddings, targets, balanced=False):
        assert (one.weight == 0).all()
        assert one.bias == pytest.approx([np.log(0.5 / 9.5)])


@pytest.mark.parametrize("shown", [(0,), (2,), (0, 2), (0, 1, 2)])
def test_a_class_that_no_image_shows_is_never_likely_and_never_certain_to_be_absent(
    embeddings: np.ndarray, shown: tuple[int, ...]
) -> None:
    targets = np.resize(shown, COUNT)[:, None].astype(float)
    for _, weights in solve((ORGAN,), embeddings, targets, balanced=False):
        chances = ORGAN.probabilities(weights.logits(embeddings))
        absent = [k for k in range(3) if k not in shown]
        assert (chances > 0).all()
        assert (chances[:, absent] < 0.05).all()
        if len(shown) == 1:
            assert (chances[:, shown[0]] > 0.95).all()
