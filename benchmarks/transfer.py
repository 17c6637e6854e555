"""What transfer brings: small targets from scratch, from a source, with L2-SP, with the defaults.

squeezenet1_1 at 64 pixels, trained on 1, 5, 20 and 100 % of a target's training images, with seeds
0 to 2. Sources are a MedNIST run of medtl's own and real ImageNet weights; targets are BUSI,
BreastMNIST and brain MR. Validation and test images are the same for all shares, seeds and
recipes; the validation images choose the epoch, and the test images are evaluated once.

Training images that a share leaves out are evaluated, too: no run has seen them, and no test image
is among them, so that recipes may be chosen by them (``table --split development``). Runs that
exist are not made again.

    python benchmarks/transfer.py run   --work transfer [--data ../shared/data] [--targets busi ...]
    python benchmarks/transfer.py table --work transfer [--split development]
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from medtl_train.config import TrainConfig
from medtl_train.console import Reporter
from medtl_train.data.dataset import Dataset, fingerprint_of
from medtl_train.options import config_from, to_toml
from medtl_train.run import prepare, train, train_on
from medtl_train.start import find_origins

SHARES = (0.01, 0.05, 0.2, 1.0)
SEEDS = (0, 1, 2)
LEAST = 2
"""Images of each class, however small the share."""
COMMON = {"size": 64, "arch": "squeezenet1_1", "channels": "1"}
EPOCHS = {0.01: 30, 0.05: 30, 0.2: 20, 1.0: 12}
"""Of fewer images an epoch is shorter."""
TARGETS = {
    "busi": "images/busi",
    "breastmnist": "breastmnist.npz",
    "brain-mr": "images/brain_mri_tumour_yes_no",
}
SPLITS = {"test": "test", "validation": "validation", "development": "external"}
"""What may be shown, by what ``metrics.json`` calls it."""
IMAGENET = "weights/squeezenet1_1_imagenet.pth"
PLAIN = {"mode": "all", "label_smoothing": 0.0, "dropout": 0.0, "ema": 0.0, "lr_decay": 1.0}
"""Fine-tuning without any ingredient but the weights it starts from."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a target is learnt."""

    name: str
    source: str
    """none, mednist or imagenet."""
    options: dict[str, Any]


def recipes() -> list[Recipe]:
    """Return what is compared."""
    found = [Recipe(name="from scratch", source="none", options=PLAIN)]
    for source in ("mednist", "imagenet"):
        found += [
            Recipe(name="frozen features", source=source, options={"mode": "features"}),
            Recipe(name="fine-tuned", source=source, options=PLAIN),
            Recipe(name="with L2-SP", source=source, options=PLAIN | {"l2_sp": 0.01}),
            Recipe(name="default recipe", source=source, options={}),
        ]
    return found


def source_run(work: Path, data: Path) -> Path:
    """Return the run on MedNIST that targets start from."""
    run = work / "mednist"
    if not (run / "metrics.json").is_file():
        options = COMMON | {"weights": "none", "mode": "all", "lr": 1e-3, "epochs": 8}
        train(
            data / "mednist6k.npz",
            run,
            config_from(options),
            device=torch.device("cpu"),
            overwrite=True,
            reporter=Reporter(),
        )
    return run


def config_of(recipe: Recipe, share: float, seed: int, work: Path, data: Path) -> TrainConfig:
    """Return the options of a run."""
    origin = {
        "none": {"weights": "none"},
        "mednist": {"from_run": (str(work / "mednist"),)},
        "imagenet": {"weights": str(data / IMAGENET)},
    }[recipe.source]
    batch = 32 if share >= 0.2 else 8
    given = {"epochs": EPOCHS[share], "batch_size": batch, "patience": 0}
    if recipe.options.get("mode") == "features":
        given = {}  # no step is taken
    return config_from(COMMON | origin | given | recipe.options | {"seed": seed})


def with_share(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Return the data set with so much of its training images, drawn by class.

    The rest of them becomes the external set.
    """
    by_class = defaultdict(list)
    for image in dataset.images["train"]:
        by_class[image.sample.label].append(image)
    draw = np.random.default_rng(seed)
    kept = []
    for name in sorted(by_class):
        images = by_class[name]
        count = min(len(images), max(LEAST, round(share * len(images))))
        kept += [images[i] for i in np.sort(draw.permutation(len(images))[:count])]
    # Of a patient, or of nearly the same images, all are used or none is development's.
    used = {image.group for image in kept}
    unused = tuple(image for image in dataset.images["train"] if image.group not in used)
    images = {**dataset.images, "train": tuple(kept), "external": unused}
    every = [image for some in images.values() for image in some]
    return replace(dataset, images=images, fingerprint=fingerprint_of(every))


def runs(work: Path, targets: Sequence[str]) -> Iterator[tuple[str, Recipe, float, int, Path]]:
    """Yield every run of the comparison with its folder."""
    for target in targets:
        for share in SHARES:
            for seed in SEEDS:
                for recipe in recipes():
                    name = f"{recipe.source}-{recipe.name.replace(' ', '-')}"
                    folder = work / target / f"{share:g}" / f"{name}-{seed}"
                    yield target, recipe, share, seed, folder


def is_of(run: Path, config: TrainConfig) -> bool:
    """Whether a finished run was trained with these options."""
    return (run / "config.toml").read_text(encoding="utf-8") == to_toml(config)


def run_all(work: Path, data: Path, targets: Sequence[str]) -> None:
    """Train what has not been trained."""
    source_run(work, data)
    prepared: dict[str, Dataset] = {}
    for target, recipe, share, seed, folder in runs(work, targets):
        config = config_of(recipe, share, seed, work, data)
        if (folder / "metrics.json").is_file() and is_of(folder, config):
            continue
        path = data / TARGETS[target]
        if target not in prepared:
            # One split for all: the seed of the run draws its share and its order only.
            first = config_of(recipe, share, 0, work, data)
            prepared[target] = prepare(path, first, Reporter(quiet=True))
        train_on(
            path,
            with_share(prepared[target], share, seed),
            find_origins(config.network)[0],
            folder,
            config,
            device=torch.device("cpu"),
            reporter=Reporter(quiet=True),
        )
        common.on_terminal(f"{target} {share:g} {recipe.source} {recipe.name} {seed}")


def results(
    work: Path, targets: Sequence[str], split: str
) -> dict[tuple[str, str, str, float], list[dict]]:
    """Return the metrics of the seeds by target, source, recipe and share."""
    found = defaultdict(list)
    for target, recipe, share, _, folder in runs(work, targets):
        path = folder / "metrics.json"
        if path.is_file():
            evaluation = json.loads(path.read_text(encoding="utf-8"))[SPLITS[split]]
            if evaluation is not None:
                (head,) = evaluation["heads"].values()
                found[target, recipe.source, recipe.name, share].append(head["metrics"])
    return found


def cell(seeds: Sequence[dict[str, Any]], metric: str) -> str:
    """Return the mean over seeds, with the mean of their 95 % intervals."""
    if not seeds:
        return "–"
    value, low, high = (
        np.mean([one[metric][key] for one in seeds]) for key in ("value", "low", "high")
    )
    missing = "" if len(seeds) == len(SEEDS) else f", {len(seeds)} of {len(SEEDS)} seeds"
    return f"{value:.3f} ({low:.3f} to {high:.3f}{missing})"


def table(work: Path, targets: Sequence[str], split: str) -> str:
    """Return AUROC and accuracy on the images of a split as Markdown."""
    found = results(work, targets, split)
    parts = [
        f"{common.machine()}; squeezenet1_1, 64 px; means over seeds {SEEDS[0]} to {SEEDS[-1]}, "
        "in brackets the mean of their 95 % bootstrap intervals"
    ]
    for metric in ("auroc", "accuracy"):
        rows = [
            [target, recipe.source, recipe.name]
            + [cell(found[target, recipe.source, recipe.name, share], metric) for share in SHARES]
            for target in targets
            for recipe in recipes()
        ]
        header = ["target", "source", "recipe", *(f"{share:.0%}" for share in SHARES)]
        parts += [f"**{metric.upper()}**", common.markdown(header, rows)]
    return "\n\n".join(parts)


def main() -> None:
    """Run a step of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=["run", "table"])
    parser.add_argument("--work", type=Path, default=Path("transfer"), help="folder for all runs")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--split", choices=list(SPLITS), default="test", help="of the table")
    options = parser.parse_args()
    if options.step == "run":
        run_all(options.work, options.data, options.targets)
    print(table(options.work, options.targets, options.split))


if __name__ == "__main__":
    main()
