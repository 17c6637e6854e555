"""How unlike the training data an image is."""

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head
from medtl_runtime.novelty import (
    EmbeddingReference,
    Novelty,
    energy_of,
    exceeds,
    fit_cutoffs,
    fit_reference,
    reference_groups,
    score,
)

RNG = np.random.default_rng
TWO = (Head(name="label", classes=("a", "b")),)
THREE = (Head(name="label", classes=("a", "b", "c")),)
OEDEMA = Head(name="oedema", kind="binary", classes=("absent", "present"))
GRADE = Head(name="grade", kind="ordinal", classes=("1", "2", "3", "4"))
AGE = Head(name="age", kind="regression", unit="a", mean=50.0, std=20.0)


def embeddings_of(
    count: int, size: int, classes: int = 2, seed: int = 0, spread: float = 4.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings about class means with falling variances, and their labels."""
    rng = RNG(seed)
    means = spread * RNG(99).normal(size=(classes, size))
    labels = np.arange(count) % classes
    scales = 1 / np.sqrt(np.arange(1, size + 1))
    noise = rng.normal(size=(count, size)) * scales
    return (means[labels] + noise).astype(np.float32), labels


def covariance(reference: EmbeddingReference) -> np.ndarray:
    """Return the D x D covariance that a reference stands for."""
    along = reference.directions.astype(np.float64)
    size = along.shape[1]
    inside = along.T @ np.diag(reference.variances) @ along
    return inside + reference.residual * (np.eye(size) - along.T @ along)


class TestReference:
    def test_with_all_directions_it_is_the_pooled_covariance(self):
        embeddings, labels = embeddings_of(500, 5, classes=3)
        reference = fit_reference(embeddings, labels)
        centred = embeddings - np.stack([embeddings[labels == k].mean(0) for k in range(3)])[labels]
        pooled = centred.T @ centred / (500 - 3)
        np.testing.assert_allclose(covariance(reference), pooled, rtol=1e-4, atol=1e-5)

    def test_what_is_left_out_keeps_its_total_variance(self):
        embeddings, labels = embeddings_of(300, 40)
        reference = fit_reference(embeddings, labels, rank=6)
        assert reference.directions.shape == (6, 40)
        centred = embeddings - np.stack([embeddings[labels == k].mean(0) for k in range(2)])[labels]
        total = (centred.astype(np.float64) ** 2).sum() / (300 - 2)
        assert np.trace(covariance(reference)) == pytest.approx(total, rel=1e-4)

    @pytest.mark.parametrize(
        ("count", "size"), [(40, 1), (40, 4), (40, 40), (41, 40), (40, 2048), (6000, 64), (4, 300)]
    )
    def test_any_number_of_images_and_dimensions_gives_a_sound_reference(
        self, count: int, size: int
    ):
        embeddings, labels = embeddings_of(count, size)
        reference = fit_reference(embeddings, labels)
        rank = len(reference.directions)
        assert rank == max(0, min(32, count - 3, size - 1))
        np.testing.assert_allclose(
            reference.directions @ reference.directions.T, np.eye(rank), atol=1e-5
        )
        assert (np.diff(reference.variances) <= 0).all()
        assert (reference.variances >= np.float32(reference.residual)).all()
        assert reference.residual > 0
        assert reference.images == count
        found = [score(TWO, np.zeros(2), one, reference).mahalanobis for one in embeddings]
        assert np.isfinite(found).all()
        assert min(found) >= 0

    def test_images_and_dimensions_may_be_either_more(self):
        # 60 x 59 goes by the scatter matrix, 60 x 60 by singular values: the same but for a zero.
        embeddings, labels = embeddings_of(60, 59)
        padded = np.pad(embeddings, ((0, 0), (0, 1)))
        tall, wide = (fit_reference(one, labels, rank=5) for one in (embeddings, padded))
        np.testing.assert_allclose(tall.variances, wide.variances, rtol=1e-4)
        np.testing.assert_allclose(
            abs(tall.directions), abs(wide.directions[:, :-1]), rtol=1e-2, atol=1e-4
        )

    def test_embeddings_that_never_differ_leave_a_variance(self):
        reference = fit_reference(np.ones((30, 8)), np.arange(30) % 2)
        assert reference.residual > 0
        assert score(TWO, np.zeros(2), np.ones(8), reference).mahalanobis == 0
        assert score(TWO, np.zeros(2), np.full(8, 1.1), reference).mahalanobis > 1e6

    def test_a_class_without_images_has_no_mean(self):
        embeddings, labels = embeddings_of(50, 6, classes=2)
        assert fit_reference(embeddings, labels * 3).means.shape == (2, 6)

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_too_few_images_are_refused(self, count: int):
        embeddings, labels = embeddings_of(count, 6)
        with pytest.raises(UsageError, match="too few"):
            fit_reference(embeddings, labels)

    @pytest.mark.parametrize("size", [1, 4, 2048])
    def test_it_survives_being_written_and_read(self, size: int):
        reference = fit_reference(*embeddings_of(60, size))
        text = json.dumps(reference.to_json(), allow_nan=False)
        again = EmbeddingReference.from_json(json.loads(text))
        for name in ("means", "directions", "variances"):
            np.testing.assert_array_equal(getattr(again, name), getattr(reference, name))
        assert (again.residual, again.images) == (reference.residual, reference.images)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("residual", 0),
            ("residual", "much"),
            ("residual", math.nan),
            ("residual", math.inf),
            ("images", None),
            ("surprise", 1),
            ("variances", {"shape": [3], "float32": ""}),
            ("variances", {"shape": [1, 3], "float32": ""}),
            ("means", {"shape": [2, 4], "float32": "not base64!"}),
            ("means", {"shape": [-1, 4], "float32": "AAAA"}),
            ("means", {"shape": [1, 4], "float32": "AADAfwAAwH8AAMB/AADAfw=="}),  # four NaN
            ("directions", None),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, name: str, value: Any):
        data = {**fit_reference(*embeddings_of(60, 4)).to_json(), name: value}
        with pytest.raises(UsageError, match="embedding reference"):
            EmbeddingReference.from_json(data)

    def test_arrays_that_do_not_fit_each_other_are_refused(self):
        small, large = (fit_reference(*embeddings_of(60, size)).to_json() for size in (4, 5))
        for name in ("means", "directions", "variances"):
            with pytest.raises(UsageError, match="do not fit"):
                EmbeddingReference.from_json({**small, name: large[name]})

    def test_a_missing_field_is_refused(self):
        data = fit_reference(*embeddings_of(60, 4)).to_json()
        for name in data:
            with pytest.raises(UsageError, match="missing"):
                EmbeddingReference.from_json({k: v for k, v in data.items() if k != name})


class TestScore:
    def test_energy_is_the_negative_logarithm_of_the_sum(self):
        reference = fit_reference(*embeddings_of(60, 4))
        for logits in ([1.0, 2.0, -3.0], [800.0, 799.0, 0.0], [-900.0, -901.0, -902.0]):
            found = score(THREE, np.array(logits), np.zeros(4), reference).energy
            assert found == pytest.approx(-logsumexp(logits))

    def test_energy_is_summed_over_the_heads_that_have_classes(self):
        logits = np.array([1.0, 2.0, -3.0, 0.5, 3.0, -1.0, 800.0, 9.0])
        heads = (*THREE, OEDEMA, GRADE, AGE)
        asked = [0.5, 3.0, -1.0, 800.0]  # of a grade each step is a question by itself
        expected = -logsumexp(logits[:3]) - sum(logsumexp([0, one]) for one in asked)
        assert energy_of(heads, logits) == pytest.approx(expected)

    def test_values_alone_have_a_distance_and_no_energy(self):
        reference = fit_reference(*embeddings_of(60, 4))
        found = score((AGE,), np.zeros(1), reference.means[0], reference)
        assert found.energy is None
        assert found.mahalanobis == pytest.approx(0, abs=1e-6)
        assert found.to_json() == {"energy": None, "mahalanobis": 0}

    def test_the_distance_is_that_of_the_nearest_class_by_the_whole_covariance(self):
        embeddings, labels = embeddings_of(400, 50, classes=3, spread=1.0)
        reference = fit_reference(embeddings, labels, rank=10)
        inverse = np.linalg.inv(covariance(reference))
        for one in RNG(5).normal(size=(20, 50)):
            away = one - reference.means.astype(np.float64)
            expected = np.einsum("kd,de,ke->k", away, inverse, away).min()
            assert score(THREE, np.zeros(3), one, reference).mahalanobis == pytest.approx(
                expected, rel=1e-4
            )

    def test_scores_are_rounded_in_json_alone(self):
        assert Novelty(energy=-1.23456789, mahalanobis=3.14159265).to_json() == {
            "energy": -1.2346,
            "mahalanobis": 3.142,
        }


def novelties(energies: np.ndarray, distances: np.ndarray) -> list[Novelty]:
    pairs = zip(energies.tolist(), distances.tolist(), strict=True)
    return [Novelty(energy=energy, mahalanobis=distance) for energy, distance in pairs]


class TestGroups:
    def test_images_are_told_apart_by_the_first_head_with_several_classes(self):
        targets = np.array([[1, 2, 55.0], [0, np.nan, 60.0], [np.nan, 0, np.nan]])
        assert reference_groups((OEDEMA, GRADE, AGE), targets).tolist() == [2, -1, 0]
        assert reference_groups((OEDEMA, AGE), targets[:, [0, 2]]).tolist() == [0, 0, 0]

    def test_images_of_no_known_group_are_left_out_of_the_reference(self):
        embeddings, labels = embeddings_of(60, 4)
        far = np.concatenate([embeddings, np.full((5, 4), 1e3)])
        unknown = np.concatenate([labels, np.full(5, -1)])
        found, expected = fit_reference(far, unknown), fit_reference(embeddings, labels)
        np.testing.assert_array_equal(found.means, expected.means)
        assert found.images == 60


class TestCutoffs:
    def test_without_energies_the_distance_has_all_of_the_rate(self):
        scores = [Novelty(energy=None, mahalanobis=float(n)) for n in range(1, 200)]
        cutoffs = fit_cutoffs(scores, 0.05)  # ceil(200 * 0.95) = 190
        assert (cutoffs.energy, cutoffs.mahalanobis) == (None, 190)
        assert exceeds(scores[-1], cutoffs) == ("mahalanobis", 199.0, "at most 190")
        assert exceeds(scores[0], cutoffs) is None
        assert fit_cutoffs(scores[:9], 0.05).false_refusal_rate == 1 / 10

    def test_they_are_order_statistics_at_half_of_the_rate(self):
        scores = np.arange(1.0, 200)  # 199 of them: ceil(200 * 0.975) = 195
        cutoffs = fit_cutoffs(
            novelties(RNG(1).permutation(scores), RNG(2).permutation(-scores)), 0.05
        )
        assert (cutoffs.energy, cutoffs.mahalanobis) == (195, -5)
        assert (cutoffs.false_refusal_rate, cutoffs.images) == (0.05, 199)

    @pytest.mark.parametrize(("count", "held"), [(39, 0.05), (38, 2 / 39), (10, 2 / 11), (1, 1.0)])
    def test_too_few_images_state_the_rate_that_holds(self, count: int, held: float):
        scores = np.arange(float(count))
        cutoffs = fit_cutoffs(novelties(scores, scores), 0.05)
        assert cutoffs.false_refusal_rate == pytest.approx(held)
        assert cutoffs.energy == count - 1  # the largest

    @pytest.mark.parametrize(("count", "rate"), [(0, 0.05), (9, 0.0), (9, 1.0), (9, math.nan)])
    def test_no_images_or_a_rate_that_is_no_share_are_refused(self, count: int, rate: float):
        with pytest.raises(UsageError, match="cut-offs for a rate"):
            fit_cutoffs(novelties(np.zeros(count), np.zeros(count)), rate)

    @pytest.mark.parametrize(("count", "rate"), [(20, 0.02), (60, 0.1), (300, 0.02)])
    def test_of_new_images_of_the_same_kind_at_most_the_stated_share_is_refused(
        self, count: int, rate: float
    ):
        refused = []
        for seed in range(400):
            rng = RNG(seed)
            scores = novelties(rng.normal(size=count), rng.chisquare(8, count))
            cutoffs = fit_cutoffs(scores, rate)
            energy, distance = rng.normal(size=2000), rng.chisquare(8, 2000)
            refused.append(((energy > cutoffs.energy) | (distance > cutoffs.mahalanobis)).mean())
        error = np.std(refused) / math.sqrt(len(refused))
        assert np.mean(refused) <= cutoffs.false_refusal_rate + 3 * error
        assert np.mean(refused) >= cutoffs.false_refusal_rate / 2

    def test_far_images_are_refused_and_fresh_ones_of_the_kind_mostly_not(self):
        reference = fit_reference(*embeddings_of(400, 30))
        fresh, _ = embeddings_of(1000, 30, seed=2)
        far = fresh[:200] + 3 * RNG(3).choice([-1, 1], size=(200, 30))

        def scores(embeddings: np.ndarray) -> list[Novelty]:
            return [score(TWO, np.zeros(2), one, reference) for one in embeddings]

        held_out = scores(embeddings_of(400, 30, seed=1)[0])
        cutoffs = fit_cutoffs(held_out, 0.05)
        assert all(exceeds(one, cutoffs) for one in scores(far))
        assert np.mean([exceeds(one, cutoffs) is not None for one in scores(fresh)]) < 0.05

    def test_the_score_beyond_its_cutoff_is_named(self):
        cutoffs = fit_cutoffs([Novelty(energy=-2.0, mahalanobis=9.0)], 0.5)
        assert exceeds(Novelty(energy=-2.0, mahalanobis=9.0), cutoffs) is None
        assert exceeds(Novelty(energy=-1.5, mahalanobis=9.0), cutoffs) == (
            "energy",
            -1.5,
            "at most -2",
        )
        both = exceeds(Novelty(energy=0.0, mahalanobis=12.34567), cutoffs)
        assert both == ("mahalanobis", 12.3457, "at most 9")
        assert exceeds(Novelty(energy=math.nan, mahalanobis=1.0), cutoffs) is not None
