"""Several networks as one: what members are trained on, and what their run holds."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medtl_models.ensemble import Ensemble
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head
from medtl_train import checkpoint as checkpoints
from medtl_train.config import TrainConfig
from medtl_train.console import Reporter
from medtl_train.data.dataset import Dataset
from medtl_train.ensembles import member_data, train_ensemble
from medtl_train.errors import RunUnfit
from medtl_train.finished import read_summary
from medtl_train.run import prepare, train

CPU = torch.device("cpu")
Tiny = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def dataset(lung: Path, tiny: Tiny) -> Dataset:
    return prepare(lung, tiny(), Reporter(quiet=True))


@pytest.fixture(scope="module")
def ensemble(lung: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a boosted ensemble of two; it is not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    train_ensemble(lung, folder, tiny(ensemble="boosted", members=2), device=CPU)
    return folder


def sources(dataset: Dataset, split: str) -> Counter[str]:
    return Counter(image.sample.source for image in dataset.images[split])


def test_the_run_of_an_ensemble_holds_its_members_and_their_mean(ensemble: Path) -> None:
    saved = checkpoints.load_run(ensemble)
    network = saved.restore()
    assert isinstance(network, Ensemble)
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    members = [checkpoints.load_run(ensemble / "members" / str(n)).restore() for n in (1, 2)]
    with torch.inference_mode():
        each = [member(images).logits for member in members]
        torch.testing.assert_close(network(images).logits, (each[0] + each[1]) / 2)
    assert not torch.allclose(each[0], each[1])


def test_its_summary_says_how_good_each_member_is(ensemble: Path) -> None:
    summary = read_summary(ensemble)
    own = [read_summary(ensemble / "members" / str(number)) for number in (1, 2)]
    assert [row["test"] for row in summary["members"]] == [one["test"] for one in own]
    assert summary["test"] is not None
    assert (ensemble / "report.html").is_file()


def test_members_of_seeds_differ_in_their_seed_only(dataset: Dataset, tiny: Tiny) -> None:
    found = member_data(dataset, tiny(ensemble="seeds"), 2, [], CPU)
    assert found is dataset


def test_a_bag_is_of_whole_patients_drawn_with_replacement(dataset: Dataset, tiny: Tiny) -> None:
    config = tiny(ensemble="bags")
    found = member_data(dataset, config, 1, [], CPU)
    patients = Counter(image.patient for image in dataset.images["train"])
    drawn = Counter(image.patient for image in found.images["train"])
    assert all(drawn[patient] % patients[patient] == 0 for patient in drawn)
    assert 0 < len(drawn) < len(patients)
    assert sources(found, "val") == sources(dataset, "val")
    again = member_data(dataset, config, 1, [], CPU)
    assert sources(again, "train") == sources(found, "train")
    other = member_data(dataset, config, 2, [], CPU)
    assert sources(other, "train") != sources(found, "train")


def test_every_training_image_validates_one_fold(dataset: Dataset, tiny: Tiny) -> None:
    config = tiny(ensemble="folds", members=3)
    folds = [member_data(dataset, config, number, [], CPU) for number in (1, 2, 3)]
    held_out = sum((sources(fold, "val") for fold in folds), Counter())
    assert held_out == sources(dataset, "train")
    for fold in folds:
        assert sources(fold, "train") + sources(fold, "val") == sources(dataset, "train")
        inside = {image.patient for image in fold.images["train"]}
        assert not inside & {image.patient for image in fold.images["val"]}
        assert sources(fold, "test") == sources(dataset, "test")


def test_boosting_draws_more_of_what_members_have_wrong(
    dataset: Dataset, tiny: Tiny, finished: Path
) -> None:
    saved = checkpoints.load_run(finished)
    state = {name: tensor.clone() for name, tensor in saved.network.items()}
    # A member that calls every image healthy has all lesions wrong.
    state["head.linear.weight"].zero_()
    state["head.linear.bias"].copy_(torch.tensor([20.0, -20.0]))
    one = checkpoints.Checkpoint(about=saved.about, network=state)
    found = member_data(dataset, tiny(ensemble="boosted"), 2, [one], CPU)
    before, after = (
        np.mean([image.sample.labels[0] == "lesion" for image in some.images["train"]])
        for some in (dataset, found)
    )
    assert len(found.images["train"]) == len(dataset.images["train"])
    assert after > before + 0.2


def test_members_that_are_finished_stay_when_it_is_resumed(
    ensemble: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(ensemble, tmp_path / "two"))
    shutil.rmtree(folder / "members" / "2")
    before = (folder / "members" / "1" / "best.pt").stat().st_mtime_ns
    config = tiny(ensemble="boosted", members=2)
    summary = train_ensemble(lung, folder, config, device=CPU, resume=True)
    assert (folder / "members" / "1" / "best.pt").stat().st_mtime_ns == before
    assert summary["test"] == read_summary(ensemble)["test"]


def test_a_network_does_not_start_from_an_ensemble(
    ensemble: Path, lung: Path, tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny(from_run=(str(ensemble),), weights=None)
    with pytest.raises(RunUnfit, match=r"start from one of its members, such as .*members/1"):
        train(lung, tmp_path / "next", config, device=CPU)


def test_members_without_an_ensemble_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="--members has no effect without --ensemble"):
        tiny(members=3)


def test_values_need_not_all_be_drawn(dataset: Dataset, tiny: Tiny) -> None:
    images = tuple(
        replace(image, sample=replace(image.sample, labels=(str(number),)))
        for number, image in enumerate(dataset.images["train"])
    )
    valued = replace(
        dataset,
        heads=(Head(name="size", kind="regression", mean=1.0, std=1.0),),
        images={**dataset.images, "train": images},
    )
    found = member_data(valued, tiny(ensemble="bags"), 1, [], CPU)
    drawn = {image.sample.labels for image in found.images["train"]}
    assert 1 < len(drawn) < len(images)
