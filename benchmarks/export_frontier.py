"""The export against its peers: speed and accuracy of int8 files of ten trained networks.

Networks are trained from scratch on MedNIST, first at 64 pixels, then at 224, because what int8
costs depends on trained weights and on real activations. Peers make their files in an environment
of their own (`peers.py`). Then all files of a network are timed in turns, one image at a time:
those for ONNX Runtime in one process, those for OpenVINO in another, each beside its float model.
What exists is not made again.

    python benchmarks/export_frontier.py train   --work frontier [--data ../shared/data]
    python benchmarks/export_frontier.py peers   --work frontier [--env frontier/env]
    python benchmarks/export_frontier.py exports --work frontier [--again] [--arch resnet18 ...]
    python benchmarks/export_frontier.py measure --work frontier [--rounds 80]
    python benchmarks/export_frontier.py table   --work frontier
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import common
import numpy as np
from peers import peers

PROGRAMS = Path(sys.executable).parent
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
TARGETS = {"cpu": "onnxruntime", "openvino": "openvino"}
"""Of medtl-export, with the engine that is meant."""
FLOAT = "fp32"
THREADS = 2
MAX_DROP = 0.005


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a network is trained from scratch within minutes on two cores."""

    lr: float = 1e-3
    batch_size: int = 16
    epochs: int = 4
    """At 64 pixels; the weights carry over, because networks end in global pooling."""
    large_epochs: int = 1
    """At 224 pixels."""
    mode: str = "all"
    """What is trained at 224 pixels; the head is enough where no BatchNorm has to adapt."""
    images: str = "large"
    """At 224 pixels: large, or few of them for a network that takes long."""


# BatchNorm of MobileNetV3 has a momentum of 0.01: its statistics need many steps.
SCHEDULES = {
    "resnet18": Schedule(epochs=3),
    "mobilenet_v3_small": Schedule(lr=2e-3, epochs=8, large_epochs=4, batch_size=8),
    "mobilenet_v2": Schedule(),
    "resnet50": Schedule(lr=5e-4, epochs=3, images="few"),
    "efficientnet_b0": Schedule(),
    "mobilenet_v3_large": Schedule(lr=2e-3, epochs=8, large_epochs=3, batch_size=8),
    "densenet121": Schedule(epochs=2, images="few"),
    "regnet_y_400mf": Schedule(),
    "convnext_tiny": Schedule(lr=3e-4, large_epochs=2, images="few"),
    "vgg16": Schedule(lr=1e-4, epochs=3, mode="head", images="few"),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """The folder of everything that is made."""

    folder: Path

    def run(self, arch: str, size: int = 224) -> Path:
        """Return the run of a network."""
        return self.folder / f"runs-{size}" / arch

    def file(self, arch: str, name: str, suffix: str = ".onnx") -> Path:
        """Return a model file."""
        return self.folder / "files" / arch / f"{name}{suffix}"

    def images(self, split: str) -> Path:
        """Return canonical images of a split, the same for every network."""
        return self.folder / f"{split}.npz"

    def result(self, arch: str) -> Path:
        """Return what was measured of a network."""
        return self.folder / "results" / f"{arch}.json"


def train(work: Work, data: Path, archs: Sequence[str]) -> None:
    """Train the networks of which there is no run."""
    source = data / "mednist6k.npz"
    small = subset(source, work.folder / "small.npz", train=600, val=120, test=60)
    large = subset(source, work.folder / "large.npz", train=300, val=300, test=60)
    subset(large, work.folder / "few.npz", train=120, val=300, test=60)
    for arch in archs:
        given = SCHEDULES[arch]
        first, run = work.run(arch, 64), work.run(arch)
        start = ["--size", "64", "--weights", "none", "--arch", arch, "--mode", "all"]
        goes_on = ["--size", "224", "--from", str(first), "--mode", given.mode]
        fit(small, first, given, [*start, "--lr", str(given.lr), "--epochs", str(given.epochs)])
        if given.mode == "all":
            goes_on += ["--lr", str(given.lr / 3)]
        goes_on += ["--epochs", str(given.large_epochs)]
        fit(work.folder / f"{given.images}.npz", run, given, goes_on)


def subset(source: Path, path: Path, **counts: int) -> Path:
    """Write so many images of each split, as many of each class."""
    if path.is_file():
        return path
    draw, arrays = np.random.default_rng(0), {}
    with np.load(source) as given:
        for split, count in counts.items():
            labels = given[f"{split}_labels"].ravel()
            classes = np.unique(labels)
            share = count // len(classes)
            drawn = [draw.choice(np.flatnonzero(labels == c), share, False) for c in classes]
            chosen = np.sort(np.concatenate(drawn))
            arrays[f"{split}_images"] = given[f"{split}_images"][chosen]
            arrays[f"{split}_labels"] = labels[chosen]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def fit(data: Path, run: Path, schedule: Schedule, options: Sequence[str]) -> None:
    """Run medtl-train, unless it is done."""
    if not (run / "metrics.json").is_file():
        command = [PROGRAMS / "medtl-train", data, "--out", run.parent, "--name", run.name]
        command += ["--batch-size", schedule.batch_size, "--overwrite", "--quiet", *options]
        done = common.finished([str(part) for part in command])
        if done.error:
            sys.exit(f"medtl-train, {run}: {done.error}")
        common.on_terminal(f"{run}: {done.seconds:.0f} s")


def make(path: Path, command: Sequence[str | Path], *, again: bool = False) -> None:
    """Let a command write a model file, and write beside it what that took, or why it failed."""
    account = account_of(path)
    if account.is_file() and not again:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    done = common.finished([str(part) for part in command])
    account.write_text(json.dumps(asdict(done)), encoding="utf-8")
    common.on_terminal(f"{path.parent.name} {path.stem}: {done.seconds:.0f} s {done.error}")


def account_of(path: Path) -> Path:
    """Return the file that says what making a model file took."""
    return path.with_suffix(".json")


def make_float(work: Work, arch: str, calibration: int) -> Path:
    """Return the float model of a network; the images of all networks are written with it."""
    path = work.file(arch, FLOAT)
    command = [PROGRAMS / "medtl-export", work.run(arch), "--false-refusal-rate", "0"]
    make(path, [*command, "-o", path, "--quiet"])
    if not path.is_file():
        sys.exit(f"{path} could not be made; {account_of(path)} says why")
    for split, at_most in {"train": calibration, "val": None}.items():
        if not work.images(split).is_file():
            write_images(work.run(arch), split, work.images(split), at_most)
    return path


def write_images(run: Path, split: str, path: Path, at_most: int | None) -> None:
    """Write canonical images of a split as the network's input, and their labels."""
    from medtl_runtime.recipe import as_batch
    from medtl_train.checkpoint import load_run
    from medtl_train.data.images import image_set
    from medtl_train.data.listing import read_again

    about = load_run(run).about
    images, missing = read_again(run / "splits.csv", split, about.recipe, at_most=at_most)
    assert not missing, missing
    found = image_set(images, about.heads)
    np.savez(path, images=as_batch(np.asarray(found.pixels)), labels=found.labels)


def make_environment(folder: Path) -> Path:
    """Return the Python of the peers' environment, with the engines of the same versions."""
    python = folder / "bin" / "python"
    if not python.is_file():
        same = [f"{package}=={version(package)}" for package in ("onnx", "onnxruntime", "openvino")]
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "nncf", *same], check=True)
    return python


def make_peers(work: Work, arch: str, python: Path, names: Sequence[str], calibration: int) -> None:
    """Let peers write their files of a network."""
    script = Path(__file__).with_name("peers.py")
    given = [make_float(work, arch, calibration), work.images("train"), work.images("val")]
    for name in names:
        path = work.file(arch, name, peers()[name].suffix)
        make(path, [python, script, name, *given, path])


def make_exports(work: Work, arch: str, *, again: bool) -> None:
    """Let medtl-export write its files for the CPU."""
    for target in TARGETS:
        path = work.file(arch, f"medtl-{target}")
        command = [PROGRAMS / "medtl-export", work.run(arch), "--quantize", "--target", target]
        make(path, [*command, "-o", path, "--quiet", "--overwrite"], again=again)


def files(work: Work, arch: str, engine: str) -> list[Path]:
    """Return a network's files for an engine, the float model first."""
    ours = [work.file(arch, f"medtl-{target}") for target in TARGETS if TARGETS[target] == engine]
    theirs = [work.file(arch, n, p.suffix) for n, p in peers().items() if p.engine == engine]
    return [work.file(arch, FLOAT), *theirs, *ours]


def time_in_turns(engine: str, images: Path, rounds: int, output: Path, paths: list[Path]) -> None:
    """Run a network's files on an engine; write their logits, and seconds of every round.

    Each run that is timed follows one that is not, which brings the weights back into the cache.
    """
    sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType]
    load = common.on_onnxruntime if engine == "onnxruntime" else common.on_openvino
    with np.load(images) as arrays:
        batches = [image[None] for image in arrays["images"]]
    networks, logits = {}, {}
    for path in paths:
        try:
            networks[path.stem] = load(path, THREADS)
            logits[path.stem] = [networks[path.stem](image)[0] for image in batches]
        except Exception as cause:  # engines' exceptions have no base class
            networks.pop(path.stem, None)
            common.on_terminal(f"{path}: {cause}")
    seconds = np.empty((len(networks), rounds))
    for turn in range(rounds):
        image = batches[turn % len(batches)]
        for index, network in enumerate(networks.values()):
            network(image)
            seconds[index, turn] = common.timed(lambda n=network, x=image: n(x))
    said = np.array([logits[name] for name in networks])
    np.savez(output, names=np.array(list(networks)), logits=said, seconds=seconds)


def measure(work: Work, arch: str, rounds: int) -> None:
    """Measure all files of a network that exist, and write the result."""
    started = os.getloadavg()[0]
    rows = [row for engine in ENGINES for row in measured(work, arch, engine, rounds)]
    validation = _of_head(summary(work, arch)["validation"])
    result = {
        "network": arch,
        "machine": f"{common.machine()}, openvino {version('openvino')}",
        "load": [started, os.getloadavg()[0]],
        "rounds": rounds,
        "validation_auroc": validation["metrics"]["auroc"]["value"],
        "rows": rows,
    }
    work.result(arch).parent.mkdir(parents=True, exist_ok=True)
    work.result(arch).write_text(json.dumps(result, indent=1), encoding="utf-8")
    common.on_terminal(f"{arch}: measured, load {started:.1f}")


def measured(work: Work, arch: str, engine: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each of a network's files for an engine, measured in a new process."""
    listed = [path for path in files(work, arch, engine) if account_of(path).is_file()]
    there = [path for path in listed if path.is_file()]
    output = work.folder / f"turns-{arch}-{engine}.npz"
    command = [sys.executable, __file__, "turns", engine, work.images("val"), str(rounds), output]
    subprocess.run([*command, *there], check=True)
    with np.load(output) as turns, np.load(work.images("val")) as images:
        names, labels = turns["names"].tolist(), images["labels"]
        logits = dict(zip(names, turns["logits"], strict=True))
        seconds = dict(zip(names, turns["seconds"], strict=True))
    temperature = _of_head(summary(work, arch))["temperature"]
    shares = {name: common.softmax(one / temperature) for name, one in logits.items()}
    rows = []
    for path in listed:
        name, made = path.stem, json.loads(account_of(path).read_text(encoding="utf-8"))
        row = {"file": name, "engine": engine, "made": made}
        if name in seconds:
            row |= {
                "mib": size_of(path) / 2**20,
                "speed": asdict(common.compare(seconds[name], seconds[FLOAT])),
                "auroc": asdict(common.auroc_difference(shares[FLOAT], shares[name], labels)),
                "flips": int((logits[name].argmax(1) != logits[FLOAT].argmax(1)).sum()),
            }
        rows.append(row)
    return rows


def summary(work: Work, arch: str) -> dict[str, Any]:
    """Return what medtl-train wrote of a run."""
    return json.loads((work.run(arch) / "metrics.json").read_text(encoding="utf-8"))


def _of_head(document: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of the only head."""
    (found,) = document["heads"].values()
    return found


def size_of(path: Path) -> int:
    """Return the bytes of a model file; OpenVINO keeps weights in a second one."""
    return sum(part.stat().st_size for part in (path, path.with_suffix(".bin")) if part.exists())


def row_cells(network: str, row: dict[str, Any]) -> list[str]:
    """Return a row of the table of all files."""
    made = row["made"]
    what = [network, ENGINES[row["engine"]], row["file"]]
    if "speed" not in row:
        return [*what, *["–"] * 6, (made["error"] or "does not run").replace("|", "/")[:120]]
    speed = common.Ratio(**row["speed"])
    auroc = common.Difference(**row["auroc"])
    return [
        *what,
        f"{1000 * speed.first:.2f}",
        str(speed),
        f"{auroc.value:+.4f} ({auroc.low:+.4f})",
        str(row["flips"]),
        f"{row['mib']:.1f}",
        f"{made['seconds']:.0f} s, {made['peak_mib']:.0f} MiB",
        "",
    ]


def best_cell(rows: Sequence[dict[str, Any]], engine: str, ours: bool) -> str:
    """Return the fastest int8 file that loses no more AUROC than MAX_DROP, with its speed."""
    fit = [
        row
        for row in rows
        if row["engine"] == engine
        and row["file"] != FLOAT
        and row["file"].startswith("medtl") == ours
        and "speed" in row
        and row["auroc"]["value"] >= -MAX_DROP
    ]
    if not fit:
        return "–"
    best = min(fit, key=lambda row: row["speed"]["first"])
    speed = common.Ratio(**best["speed"])
    return f"{1000 * speed.first:.2f} ms, {speed}" + ("" if ours else f", {best['file']}")


def table_of(results: Sequence[dict[str, Any]]) -> str:
    """Return results as Markdown: the best file of each side, then all files."""
    sides = [(engine, ours) for engine in ENGINES for ours in (False, True)]
    best = [
        [one["network"], *(best_cell(one["rows"], engine, ours) for engine, ours in sides)]
        for one in results
    ]
    names = [f"{ENGINES[engine]}, {'medtl' if ours else 'peers'}" for engine, ours in sides]
    cells = [row_cells(one["network"], row) for one in results for row in one["rows"]]
    columns = ["network", "engine", "file", "ms", "times as fast as fp32", "Δ AUROC (low)"]
    return "\n\n".join(
        [
            *dict.fromkeys(one["machine"] for one in results),
            f"224 px, one image at a time, {THREADS} threads, lower quartiles of rounds in turns; "
            "in brackets 95 % bootstrap intervals, of the AUROC their lower end.",
            f"The fastest int8 file that loses at most {MAX_DROP} AUROC:",
            common.markdown(["network", *names], best),
            "All files:",
            common.markdown([*columns, "flips", "MiB", "made in, peak memory", "note"], cells),
        ]
    )


def write_table(work: Work) -> None:
    """Write all results as one table, in Markdown and JSON, and print it."""
    found = [work.result(arch) for arch in SCHEDULES if work.result(arch).is_file()]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in found]
    (work.folder / "frontier.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (work.folder / "frontier.md").write_text(table_of(results) + "\n", encoding="utf-8")
    print(table_of(results))


def main() -> None:
    """Run a step of the benchmark."""
    if sys.argv[1:2] == ["turns"]:  # a process of `measured`
        engine, images, rounds, output, *paths = sys.argv[2:]
        time_in_turns(engine, Path(images), int(rounds), Path(output), [Path(p) for p in paths])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=["train", "peers", "exports", "measure", "table"])
    parser.add_argument("--work", type=Path, default=Path("frontier"), help="folder for all files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--env", type=Path, help="the peers' environment; made if missing")
    parser.add_argument("--arch", nargs="+", choices=list(SCHEDULES), default=list(SCHEDULES))
    parser.add_argument("--peers", nargs="+", choices=list(peers()), default=list(peers()))
    parser.add_argument("--calibration", type=int, default=300, help="images for peers, at most")
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--again", action="store_true", help="make medtl's files again")
    options = parser.parse_args()
    work = Work(folder=options.work)
    if options.step == "train":
        train(work, options.data, options.arch)
    if options.step == "peers":
        python = make_environment(options.env or work.folder / "env")
        for arch in options.arch:
            make_peers(work, arch, python, options.peers, options.calibration)
    for arch in options.arch:
        if options.step == "exports":
            make_exports(work, arch, again=options.again)
        if options.step == "measure" and work.file(arch, FLOAT).is_file():
            measure(work, arch, options.rounds)
    if options.step in ("measure", "table"):
        write_table(work)


if __name__ == "__main__":
    main()
