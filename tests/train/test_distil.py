"""A student follows its teacher, is a run like any other, and is refused in time."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl_models.network import Network, Outputs
from medtl_models.weights import imagenet_file
from medtl_runtime.errors import OutputExists, UsageError
from medtl_runtime.heads import Head
from medtl_runtime.modelfile import file_digest
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_train import checkpoint as checkpoints
from medtl_train.checkpoint import About
from medtl_train.config import DistilConfig, FitConfig, TrainConfig
from medtl_train.console import Reporter
from medtl_train.data.images import ImageSet
from medtl_train.distil import distil
from medtl_train.errors import CheckpointUnusable, Diverged, ImagesMissing, Interrupted, RunUnfit
from medtl_train.finished import read_config, read_dataset, read_summary
from medtl_train.fitting.fit import Fit
from medtl_train.fitting.losses import distillation_loss
from medtl_train.fitting.objective import Teacher
from medtl_train.fitting.predict import predict_logits
from medtl_train.folders import OUTPUTS
from medtl_train.options import config_from, flat, to_toml
from medtl_train.run import train

CPU = torch.device("cpu")
SIDE = 32
Tiny = Callable[..., TrainConfig]
RANDOM = DistilConfig(weights="none")


class Notes(Reporter):
    """Keeps what a person would be told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


# The loss


LEFT_RIGHT = Head(name="side", classes=("left", "right"))
ORGAN = Head(name="organ", classes=("a", "b", "c"))


def random_logits(seed: int) -> Tensor:
    return 3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_is_the_formula() -> None:
    student, teacher = random_logits(0), random_logits(1)
    p, q = (torch.softmax(logits / 4, 1) for logits in (teacher, student))
    expected = 16 * (p * (p / q).log()).sum(1).mean()
    assert distillation_loss([ORGAN], student, teacher, 4.0).item() == pytest.approx(
        expected.item()
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(temperature: float) -> None:
    teacher = random_logits(0)
    student = (teacher + 7.0).requires_grad_()  # the same probabilities
    loss = distillation_loss([ORGAN], student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    other = random_logits(1).requires_grad_()
    distillation_loss([ORGAN], other, teacher, temperature).backward()
    assert other.grad is not None
    assert other.grad.abs().max() > 0.01


def test_the_size_of_the_gradient_does_not_depend_on_a_high_temperature() -> None:
    sizes = []
    for temperature in (50.0, 100.0):
        student = random_logits(0).requires_grad_()
        distillation_loss([ORGAN], student, random_logits(1), temperature).backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


class Sides(nn.Module):
    """Compares the image's halves: class 0 where the left is brighter, 1 where the right is."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(100.0))
        self.seen: list[Tensor] = []

    def forward(self, image_nchw: Tensor) -> Outputs:
        self.seen.append(image_nchw.clone())
        left, right = (half.mean((1, 2, 3)) for half in image_nchw.chunk(2, 3))
        logits = self.gain * torch.stack([left - right, right - left], 1)
        return Outputs(logits, logits[:, :, None, None], logits)


def taught_by(network: nn.Module, *, temperature: float = 4.0, alpha: float = 0.1) -> Teacher:
    return Teacher(
        network=network,  # pyright: ignore[reportArgumentType]
        heads=(LEFT_RIGHT,),
        temperature=temperature,
        alpha=alpha,
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_is_the_share_of_the_labels(alpha: float) -> None:
    images = torch.rand(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    student = random_logits(0)[:, :2].float()
    labels = torch.tensor([0, 1, 1, 0, 1])
    of_labels = F.cross_entropy(student, labels, label_smoothing=0.05)
    taught = Sides()(images).logits
    expected = alpha * of_labels + (1 - alpha) * distillation_loss(
        [LEFT_RIGHT], student, taught, 2.0
    )
    teacher = taught_by(Sides(), temperature=2.0, alpha=alpha)
    assert teacher.blend(of_labels, student, images).item() == pytest.approx(expected.item())


# The fit


def image_set(per_class: int, seed: int) -> ImageSet:
    """Return images with a bright square, left for class 0 and right for class 1, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1], per_class)
    pixels = rng.integers(0, 20000, (len(labels), 1, SIDE, SIDE))
    for image, label in zip(pixels, labels, strict=True):
        column = 4 + 16 * label
        image[0, 12:20, column : column + 8] += 40000
    return ImageSet(
        pixels=pixels.astype(np.uint16),
        targets=labels[:, None].astype(float),
        patients=np.array([f"p{i}" for i in range(len(labels))]),
        sources=tuple(f"{i}.png" for i in range(len(labels))),
    )


PLAIN = {"ema": 0.0, "lr_decay": 1.0, "mixup": 0.0}


def make(folder: Path, teacher: Teacher | None, *, flipped: bool = False, **changes: Any) -> Fit:
    """Return a small fit; ``flipped``: all of the labels that training sees are wrong."""
    about = About(
        arch="squeezenet1_1",
        head="linear",
        dropout=0.2,
        heads=(LEFT_RIGHT,),
        recipe=Recipe(size=(SIDE, SIDE), channels=1, window=HeaderVoi()),
        fingerprint="sha256:0",
    )
    torch.manual_seed(0)
    given = {
        "epochs": 1, "batch_size": 4, "lr": 1e-3, "patience": 0, "mode": "all",
        "augment": not flipped, **PLAIN, **changes,
    }  # fmt: skip
    images = image_set(6, 0)
    return Fit(
        network=about.build(),
        about=about,
        train=replace(images, targets=1 - images.targets) if flipped else images,
        val=image_set(4, 1),
        positive="right",
        config=config_from(given),
        folder=folder,
        device=CPU,
        pretrained=False,
        teacher=teacher,
    )


def run(fit: Fit) -> Fit:
    fit.run(lambda _: None, lambda: None)
    return fit


@pytest.mark.parametrize(("alpha", "follows"), [(0.0, "teacher"), (1.0, "labels")])
def test_the_student_follows_the_teacher_or_the_wrong_labels(
    alpha: float, follows: str, tmp_path: Path
) -> None:
    teacher = taught_by(Sides().eval(), alpha=alpha)
    fit = run(make(tmp_path, teacher, flipped=True, epochs=10, label_smoothing=0.0))
    unseen = image_set(10, 77)
    right = predict_logits(fit.network, unseen.pixels, CPU).argmax(1) == unseen.labels
    assert right.mean() > 0.9 if follows == "teacher" else right.mean() < 0.1


def test_teacher_and_student_see_the_same_augmented_batch(tmp_path: Path) -> None:
    teacher = Sides().eval()
    fit = make(tmp_path, taught_by(teacher))
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            seen.append(inputs[0].clone())

    fit.network.register_forward_pre_hook(keep)
    run(fit)
    assert len(seen) == len(teacher.seen) == 3
    assert all(torch.equal(one, other) for one, other in zip(seen, teacher.seen, strict=True))
    as_stored = {image.tobytes() for image in fit.train.pixels.astype(np.float32) / 65535}
    assert not any(image.numpy().tobytes() in as_stored for image in seen[0])


def test_a_teacher_that_has_no_say_changes_no_bit(tmp_path: Path) -> None:
    alone = run(make(tmp_path / "alone", None, epochs=2)).network.state_dict()
    silent = make(tmp_path / "silent", taught_by(Sides(), alpha=1.0), epochs=2)
    heard = make(tmp_path / "heard", taught_by(Sides(), alpha=0.9), epochs=2)
    found, other = run(silent).network.state_dict(), run(heard).network.state_dict()
    assert all(torch.equal(alone[name], found[name]) for name in alone)
    assert not all(torch.equal(alone[name], other[name]) for name in alone)


def test_the_teacher_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(5)
    network = Network("mobilenet_v3_small", logits=2, channels=1, head="linear", dropout=0.5)
    before = {name: tensor.clone() for name, tensor in network.eval().state_dict().items()}
    modes = []
    network.register_forward_hook(
        lambda *_: modes.append(any(module.training for module in network.modules()))
    )
    run(make(tmp_path, taught_by(network), epochs=2))
    assert modes == [False] * 6
    # BatchNorm's running statistics and counters among them.
    assert all(torch.equal(before[n], tensor) for n, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


# The run


@pytest.fixture(scope="module")
def teacher(lung: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a frozen backbone, with options of its own and a sample that is left out."""
    folder = tmp_path_factory.mktemp("taught")
    data = Path(shutil.copytree(lung, folder / "lung"))
    (data / "lesion" / "empty.dcm").write_bytes(b"")
    config = tiny(
        arch="mobilenet_v3_small", mode="head", head_lr=5e-3, head="mlp", lr=FitConfig.lr,
        hflip=True,
        imbalance="class-weights", positive="healthy", window="lung", seed=3,
    )  # fmt: skip
    train(data, folder / "teacher", config, device=CPU)
    return folder / "teacher"


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return the folder of a student of ``teacher`` and what was told; not to be changed."""
    folder, notes = tmp_path_factory.mktemp("students") / "small", Notes()
    before = {path.name: path.read_bytes() for path in teacher.iterdir()}
    found = distil(teacher, folder, "squeezenet1_1", RANDOM, device=CPU, reporter=notes)
    assert found == read_summary(folder)
    assert {path.name: path.read_bytes() for path in teacher.iterdir()} == before
    return folder, notes.lines


def test_a_student_is_a_run_like_any_other(teacher: Path, student: tuple[Path, list]) -> None:
    folder, _ = student
    # The images are the teacher's, and were cleaned for it.
    assert {path.name for path in folder.iterdir()} == {
        name for name in OUTPUTS if not name.startswith("cleaning")
    }
    saved, taught = checkpoints.load_run(folder), checkpoints.load_run(teacher)
    assert saved.about == replace(taught.about, arch="squeezenet1_1")
    network = saved.restore()
    assert network.arch == "squeezenet1_1"
    dataset = read_dataset(folder, saved.about, read_summary(folder))
    logits = predict_logits(network, dataset.split("val").pixels, CPU)
    assert logits.shape == (len(dataset.images["val"]), 2)
    assert np.isfinite(logits).all()


def test_the_data_and_the_splits_are_the_teachers(
    teacher: Path, student: tuple[Path, list]
) -> None:
    folder, _ = student
    assert (folder / "splits.csv").read_bytes() == (teacher / "splits.csv").read_bytes()
    found, taught = read_summary(folder), read_summary(teacher)
    assert found["data"] == taught["data"]
    assert len(found["data"]["excluded"]) == 1
    assert found["recipe"] == taught["recipe"]
    assert found["heads"]["label"]["positive"] == "healthy"
    assert taught["heads"]["label"]["positive"] == "healthy"


def test_the_options_are_the_teachers_but_for_what_makes_a_student(
    teacher: Path, student: tuple[Path, list]
) -> None:
    folder, _ = student
    found, taught = read_summary(folder)["config"], read_summary(teacher)["config"]
    changed = {name for name in taught if found[name] != taught[name]}
    assert changed == {"arch", "mode", "head_lr"}
    assert (found["mode"], found["head_lr"]) == ("all", FitConfig.head_lr)
    config = read_config(folder, read_summary(folder))
    assert (folder / "config.toml").read_text(encoding="utf-8") == to_toml(config)


def test_the_summary_says_who_the_teacher_was(teacher: Path, student: tuple[Path, list]) -> None:
    folder, notes = student
    taught = read_summary(teacher)
    assert read_summary(folder)["distillation"] == {
        "temperature": 4.0,
        "alpha": 0.1,
        "teacher": {
            "name": "teacher",
            "arch": "mobilenet_v3_small",
            "parameters": taught["network"]["parameters"],
            "digest": file_digest(teacher / "best.pt"),
            "validation": {"label": taught["validation"]["heads"]["label"]["metrics"]},
            "test": {"label": taught["test"]["heads"]["label"]["metrics"]},
            "members": [],
        },
    }
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert file_digest(teacher / "best.pt") in report
    assert "Distilled from" in report
    assert "Teacher and student" in report
    assert "Distilled from" not in (teacher / "report.html").read_text(encoding="utf-8")
    assert any(line.startswith("distilling mobilenet_v3_small") for line in notes)
    assert not any("not smaller" in line for line in notes)


class Stopped(Notes):
    """Presses Ctrl-C after the first epoch."""

    @contextmanager
    def fitting(self, *_: object) -> Iterator[tuple[Callable, Callable]]:
        def stop(_: dict) -> None:
            raise KeyboardInterrupt

        yield lambda: None, stop


def distil_an_epoch(run: Path, folder: Path, arch: str, settings: DistilConfig) -> list[str]:
    """Distil until ``last.pt`` is written, which is quick; return what was told."""
    notes = Stopped()
    with pytest.raises(Interrupted, match="after epoch 1; a distillation starts anew"):
        distil(run, folder, arch, settings, device=CPU, reporter=notes)
    return notes.lines


def test_the_best_checkpoint_of_the_run_teaches_as_the_settings_say(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[Teacher] = []
    blend = Teacher.blend

    def spy(self: Teacher, *given: Tensor, **fraction: float) -> Tensor:
        teachers.append(self)
        return blend(self, *given, **fraction)

    monkeypatch.setattr(Teacher, "blend", spy)
    settings = DistilConfig(weights="none", temperature=3.0, alpha=0.25)
    distil_an_epoch(finished, tmp_path / "run", "squeezenet1_1", settings)
    teacher = teachers[-1]
    assert (teacher.temperature, teacher.alpha) == (3.0, 0.25)
    assert not any(module.training for module in teacher.network.modules())
    state, best = teacher.network.state_dict(), checkpoints.load_run(finished).network
    assert state.keys() == best.keys()
    assert all(torch.equal(tensor, best[name]) for name, tensor in state.items())


def test_weights_in_the_cache_are_taken_and_a_student_of_the_same_size_is_told(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    file = imagenet_file("squeezenet1_1")
    file.parent.mkdir(parents=True)
    torch.manual_seed(1)
    cached = checkpoints.load_run(finished).about.build().backbone.state_dict()
    torch.save(cached, file)
    folder = tmp_path / "run"
    # A rate that is too small to be seen
    notes = distil_an_epoch(finished, folder, "squeezenet1_1", DistilConfig(epochs=7, lr=1e-30))
    state = checkpoints.load(folder / "last.pt").restore().backbone.state_dict()
    for name, tensor in cached.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-20)
    written = (folder / "config.toml").read_text(encoding="utf-8")
    assert {'weights = "imagenet"', "epochs = 7", "lr = 1e-30"} <= set(written.splitlines())
    assert any("not smaller than its teacher" in line for line in notes)
    assert not any("random weights" in line for line in notes)


def test_without_weights_the_start_is_random_and_nothing_resumes_it(
    finished: Path, lung: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    folder = tmp_path / "run"
    notes = distil_an_epoch(finished, folder, "squeezenet1_1", DistilConfig())
    [told] = [line for line in notes if line.startswith("the student starts from random weights")]
    assert str(imagenet_file("squeezenet1_1")) in told
    # Going on without the teacher would make another network under the same name.
    teacher = read_config(finished, read_summary(finished))
    config = replace(teacher, fit=replace(teacher.fit, mode="all"))
    assert (folder / "config.toml").read_text(encoding="utf-8") == to_toml(config)
    with pytest.raises(RunUnfit, match="was distilled"):
        train(lung, folder, config, device=CPU, resume=True)


def test_random_weights_are_not_held_where_they_were(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "teacher"))
    change_summary(run, lambda summary: summary["config"].update(l2_sp=0.5))
    distil_an_epoch(run, tmp_path / "run", "squeezenet1_1", RANDOM)
    assert "l2-sp = 0.0" in (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")


# Refusals


def change_summary(run: Path, change: Callable[[dict], Any]) -> None:
    summary = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    change(summary)
    (run / "metrics.json").write_text(json.dumps(summary), encoding="utf-8")


def require_refused(
    run: Path, folder: Path, error: type[Exception], match: str, arch: str = "squeezenet1_1"
) -> None:
    """Require an error of one line, and that an earlier student is left as it is."""
    folder.mkdir(exist_ok=True)
    (folder / "best.pt").write_text("an earlier student")
    with pytest.raises(error, match=match) as refused:
        distil(run, folder, arch, RANDOM, device=CPU, overwrite=True)
    assert "\n" not in str(refused.value)
    assert [path.read_text() for path in folder.iterdir()] == ["an earlier student"]


@pytest.mark.parametrize(
    ("name", "content", "error", "match"),
    [
        ("best.pt", None, UsageError, "holds no best.pt"),
        ("best.pt", "half", CheckpointUnusable, "damaged"),
        ("metrics.json", None, UsageError, "its training is not finished"),
        ("metrics.json", "{", UsageError, r"metrics\.json is damaged"),
        ("metrics.json", "3", UsageError, r"metrics\.json is damaged"),
        ("metrics.json", "{}", UsageError, "of another version of medtl"),
        ("splits.csv", None, UsageError, r"splits\.csv cannot be read"),
        ("splits.csv", "a,b\n1,2\n", UsageError, r"splits\.csv cannot be read"),
        ("splits.csv", "source,frame,label,patient,split,digest,reason\n", ImagesMissing, "not"),
    ],
)
def test_a_run_that_is_not_whole_teaches_nobody(
    name: str, content: str | None, error: type[Exception], match: str,
    finished: Path, tmp_path: Path,
) -> None:  # fmt: skip
    run = Path(shutil.copytree(finished, tmp_path / "teacher"))
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    require_refused(run, tmp_path / "student", error, match)


def test_what_cannot_be_asked_for_is_refused(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    require_refused(finished, folder, UsageError, "student is a resnet5; expected", "resnet5")
    require_refused(tmp_path / "gone", folder, UsageError, "no such run")
    with pytest.raises(OutputExists, match="add --overwrite"):
        distil(finished, folder, "squeezenet1_1", RANDOM, device=CPU)
    with pytest.raises(UsageError, match="name another folder for the student"):
        distil(finished, finished, "squeezenet1_1", RANDOM, device=CPU, overwrite=True)
    weights = DistilConfig(weights=str(tmp_path / "gone.pth"))
    with pytest.raises(UsageError, match=re.escape("gone.pth: expected imagenet, none or a file")):
        distil(finished, tmp_path / "new", "squeezenet1_1", weights, device=CPU)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; expected more than 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"alpha": 1.0}, "alpha is 1.0; expected 0 to less than 1"),
        ({"alpha": -0.1}, "alpha is -0.1"),
    ],
)
def test_settings_out_of_their_limits_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        DistilConfig(**changes)


def test_images_that_are_gone_or_changed_are_refused(
    lung: Path, finished: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(lung, tmp_path / "lung"))
    run = Path(shutil.copytree(finished, tmp_path / "teacher"))
    splits = run / "splits.csv"
    splits.write_text(splits.read_text().replace(str(lung), str(data)))
    first, *others = read_dataset(
        run, checkpoints.load_run(run).about, read_summary(run)
    ).split("test").sources  # fmt: skip
    folder = tmp_path / "student"
    shutil.copy(others[0], first)
    require_refused(run, folder, ImagesMissing, "1 test images of .*pixels have changed")
    Path(first).unlink()
    require_refused(run, folder, ImagesMissing, "1 test images of .*no such file")
    lines = splits.read_text().splitlines(keepends=True)
    splits.write_text("".join(line for line in lines if first not in line))
    require_refused(run, folder, ImagesMissing, "not those it was trained on")


def test_a_loss_that_is_not_finite_is_one_line(finished: Path, tmp_path: Path) -> None:
    settings = DistilConfig(weights="none", lr=1e30)
    with pytest.raises(
        Diverged, match=r"of epoch 1, at the learning rate \S+ of --lr 1e\+30"
    ) as stopped:
        distil(finished, tmp_path / "run", "squeezenet1_1", settings, device=CPU)
    assert "\n" not in str(stopped.value)


def test_a_configuration_without_fields_is_damaged(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "teacher"))
    change_summary(run, lambda summary: summary.update(config=None))
    require_refused(run, tmp_path / "student", UsageError, "damaged: its config")
    change_summary(run, lambda summary: summary.update(config={**flat(TrainConfig()), "lr": -1}))
    require_refused(run, tmp_path / "student", UsageError, "--lr is -1")
