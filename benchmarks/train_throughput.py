"""How near medtl-train comes to the speed of the network alone, and how other loaders do.

In one run, in turns: the network on one synthetic batch (pure compute); medtl's loop on canonical
images, with and without augmentation; a torch DataLoader with torchvision's transforms; one that
augments whole batches as fastai does; timm's loader, where timm is installed. All of them take the
same steps of the same network, and the loaders read the same files. Beside the rates stands the
processor time of all processes, which says more where other programs use the machine.

    python benchmarks/train_throughput.py FOLDER [--arch resnet18] [--batch 16] [--rounds 3]

FOLDER holds a folder of PNG or JPEG files per class.
"""

import argparse
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medtl_models.network import Network
from medtl_runtime.pipeline import cores
from medtl_runtime.reading import read_scan
from medtl_runtime.recipe import HeaderVoi, Recipe
from medtl_train.augmentation.augment import augment
from medtl_train.config import AugmentConfig, SpeedConfig
from medtl_train.config.speed import CompileChoice
from medtl_train.data.images import ImageSet
from medtl_train.device import choose_device, device_name
from medtl_train.fitting.feed import Batch, Feed
from medtl_train.fitting.precision import place, tuned
from medtl_train.fitting.stepper import Forward, Stepper

_PURE = "pure compute"
_STARTS = 2
"""Steps at the start of an epoch that do not count: workers start, caches fill."""

Batches = Callable[[], Iterable[Batch]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured."""

    folder: Path
    arch: str
    size: int
    batch: int
    steps: int
    workers: int
    device: torch.device


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12, help="counted, of each epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=("yes", "no"), default="no")
    options = parser.parse_args()
    setting = Setting(
        folder=options.folder,
        arch=options.arch,
        size=options.size,
        batch=options.batch,
        steps=options.steps,
        workers=options.workers,
        device=choose_device(options.device),
    )
    print(f"{common.machine()}, torch {torch.__version__}, {device_name(setting.device)}")
    print(f"load before: {os.getloadavg()[0]:.1f}")
    with tuned(setting.device):
        measure(setting, options.rounds, options.compile)
    print(f"load after: {os.getloadavg()[0]:.1f}")


def measure(setting: Setting, rounds: int, compiled: CompileChoice) -> None:
    """Print the images a second of every way, and what augmentation costs."""
    started = time.perf_counter()
    images = read_once(setting)
    print(f"read once: {len(images)} images in {time.perf_counter() - started:.1f} s")
    step = stepping(setting, compiled)
    ways = {_PURE: synthetic(setting), **ours(setting, images), **loaders(setting)}
    spent: dict[str, list[Spent]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, batches in ways.items():
            spent[name].append(spent_a_step(step, batches, setting))
            rate = setting.batch / spent[name][-1].seconds
            common.on_terminal(f"round {number + 1}, {name}: {rate:.2f} images/s")
    print(f"{setting.arch}, {setting.size} px, {setting.batch} images a step, {rounds} rounds")
    header = ["way", "images/s", "of pure compute", "processor time, of pure compute"]
    print(common.markdown(header, [row(name, spent, setting) for name in ways]))
    compute = float(np.quantile([one.processor for one in spent[_PURE]], 0.25))
    if setting.device.type == "cuda":
        compute = float(np.quantile([one.seconds for one in spent[_PURE]], 0.25))
    cost = augmenting(setting)
    print(f"augmentation: {1000 * cost:.1f} ms a batch, {100 * cost / compute:.1f} % of a step")
    print(f"peak memory: {peak_memory(setting.device):.2f} GiB")


def peak_memory(device: torch.device) -> float:
    """Return the most that was in use at a time, GiB: of the GPU's memory, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def row(name: str, spent: Mapping[str, list["Spent"]], setting: Setting) -> list[str]:
    """Return a way's line of the table."""
    wall = [[one.seconds for one in spent[which]] for which in (name, _PURE)]
    processor = [[one.processor for one in spent[which]] for which in (_PURE, name)]
    rate = common.compare(*wall)
    return [
        name,
        f"{setting.batch / rate.first:.1f}",
        str(rate),
        str(common.compare(*processor)),
    ]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a step took."""

    seconds: float
    processor: float
    """Seconds of all cores and processes."""


def stepping(setting: Setting, compiled: CompileChoice) -> Callable[[Batch], None]:
    """Return what takes a step, as the training loop does."""
    torch.manual_seed(0)
    network = Network(setting.arch, logits=2, channels=3, head="linear", dropout=0.2)
    place(network.train(), setting.device)
    stepper = Stepper(network, setting.device, SpeedConfig(compile=compiled))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)

    def objective(forward: Forward, batch: Batch) -> Tensor:
        return F.cross_entropy(forward(batch.images).logits, batch.targets[:, 0].long())

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        stepper.backward(batch, objective)
        optimizer.step()

    return step


def spent_a_step(step: Callable[[Batch], None], batches: Batches, setting: Setting) -> Spent:
    """Return the mean over an epoch's steps, the first ones left out."""
    started = processor = 0.0
    for index, batch in enumerate(islice(batches(), setting.steps + _STARTS)):
        if index == _STARTS:
            finish(setting.device)
            started, processor = time.perf_counter(), processor_seconds()
        step(batch)
    finish(setting.device)
    return Spent(
        seconds=(time.perf_counter() - started) / setting.steps,
        processor=(processor_seconds() - processor) / setting.steps,
    )


def processor_seconds() -> float:
    """Return what this process and the loader's workers have used up so far."""
    ticks = 0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def finish(device: torch.device) -> None:
    """Wait until the device has done all that was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def files_of(folder: Path) -> list[tuple[Path, int]]:
    """Return all files with the number of their class."""
    classes = sorted(one for one in folder.iterdir() if one.is_dir())
    suffixes = (".png", ".jpg", ".jpeg")
    return [
        (file, index)
        for index, one in enumerate(classes)
        for file in sorted(one.iterdir())
        if file.suffix.lower() in suffixes
    ]


def read_once(setting: Setting) -> ImageSet:
    """Return the files as canonical images: enough for the steps, repeated if there are fewer."""
    recipe = Recipe(size=(setting.size, setting.size), channels=3, window=HeaderVoi())
    needed = setting.batch * (setting.steps + _STARTS)
    files = list(islice(cycle(files_of(setting.folder)), needed))
    prepared = {
        file: recipe.apply(next(read_scan(str(file)).frames()), str(file)).pixels
        for file in dict(files)
    }
    return ImageSet(
        pixels=np.stack([prepared[file] for file, _ in files]),
        targets=np.array([[index % 2] for _, index in files], np.float64),
        patients=np.array([str(index) for index in range(needed)]),
        sources=tuple(str(file) for file, _ in files),
    )


def synthetic(setting: Setting) -> Batches:
    """Return one batch again and again."""
    shape = (setting.batch, 3, setting.size, setting.size)
    images = torch.rand(shape, device=setting.device)
    targets = torch.zeros(setting.batch, 1, device=setting.device)
    batch = Batch(images=images, targets=targets)
    return lambda: cycle([batch])


def ours(setting: Setting, images: ImageSet) -> dict[str, Batches]:
    """Return medtl's loop with the default augmentation and without."""
    made = {}
    for name, config in {
        "medtl": AugmentConfig(),
        "medtl, one of (TrivialAugment)": AugmentConfig(preset="mr", one_of=True),
        "medtl, no augmentation": AugmentConfig(augment=False),
    }.items():
        feed = Feed(
            images=images, batch_size=setting.batch, augmentation=config, device=setting.device
        )
        made[name] = partial(feed.epoch, order=0, changes=0)
    return made


def loaders(setting: Setting) -> dict[str, Batches]:
    """Return what decodes the files anew in every epoch."""
    made: dict[str, Batches] = {
        "DataLoader, torchvision transforms": partial(of_files, setting, whole=False),
        "DataLoader, batches augmented (fastai)": partial(of_files, setting, whole=True),
    }
    try:
        import timm.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        common.on_terminal("timm is not installed: its loader is left out")
        return made
    return {**made, f"timm {timm.__version__}": partial(of_timm, setting, timm.data)}


class Files(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Files, decoded and transformed one by one."""

    def __init__(self, files: list[tuple[Path, int]], transform: Callable[[Any], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        path, label = self.files[index]
        return self.transform(Image.open(path).convert("RGB")), label % 2


def of_files(setting: Setting, *, whole: bool) -> Iterator[Batch]:
    """Yield batches of a DataLoader, augmented one by one or, as fastai does, all at once."""
    from torchvision.transforms import v2

    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if whole:
        transforms = [v2.Resize((setting.size, setting.size)), *tensor]
    else:  # torchvision's reference recipe for ImageNet, and timm's default
        transforms = [
            v2.RandomResizedCrop(setting.size),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4),
            *tensor,
        ]
    needed = setting.batch * (setting.steps + _STARTS)
    files = list(islice(cycle(files_of(setting.folder)), needed))
    loader = torch.utils.data.DataLoader(
        Files(files, v2.Compose(transforms)),
        setting.batch,
        shuffle=True,
        num_workers=setting.workers,
        pin_memory=setting.device.type == "cuda",
        drop_last=True,
    )
    generator = torch.Generator(setting.device)
    strengths = AugmentConfig().strengths
    for images, labels in loader:
        moved = images.to(setting.device, non_blocking=True)
        changed = augment(moved, strengths, generator) if whole else moved
        targets = labels[:, None].float().to(setting.device, non_blocking=True)
        yield Batch(images=changed, targets=targets)


def of_timm(setting: Setting, data: Any) -> Iterator[Batch]:
    """Yield batches of timm's loader with its default transforms of training."""
    dataset = data.create_dataset("", root=str(setting.folder))
    loader = data.create_loader(
        dataset,
        input_size=(3, setting.size, setting.size),
        batch_size=setting.batch,
        is_training=True,
        use_prefetcher=setting.device.type == "cuda",
        num_workers=setting.workers,
        device=setting.device,
    )
    needed = setting.steps + _STARTS
    while needed > 0:
        for images, labels in islice(loader, needed):
            needed -= 1
            targets = (labels % 2)[:, None].float().to(setting.device)
            yield Batch(images=images.to(setting.device), targets=targets)


def augmenting(setting: Setting) -> float:
    """Return the seconds of a batch's default augmentation; of processor time, if it is there."""
    images = torch.rand(setting.batch, 3, setting.size, setting.size, device=setting.device)
    generator, strengths = torch.Generator(setting.device), AugmentConfig().strengths
    clock = time.perf_counter if setting.device.type == "cuda" else time.process_time
    found = []
    for _ in range(21):
        started = clock()
        augment(images, strengths, generator)
        finish(setting.device)
        found.append(clock() - started)
    return float(np.quantile(found[1:], 0.25))


if __name__ == "__main__":
    main()
