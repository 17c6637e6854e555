"""Training learns, stops, keeps the best, and goes on after an interrupt as if there were none."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medtl_models.network import Network
from medtl_runtime.errors import OutputNotWritten
from medtl_runtime.heads import Head
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_train import checkpoint as checkpoints
from medtl_train.checkpoint import About
from medtl_train.config import TrainConfig
from medtl_train.config.effects import idle_options
from medtl_train.data.images import ImageSet
from medtl_train.errors import Diverged
from medtl_train.fitting import features
from medtl_train.fitting.features import STRENGTHS, solve
from medtl_train.fitting.feed import batches_an_epoch
from medtl_train.fitting.fit import Fit
from medtl_train.fitting.predict import predict_embeddings, predict_logits
from medtl_train.fitting.progress import Progress
from medtl_train.options import config_from, flat

CPU = torch.device("cpu")
SIDE = 32


def image_set(per_class: int, seed: int, *, flipped: bool = False) -> ImageSet:
    """Return images with a bright square, left for class 0 and right for class 1, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1], per_class)
    pixels = rng.integers(0, 20000, (len(labels), 1, SIDE, SIDE))
    for image, label in zip(pixels, labels, strict=True):
        column = 4 + 16 * label
        image[0, 12:20, column : column + 8] += 40000
    return ImageSet(
        pixels=pixels.astype(np.uint16),
        targets=(1.0 - labels if flipped else 1.0 * labels)[:, None],
        patients=np.array([f"p{i}" for i in range(len(labels))]),
        sources=tuple(f"{i}.png" for i in range(len(labels))),
    )


PLAIN = {
    "epochs": 2, "batch_size": 4, "lr": 1e-3, "patience": 0, "augment": False, "ema": 0.0,
    "lr_decay": 1.0, "mixup": 0.0, "mode": "head-then-all",
}  # fmt: skip


def make(
    folder: Path,
    *,
    arch: str = "mobilenet_v3_small",
    pretrained: bool = False,
    train: ImageSet | None = None,
    val: ImageSet | None = None,
    heads: tuple[Head, ...] = (Head(name="side", classes=("left", "right")),),
    **changes: Any,
) -> Fit:
    """Return a small, plain fit; the same arguments give the same start."""
    about = About(
        arch=arch,
        head="linear",
        dropout=0.2,
        heads=heads,
        recipe=Recipe(size=(SIDE, SIDE), channels=1, window=HeaderVoi()),
        fingerprint="sha256:0",
    )
    torch.manual_seed(0)
    idle = idle_options(flat(TrainConfig()) | changes)  # what is plain anyway
    plain = {name: value for name, value in PLAIN.items() if name not in idle}
    config = config_from(plain | changes)
    return Fit(
        network=about.build(),
        about=about,
        train=train or image_set(6, 0),
        val=val or image_set(4, 1),
        positive="right",
        config=config,
        folder=folder,
        device=CPU,
        pretrained=pretrained,
    )


def nothing(*_: object) -> None:
    """Take no notice."""


def run(fit: Fit) -> Progress:
    return fit.run(nothing, nothing)


def column(progress: Progress, name: str) -> list:
    return [row[name] for row in progress.history]


def test_a_small_separable_set_is_learnt(tmp_path: Path) -> None:
    progress = run(make(tmp_path, arch="squeezenet1_1", epochs=25, label_smoothing=0.0))
    losses = column(progress, "train_loss")
    assert losses[-1] < 0.05 < 0.4 < losses[0]
    assert progress.history[-1]["auroc"] == 1.0
    best = checkpoints.load(tmp_path / "best.pt").restore()
    unseen = image_set(10, 77)
    found = predict_logits(best, unseen.pixels, CPU).argmax(1)
    assert (found == unseen.labels).mean() > 0.9


def test_every_epoch_has_a_row_with_its_phase_rate_losses_and_metrics(tmp_path: Path) -> None:
    rows = []
    fit = make(tmp_path, epochs=3, head_epochs=1, pretrained=True, head_lr=0.25, warmup=0.0)
    progress = fit.run(rows.append, nothing)
    assert rows == list(progress.history)
    assert column(progress, "epoch") == [1, 2, 3]
    assert column(progress, "phase") == ["head", "all", "all"]
    # The rate of an epoch's last step: 3 of 3 in the head's phase, 3 and 6 of 6 in the other.
    rates = [0.25 * (1 + math.cos(math.pi * 2 / 3)) / 2]
    rates += [1e-3 * (1 + math.cos(math.pi * k / 6)) / 2 for k in (2, 5)]
    assert column(progress, "lr") == pytest.approx(rates)
    assert {"train_loss", "val_loss", "auroc", "balanced_accuracy", "seconds"} <= rows[0].keys()


def test_steps_are_reported_one_by_one(tmp_path: Path) -> None:
    steps = []
    make(tmp_path, epochs=2).run(nothing, lambda: steps.append(1))
    assert len(steps) == 2 * batches_an_epoch(12, 4)


@pytest.mark.parametrize(
    ("count", "batch_size", "expected"),
    [(12, 4, 3), (13, 4, 3), (15, 4, 4), (3, 2, 1), (7, 2, 3), (2, 2, 1), (2, 64, 1), (11, 2, 5)],
)
def test_no_batch_is_of_a_single_image(count: int, batch_size: int, expected: int) -> None:
    steps = batches_an_epoch(count, batch_size)
    assert steps == expected
    assert min(map(len, np.array_split(np.arange(count), steps))) >= 2


def test_an_odd_number_of_images_in_pairs_trains(tmp_path: Path) -> None:
    whole = image_set(4, 0)
    seven = ImageSet(
        pixels=whole.pixels[:7],
        targets=whole.targets[:7],
        patients=whole.patients[:7],
        sources=whole.sources[:7],
    )
    # Its map is a single pixel, so BatchNorm could not normalise a batch of one.
    assert run(make(tmp_path, train=seven, batch_size=2, epochs=1)).epoch == 1


def state_of(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_only_the_head_moves_while_the_backbone_is_frozen(tmp_path: Path) -> None:
    fit = make(tmp_path, mode="head", epochs=2)
    before = state_of(fit.network)
    run(fit)
    after = fit.network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.linear.weight", "head.linear.bias"}  # BatchNorm statistics neither


def test_all_layers_move_in_the_second_phase(tmp_path: Path) -> None:
    fit = make(tmp_path, epochs=2, head_epochs=1, pretrained=True, batch_norm="train")
    states = []
    fit.run(lambda _: states.append(state_of(fit.network)), nothing)
    moved = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    trained = {name for name, _ in fit.network.named_parameters()}
    assert len(moved & trained) > 0.95 * len(trained)
    assert any(name.endswith("running_mean") for name in moved)


@pytest.mark.parametrize(("batch_norm", "moves"), [("auto", False), ("train", True)])
def test_small_batches_leave_pretrained_statistics_as_they_are(
    batch_norm: str, moves: bool, tmp_path: Path
) -> None:
    fit = make(tmp_path, mode="all", pretrained=True, batch_norm=batch_norm, epochs=1)
    before = state_of(fit.network)
    run(fit)
    after = fit.network.state_dict()
    for name in before:
        if name.endswith("running_var"):
            assert torch.equal(before[name], after[name]) != moves
    stem = "backbone.features.0.1.weight"
    assert not torch.equal(before[stem], after[stem])


def test_frozen_stages_stay_while_the_others_move(tmp_path: Path) -> None:
    fit = make(tmp_path, epochs=2, head_epochs=1, pretrained=True, freeze="stage1")
    before = state_of(fit.network)
    run(fit)
    after = fit.network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    firsts = ("backbone.features.0.", "backbone.features.1.")
    assert moved
    assert not [name for name in moved if name.startswith(firsts)]
    assert [name for name in moved if name.startswith("backbone.features.2.")]


def test_gradual_thawing_moves_one_more_stage_in_each_phase(tmp_path: Path) -> None:
    options = {"mode": "gradual", "epochs": 5, "head_epochs": 1, "arch": "squeezenet1_1"}
    fit = make(tmp_path, pretrained=True, **options)
    states = [state_of(fit.network)]
    progress = fit.run(lambda _: states.append(state_of(fit.network)), nothing)
    assert column(progress, "phase") == ["head", "stage3+", "stage2+", "stage1+", "all"]
    firsts = []
    for before, after in pairwise(states):
        firsts.append(next(name for name in before if not torch.equal(before[name], after[name])))
    assert firsts == [
        "head.linear.weight", "backbone.features.9.squeeze.weight",
        "backbone.features.6.squeeze.weight", "backbone.features.3.squeeze.weight",
        "backbone.features.0.weight",
    ]  # fmt: skip


def test_random_weights_are_trained_whole_from_the_first_epoch(tmp_path: Path) -> None:
    assert set(column(run(make(tmp_path, epochs=2, head_epochs=1)), "phase")) == {"all"}


def test_best_is_the_best_epoch_and_last_is_the_last(tmp_path: Path) -> None:
    # What training calls left, validation calls right: learning makes it worse.
    val = image_set(4, 1, flipped=True)
    fit = make(tmp_path, arch="squeezenet1_1", epochs=8, val=val, monitor="loss")
    progress = run(fit)
    losses = column(progress, "val_loss")
    assert progress.best_epoch == 1 + int(np.argmin(losses)) < 8
    assert losses[-1] > 2 * min(losses)
    for name, expected in (("best", min(losses)), ("last", losses[-1])):
        network = checkpoints.load(tmp_path / f"{name}.pt").restore()
        logits = torch.from_numpy(predict_logits(network, val.pixels, CPU))
        found = torch.nn.functional.cross_entropy(logits, torch.from_numpy(val.labels))
        assert found.item() == pytest.approx(expected, abs=1e-5)
    assert checkpoints.load(tmp_path / "best.pt").training is None


@pytest.mark.parametrize("monitor", ["auroc", "balanced_accuracy", "f1", "recall", "loss"])
def test_the_named_metric_decides_and_the_loss_between_equals(monitor: str, tmp_path: Path) -> None:
    progress = run(make(tmp_path, epochs=5, monitor=monitor, lr=3e-3))
    signed = -1 if monitor == "loss" else 1
    key = "val_loss" if monitor == "loss" else monitor
    scores = [(signed * row[key], -row["val_loss"]) for row in progress.history]
    assert progress.best_epoch == 1 + scores.index(max(scores))
    assert progress.best_score == max(scores)


def frozen(tmp_path: Path, **changes: Any) -> Fit:
    """Return a fit whose rate is too small to change a single number."""
    return make(tmp_path, arch="squeezenet1_1", lr=1e-30, head_lr=1e-30, **changes)


def test_training_stops_when_nothing_gets_better(tmp_path: Path) -> None:
    progress = run(frozen(tmp_path, epochs=9, patience=2))
    assert progress.stopped_early
    assert (progress.best_epoch, progress.epoch) == (1, 3)


def test_no_patience_means_all_epochs(tmp_path: Path) -> None:
    progress = run(frozen(tmp_path, epochs=5, patience=0))
    assert not progress.stopped_early
    assert progress.epoch == 5


def test_patience_starts_anew_with_the_second_phase(tmp_path: Path) -> None:
    fit = frozen(tmp_path, epochs=9, head_epochs=4, patience=2, pretrained=True)
    progress = run(fit)
    assert column(progress, "phase") == ["head"] * 4 + ["all"] * 2
    assert progress.stopped_early


def test_the_penalties_are_in_the_training_loss(tmp_path: Path) -> None:
    plain = run(frozen(tmp_path / "plain", epochs=1)).history[0]
    fit = frozen(tmp_path / "l2", epochs=1, l2=1e-2)
    total = sum(float(p.detach().square().sum()) for p in fit.network.parameters() if p.ndim > 1)
    penalised = run(fit).history[0]
    assert penalised["train_loss"] - plain["train_loss"] == pytest.approx(1e-2 * total, rel=1e-4)
    assert penalised["val_loss"] == pytest.approx(plain["val_loss"])


def test_l2_sp_holds_the_backbone_where_it_was(tmp_path: Path) -> None:
    moved = []
    for strength in (0.0, 100.0):
        fit = make(tmp_path / str(strength), arch="squeezenet1_1", epochs=6, l2_sp=strength)
        start = state_of(fit.network.backbone)
        run(fit)
        end = fit.network.backbone.state_dict()
        moved.append(sum(float((end[n] - start[n]).square().sum()) for n in start))
    assert moved[1] < 0.1 * moved[0]


@pytest.mark.parametrize(
    ("seed", "augment", "same"), [(0, False, True), (1, False, False), (0, True, False)]
)
def test_the_same_seed_and_options_give_the_same_weights(
    seed: int, augment: bool, same: bool, tmp_path: Path
) -> None:
    first, second = make(tmp_path / "1"), make(tmp_path / "2", seed=seed, augment=augment)
    run(first)
    torch.rand(7)  # whatever else has drawn from torch's generator
    run(second)
    one, other = first.network.state_dict(), second.network.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one) == same


def test_every_remedy_lets_the_rare_class_be_called_more_often(tmp_path: Path) -> None:
    whole = image_set(6, 0)
    keep = np.flatnonzero((whole.labels == 0) | (np.arange(12) < 4))
    few = ImageSet(
        pixels=whole.pixels[keep],
        targets=whole.targets[keep],
        patients=whole.patients[keep],
        sources=tuple(whole.sources[i] for i in keep),
    )
    means = []
    for remedy in ("none", "class-weights", "sampling", "logit-adjustment"):
        fit = make(tmp_path / remedy, train=few, imbalance=remedy, arch="squeezenet1_1")
        run(fit)
        logits = predict_logits(fit.network, fit.val.pixels, CPU)
        means.append(float((logits[:, 1] - logits[:, 0]).mean()))
    assert min(means[1:]) > means[0]  # the rare class is called more often


def test_the_averaged_weights_are_evaluated_and_kept(tmp_path: Path) -> None:
    fit = make(tmp_path, arch="squeezenet1_1", epochs=3, ema=0.9)
    steps: list[dict[str, torch.Tensor]] = []
    progress = fit.run(nothing, lambda: steps.append(state_of(fit.network)))
    mean = steps[0]
    for count, state in enumerate(steps[1:], start=2):
        share = max(0.1, 9 / (count + 8))
        mean = {name: mean[name] + share * (state[name] - mean[name]) for name in mean}
        if count == 3 * progress.best_epoch:
            best = mean
    kept = checkpoints.load(tmp_path / "best.pt")
    for name, tensor in kept.network.items():
        torch.testing.assert_close(tensor, best[name])
    logits = predict_logits(kept.restore(), fit.val.pixels, CPU)
    found = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(fit.val.labels)
    )
    row = progress.history[progress.best_epoch - 1]
    assert found.item() == pytest.approx(row["val_loss"], abs=1e-6)


def test_a_soup_is_the_mean_of_epochs_and_no_worse(tmp_path: Path) -> None:
    val = image_set(12, 1)
    val.targets[::3] = 1 - val.targets[::3]  # so that it does not pay to be certain
    options = {"arch": "squeezenet1_1", "epochs": 6, "lr": 3e-3, "monitor": "loss"}
    fit = make(tmp_path, val=val, soup=3, **options)
    states = []
    progress = fit.run(lambda _: states.append(state_of(fit.network)), nothing)
    assert len(progress.soup) > 1
    assert progress.soup[0] == progress.best_epoch
    assert progress.best_score[0] > -min(column(progress, "val_loss"))
    kept = checkpoints.load(tmp_path / "best.pt").network
    for name, tensor in kept.items():
        chosen = torch.stack([states[epoch - 1][name] for epoch in progress.soup])
        torch.testing.assert_close(tensor, chosen.mean(0))


HEADS = (
    Head(name="side", classes=("left", "right")),
    Head(name="right", kind="binary", classes=("absent", "present")),
    Head(name="grade", kind="ordinal", classes=("0", "1", "2")),
    Head(name="size", kind="regression", unit="mm", mean=10.0, std=4.0),
)


def several(images: ImageSet) -> ImageSet:
    """Return images with a target for each of `HEADS`, some of them unknown."""
    labels = images.labels
    targets = np.stack([labels, labels, 2 * labels, 6 + 8 * labels], 1).astype(float)
    targets[::5, 1] = targets[1::5, 2] = targets[2::5, 3] = np.nan
    return replace(images, targets=targets)


@pytest.mark.parametrize("weights", ["equal", "uncertainty"])
def test_several_heads_learn_together_from_what_is_known(weights: str, tmp_path: Path) -> None:
    fit = make(
        tmp_path, heads=HEADS, train=several(image_set(6, 0)), val=several(image_set(5, 1)),
        arch="squeezenet1_1", epochs=20, label_smoothing=0.0, head_weights=weights, lr=2e-3,
    )  # fmt: skip
    progress = run(fit)
    assert fit.selection.monitor == "auroc and r2"
    best = progress.history[progress.best_epoch - 1]
    assert best["auroc"] > 0.95
    assert best["r2"] > 0.7
    assert best["monitored"] == pytest.approx((3 * best["auroc"] + best["r2"]) / 4)
    saved = checkpoints.load(tmp_path / "last.pt").training
    assert saved is not None
    learned = saved["objective"].get("log_variances")
    assert (learned is None) == (weights == "equal")
    assert learned is None or (learned != 0).all()


def test_solved_heads_are_what_scikit_learn_says(tmp_path: Path) -> None:
    fit = make(
        tmp_path, heads=HEADS, train=several(image_set(20, 0)), val=several(image_set(5, 1)),
        arch="squeezenet1_1", mode="features",
    )  # fmt: skip
    before = state_of(fit.network.backbone)
    progress = run(fit)
    (row,) = progress.history
    assert (row["epoch"], progress.best_epoch) == (1, 1)
    kept = checkpoints.load(tmp_path / "best.pt")
    assert all(torch.equal(t, kept.network[f"backbone.{n}"]) for n, t in before.items())
    embeddings = predict_embeddings(fit.network, fit.train.pixels, CPU)
    solutions = dict(solve(HEADS, embeddings, fit.train.targets, balanced=False))
    val = predict_embeddings(fit.network, fit.val.pixels, CPU)
    scores = {
        strength: fit.selection.score(fit.selection.measure(weights.logits(val)))
        for strength, weights in solutions.items()
    }
    best = max(STRENGTHS, key=lambda strength: scores[strength])
    assert row["phase"] == f"solved, C={best:.2g}"
    expected = solutions[best]
    found = predict_logits(kept.restore(), fit.val.pixels, CPU)
    np.testing.assert_allclose(found, expected.logits(val), rtol=1e-3, atol=1e-3)


def test_the_fit_goes_on_from_the_solved_head(tmp_path: Path) -> None:
    """Its first epoch is the solution, kept where nothing after it is better on validation."""
    fit = make(
        tmp_path, arch="squeezenet1_1", mode="solve-then-all", pretrained=True, epochs=3,
        train=image_set(20, 0), lr=1e-30, ema=0.5, dropout=0.0,
    )  # fmt: skip
    before, steps = state_of(fit.network.backbone), []
    expected = fit.steps_left
    progress = fit.run(nothing, lambda: steps.append(1))
    assert len(steps) == expected == 2 * 10
    assert [phase[:6] for phase in column(progress, "phase")] == ["solved", "all", "all"]
    solution = run(make(tmp_path / "alone", arch="squeezenet1_1", mode="features",
                        train=image_set(20, 0)))  # fmt: skip
    assert progress.history[0]["val_loss"] == pytest.approx(solution.history[0]["val_loss"])
    # At a learning rate of nothing all epochs are the solution, and so is the moving average.
    losses = column(progress, "val_loss")
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-3)
    kept = checkpoints.load(tmp_path / "best.pt").network
    for name, tensor in before.items():
        torch.testing.assert_close(kept[f"backbone.{name}"], tensor, rtol=0, atol=1e-20)


def test_a_head_that_came_with_the_weights_stays_where_no_solution_is_better(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"arch": "squeezenet1_1", "train": image_set(20, 0)}
    options |= {"val": image_set(4, 1)}
    run(make(tmp_path, mode="features", **options))
    solved = checkpoints.load(tmp_path / "last.pt").network

    def first_phase(*, sign: int) -> str:
        fit = make(tmp_path, mode="solve-then-all", pretrained=True, **options)
        fit.network.load_state_dict(solved)
        with torch.no_grad():
            for parameter in fit.network.head.linear.parameters():
                parameter.mul_(sign * 1e5)  # surer; where it is right, of less loss
        fit.knows_head = True
        return column(run(fit), "phase")[0]

    assert first_phase(sign=1) == "as it came"
    assert first_phase(sign=-1).startswith("solved, C=")


def test_of_many_images_a_start_is_solved_with_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "ENOUGH", 10)
    seen = []
    embed = features.predict_embeddings

    def watched(network: Network, pixels: Any, *more: Any) -> np.ndarray:
        seen.append(len(pixels))
        return embed(network, pixels, *more)

    monkeypatch.setattr(features, "predict_embeddings", watched)
    options = {"arch": "squeezenet1_1", "train": image_set(20, 0)}
    run(make(tmp_path, mode="solve-then-all", epochs=2, pretrained=True, **options))
    run(make(tmp_path, mode="features", **options))
    assert seen == [10, 8, 40, 8]


def test_damaged_weights_are_an_error_in_words(tmp_path: Path) -> None:
    fit = make(tmp_path, arch="squeezenet1_1", mode="solve-then-all", pretrained=True)
    next(fit.network.backbone.parameters()).data.fill_(float("nan"))
    with pytest.raises(Diverged, match="features of the network are not finite"):
        run(fit)


def test_random_weights_have_no_head_to_solve_for(tmp_path: Path) -> None:
    fit = make(tmp_path, arch="squeezenet1_1", mode="solve-then-all", epochs=1)
    assert column(run(fit), "phase") == ["all"]


def test_a_head_is_solved_for_once(tmp_path: Path) -> None:
    expected = run(make(tmp_path, arch="squeezenet1_1", mode="features"))
    resumed = make(tmp_path, arch="squeezenet1_1", mode="features")
    resumed.resume(checkpoints.load(tmp_path / "last.pt"))
    rows = []
    assert resumed.run(rows.append, nothing) == expected
    assert rows == []


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    fit = make(tmp_path, optimizer="sgd", lr=1e20, warmup=0.0)
    with pytest.raises(
        Diverged,
        match=r"the loss is (nan|inf) at step \d of epoch 1, at the learning rate \S+ of --lr 1e",
    ):
        run(fit)
    assert not list(tmp_path.iterdir())


def test_logits_that_are_not_finite_after_the_last_step_stop_too(tmp_path: Path) -> None:
    fit = make(tmp_path, optimizer="sgd", lr=1e30, warmup=0.0, batch_size=64)
    with pytest.raises(Diverged, match=r"not finite after the last step of epoch 1.*no checkpoint"):
        run(fit)


def test_a_head_that_diverges_is_told_its_own_option(tmp_path: Path) -> None:
    fit = make(tmp_path, optimizer="sgd", head_lr=1e38, warmup=0.0, mode="head", l2=1.0)
    with pytest.raises(Diverged, match="--head-lr 1e"):
        run(fit)


def test_diverging_later_leaves_the_best_checkpoint(tmp_path: Path) -> None:
    fit = make(tmp_path, optimizer="sgd", head_lr=1e-4, lr=1e20, head_epochs=1, pretrained=True)
    with pytest.raises(Diverged, match=r"of epoch 2, .* \(last\.pt is that of epoch 1, best"):
        run(fit)
    assert checkpoints.load(tmp_path / "best.pt").about == fit.about


def test_predictions_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    network = make(tmp_path).network
    pixels = image_set(40, 3).pixels
    together = predict_logits(network, pixels, CPU)
    one_by_one = np.concatenate([predict_logits(network, p[None], CPU) for p in pixels])
    assert together.shape == (80, 2)
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)


class Stop:
    """Presses Ctrl-C at the given step or epoch."""

    def __init__(self, *, step: int | None = None, epoch: int | None = None) -> None:
        self.step, self.epoch, self.steps = step, epoch, 0

    def on_step(self) -> None:
        self.steps += 1
        if self.steps == self.step:
            raise KeyboardInterrupt

    def on_epoch(self, row: dict) -> None:
        if row["epoch"] == self.epoch:
            raise KeyboardInterrupt


def test_an_epoch_counts_once_its_checkpoint_is_on_the_disk(
    tmp_path: Path, disk_of: Callable
) -> None:
    fit = make(tmp_path, arch="squeezenet1_1", epochs=1)
    # best.pt fits, last.pt with the optimiser's memory does not.
    with disk_of(5_000_000), pytest.raises(OutputNotWritten, match=r"last\.pt"):
        run(fit)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
    assert fit.progress.epoch == 0


def without_time(progress: Progress) -> Progress:
    history = tuple({**row, "seconds": 0} for row in progress.history)
    return replace(progress, history=history)


# Everything that has a state or a random number, over two phases of two epochs of three steps.
LONG = {
    "pretrained": True,
    "epochs": 4,
    "head_epochs": 2,
    "l2_sp": 0.01,
    "l1": 1e-5,
    "imbalance": "class-weights",
    "augment": True,
    "hflip": True,
    "mixup": 0.2,
    "cutmix": 0.5,
    "ema": 0.9,
    "soup": 2,
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Progress]]:
    """Return a maker of fits that ran through, one for each set of options."""
    done: dict[str, tuple[Path, Progress]] = {}

    def get(**changes: Any) -> tuple[Path, Progress]:
        key = repr(sorted(changes.items()))
        if key not in done:
            folder = tmp_path_factory.mktemp("through")
            done[key] = folder, run(make(folder, **LONG, **changes))
        return done[key]

    return get


def require_equal_checkpoints(one: Path, other: Path) -> None:
    first, second = checkpoints.load(one), checkpoints.load(other)
    assert all(torch.equal(t, second.network[name]) for name, t in first.network.items())
    if first.training is None or second.training is None:
        assert first.training is second.training
        return
    states = [training["optimizer"]["state"] for training in (first.training, second.training)]
    assert states[0].keys() == states[1].keys()
    for slot, values in states[0].items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][slot][name]))
    both = (first.training, second.training)
    for tensors in (
        [training["anchor"] for training in both],
        [training["average"]["network"] for training in both],
        *([t["candidates"][k]["state"] for t in both] for k in range(2)),
    ):
        assert tensors[0]
        assert all(torch.equal(t, tensors[1][name]) for name, t in tensors[0].items())
    assert both[0]["average"]["steps"] == both[1]["average"]["steps"]


@pytest.mark.parametrize(
    ("at", "epochs_done"),
    [
        ({"epoch": 1}, 1),  # between epochs of the head's phase
        ({"step": 5}, 1),  # in the middle of its second epoch
        ({"epoch": 2}, 2),  # between the phases
        ({"step": 8}, 2),  # in the middle of the first epoch of all layers
        ({"step": 9}, 2),  # after its last step, before it is evaluated
        ({"step": 11}, 3),
        ({"epoch": 4}, 4),  # all is done but the evaluation
    ],
    ids=str,
)
def test_an_interrupted_fit_goes_on_to_the_same_result_bit_for_bit(
    at: dict[str, int], epochs_done: int, uninterrupted: Callable, tmp_path: Path
) -> None:
    through, expected = uninterrupted()
    stop = Stop(**at)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, **LONG).run(stop.on_epoch, stop.on_step)
    saved = checkpoints.load(tmp_path / "last.pt")
    assert len(json.loads(saved.training["progress"])["history"]) == epochs_done

    resumed = make(tmp_path, **LONG)
    torch.rand(3)
    resumed.resume(saved)
    steps = []
    found = resumed.run(nothing, lambda: steps.append(1))
    assert len(steps) == 3 * (4 - epochs_done)
    assert without_time(found) == without_time(expected)
    for name in ("last.pt", "best.pt"):
        require_equal_checkpoints(through / name, tmp_path / name)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_every_optimiser_goes_on_with_its_memory(
    optimizer: str, uninterrupted: Callable, tmp_path: Path
) -> None:
    options = {"arch": "squeezenet1_1", "optimizer": optimizer}
    through, expected = uninterrupted(**options)
    stop = Stop(step=11)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, **LONG, **options).run(stop.on_epoch, stop.on_step)
    resumed = make(tmp_path, **LONG, **options)
    resumed.resume(checkpoints.load(tmp_path / "last.pt"))
    assert without_time(run(resumed)) == without_time(expected)
    require_equal_checkpoints(through / "last.pt", tmp_path / "last.pt")


def test_two_interrupts_are_as_good_as_none(uninterrupted: Callable, tmp_path: Path) -> None:
    _, expected = uninterrupted()
    for step in (4, 5):  # in the second epoch, and after it is repeated in the third
        stop = Stop(step=step)
        fit = make(tmp_path, **LONG)
        if (tmp_path / "last.pt").exists():
            fit.resume(checkpoints.load(tmp_path / "last.pt"))
        with pytest.raises(KeyboardInterrupt):
            fit.run(stop.on_epoch, stop.on_step)
    final = make(tmp_path, **LONG)
    final.resume(checkpoints.load(tmp_path / "last.pt"))
    assert without_time(run(final)) == without_time(expected)


def test_a_fit_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    first = run(frozen(tmp_path, epochs=9, patience=2))
    again = frozen(tmp_path, epochs=9, patience=2)
    again.resume(checkpoints.load(tmp_path / "last.pt"))
    steps = []
    assert without_time(again.run(nothing, lambda: steps.append(1))) == without_time(first)
    assert steps == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_learns_and_resumes(tmp_path: Path) -> None:
    fit = make(tmp_path, arch="squeezenet1_1", epochs=25, label_smoothing=0.0, l2_sp=1e-4)
    fit.device = torch.device("cuda")
    with pytest.raises(KeyboardInterrupt):
        fit.run(Stop(epoch=5).on_epoch, nothing)
    again = make(tmp_path, arch="squeezenet1_1", epochs=25, label_smoothing=0.0, l2_sp=1e-4)
    again.device = torch.device("cuda")
    again.resume(checkpoints.load(tmp_path / "last.pt"))
    assert run(again).history[-1]["auroc"] == 1.0
