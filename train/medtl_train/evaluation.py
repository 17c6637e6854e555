"""Evaluates the best checkpoint of a run and writes its figures and report."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medtl_models.network import Network
from medtl_runtime.calibration import choose_operating_point, choose_temperature
from medtl_runtime.decision import OperatingPoint, probabilities
from medtl_runtime.files import write_text
from medtl_runtime.recipe import as_batch
from medtl_train import checkpoint as checkpoints
from medtl_train import metrics
from medtl_train.config import TrainConfig
from medtl_train.dataset import Dataset, ImageSet
from medtl_train.fit import Progress, predict_logits
from medtl_train.report import Example, Predictions, write_report

_EXAMPLES = 8


def evaluate_run(
    folder: Path,
    summary: dict[str, Any],
    dataset: Dataset,
    config: TrainConfig,
    device: torch.device,
    progress: Progress,
) -> None:
    """Evaluate the best checkpoint; add the figures to ``summary`` and write all files.

    The temperature is fitted on the validation logits first: all probabilities, the operating point
    and the figures are of the calibrated model, as it will run.
    """
    network = checkpoints.load(folder / "best.pt").restore().to(device)
    sets = {name: dataset.split(name) for name in ("val", "test") if dataset.images[name]}
    logits = {name: predict_logits(network, images.pixels, device) for name, images in sets.items()}
    temperature = choose_temperature(logits["val"], sets["val"].labels)
    chances = {name: probabilities(found, temperature) for name, found in logits.items()}
    point = _operating_point(summary, sets["val"], chances["val"])
    summary["temperature"] = temperature
    summary["operating_point"] = asdict(point)
    scored = {
        name: metrics.Scored(
            labels=images.labels,
            probabilities=chances[name],
            patients=images.patients,
            classes=dataset.classes,
            point=point,
        )
        for name, images in sets.items()
    }
    seed = config.fit.seed
    summary["validation"] = metrics.evaluate(scored["val"], seed=seed)
    summary["test"] = metrics.evaluate(scored["test"], seed=seed) if "test" in scored else None
    write_text(folder / "metrics.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    shown = "test" if "test" in sets else "val"
    write_report(
        folder / "report.html",
        metrics=summary,
        history=progress.history,
        predictions={
            name: Predictions(labels=one.labels, probabilities=one.probabilities)
            for name, one in scored.items()
        },
        examples=_examples(network, sets[shown], scored[shown], device),
    )


def _operating_point(summary: dict[str, Any], val: ImageSet, chances: np.ndarray) -> OperatingPoint:
    if summary["positive"] is None:
        return OperatingPoint(chosen="the most probable class")
    classes = tuple(summary["classes"])
    return choose_operating_point(val.labels, chances, classes, summary["positive"])


@torch.inference_mode()
def _examples(
    network: Network, images: ImageSet, scored: metrics.Scored, device: torch.device
) -> list[Example]:
    """Return the surest errors, up to half of the examples, then the surest right ones by class."""
    predicted = scored.predicted
    sureness = scored.probabilities[np.arange(len(predicted)), predicted]
    order = np.argsort(-sureness, kind="stable")
    wrong = [int(i) for i in order if predicted[i] != scored.labels[i]][: _EXAMPLES // 2]
    right = [int(i) for i in order if predicted[i] == scored.labels[i]]
    by_class = [[i for i in right if scored.labels[i] == k] for k in range(len(scored.classes))]
    share = -(-(_EXAMPLES - len(wrong)) // len(by_class))
    chosen = (wrong + [i for some in by_class for i in some[:share]])[:_EXAMPLES]
    if not chosen:
        return []
    batch = torch.from_numpy(as_batch(images.pixels[chosen])).to(device)
    cams = network(batch).cam.float().cpu().numpy()
    return [
        Example(
            pixels=images.pixels[i],
            cam=cam,
            truth=int(scored.labels[i]),
            predicted=int(predicted[i]),
            probability=float(sureness[i]),
            source=Path(images.sources[i]).name,
        )
        for i, cam in zip(chosen, cams, strict=True)
    ]
