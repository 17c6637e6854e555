"""One export from a run to a model file: trace, check, quantise, compare, describe, write."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from medtl_export import compare, graph
from medtl_export import quantise as quantisation
from medtl_export.errors import ImagesMissing, QuantisedSlower, QuantisedWorse
from medtl_runtime import __version__
from medtl_runtime.engine import OnnxRuntimeEngine, Session
from medtl_runtime.errors import UsageError
from medtl_runtime.files import refuse_existing, written_whole
from medtl_runtime.modelfile import (
    Description,
    IntendedUse,
    OperatingPoint,
    SelfTest,
    probabilities,
)
from medtl_runtime.selftest import self_test, synthetic_logits
from medtl_train import checkpoint as checkpoints
from medtl_train import metrics
from medtl_train.checkpoint import About
from medtl_train.dataset import ImageSet, image_set, read_again
from medtl_train.fit import predict_logits

_CALIBRATION_IMAGES = 256
_SEEDS = (1, 2, 3, 4)
# Of the largest stored logit: float kernels differ in the last digits, int8 kernels by a step of
# the activations' grid here and there; a saturating kernel is off by far more.
_SELF_TEST_TOLERANCE = {"fp32": 1e-3, "int8": 5e-2}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and what was measured on the way."""

    path: Path
    bytes: int
    parity: compare.Parity
    quantised: dict[str, Any] | None


def export(
    run: Path,
    path: Path,
    *,
    quantise: bool,
    max_drop: float,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write the model file of a run.

    Parameters
    ----------
    run
        A folder that medtl-train wrote; the images that its ``splits.csv`` names are read again.
    path
        The file to write.
    quantise
        Write the int8 model, if it is faster here and loses at most ``max_drop``.
    max_drop
        Largest accepted loss of AUROC on the validation set.
    note
        Is told what is being done.

    Raises
    ------
    CheckpointUnusable, UsageError
        The run cannot be read.
    ImagesMissing
        Its images cannot be read any more.
    ParityFailed, QuantisedWorse, QuantisedSlower
        The file would not be what was validated; none is written.
    """
    refuse_existing(path, overwrite=overwrite)
    saved = checkpoints.load_run(run)
    summary = _summary(run)
    note(f"{run}: {saved.about.arch}, reading validation images")
    val = _images(run, "val", saved.about)

    note("tracing")
    network = saved.restore()
    float_model = graph.to_onnx(network, saved.about.recipe)
    reference = predict_logits(network, val.pixels, torch.device("cpu"))
    scored = _scored(val, saved.about, summary, reference)
    float_session = Session(float_model.SerializeToString(), device="cpu")
    float_logits = compare.run_all(float_session, val.pixels)
    parity = compare.check_parity(reference, float_logits, scored)
    note(
        f"parity with torch on {parity.images} validation images: "
        f"max |Δlogit| {parity.largest_difference:.2g}, {parity.flips} flips"
    )

    model, session, account = float_model, float_session, None
    if quantise:
        note("calibrating")
        train = _images(run, "train", saved.about, at_most=_CALIBRATION_IMAGES)
        model = quantisation.quantise(float_model, train.pixels)
        session = Session(model.SerializeToString(), device="cpu")
        note("comparing fp32 and int8")
        before = compare.with_logits(scored, float_logits)
        account = _account(model, float_session, session, before, val, len(train))
        require_better(account, max_drop)

    description = _describe(path.stem, saved.about, summary, model, session, account, parity)
    _write(path, graph.described(model, description))
    return Exported(path=path, bytes=path.stat().st_size, parity=parity, quantised=account)


def _summary(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise UsageError(f"{run} holds no metrics.json: its training is not finished") from cause
    except ValueError as cause:
        raise UsageError(f"{run / 'metrics.json'} is damaged") from cause


def _images(run: Path, split: str, about: About, at_most: int | None = None) -> ImageSet:
    """Read a split's images again, exactly as for training; or an even spread of them."""
    try:
        images, missing = read_again(run / "splits.csv", split, about.recipe, at_most=at_most)
    except (OSError, KeyError, ValueError) as cause:
        raise UsageError(f"{run / 'splits.csv'} cannot be read") from cause
    if missing:
        raise ImagesMissing(
            f"{len(missing)} {split} images of {run} are not what they were; "
            f"the first: {missing[0].source}: {missing[0].reason}"
        )
    if not images:
        raise UsageError(f"{run} has no {split} images in its splits.csv")
    return image_set(images, about.classes)


def _scored(
    val: ImageSet, about: About, summary: dict[str, Any], logits: NDArray[np.float32]
) -> metrics.Scored:
    """Return the validation images with what a network says of them; ``logits`` are N x K."""
    return metrics.Scored(
        labels=val.labels,
        probabilities=probabilities(logits, 1.0),
        patients=val.patients,
        classes=about.classes,
        point=OperatingPoint(**summary["operating_point"]),
    )


def _account(
    model: onnx.ModelProto,
    float_session: Session,
    session: Session,
    before: metrics.Scored,
    val: ImageSet,
    calibration_images: int,
) -> dict[str, Any]:
    """Measure fp32 against int8 and return the quantisation account of the model file."""
    after = compare.with_logits(before, compare.run_all(session, val.pixels))
    latency = compare.compare_latency(float_session, session, val.pixels)
    return {
        "scheme": quantisation.SCHEME,
        "calibration_images": calibration_images,
        "kept_in_float": quantisation.kept_in_float(model),
        "operators": graph.operator_counts(model),
        "validation_images": len(val),
        "accuracy": {"fp32": compare.accuracy(before), "int8": compare.accuracy(after)},
        "flips": compare.flips(before, after),
        "latency": asdict(latency),
        "machine": {**compare.machine(), "engine": session.name},
    }


def require_better(account: dict[str, Any], max_drop: float) -> None:
    """Refuse a quantised model that is worse or slower than what it replaces."""
    before, after = (account["accuracy"][name]["auroc"] for name in ("fp32", "int8"))
    if before is None or after is None:
        raise QuantisedWorse("fp32 and int8 cannot be compared: AUROC is not defined on this data")
    drop = before - after
    if drop > max_drop:
        raise QuantisedWorse(
            f"int8 loses {drop:.4f} AUROC on the validation set ({before:.4f} to {after:.4f}); "
            f"--max-drop allows {max_drop:g}. No file written"
        )
    latency = account["latency"]
    if latency["low"] <= 1:
        raise QuantisedSlower(
            f"int8 is not faster on this machine: {latency['reference_ms']:.2f} ms to "
            f"{latency['candidate_ms']:.2f} ms, speed-up {latency['speed_up']:.2f} "
            f"({latency['low']:.2f} to {latency['high']:.2f}). No file written; "
            "export without --quantize"
        )


def _describe(
    name: str,
    about: About,
    summary: dict[str, Any],
    model: onnx.ModelProto,
    session: Session,
    account: dict[str, Any] | None,
    parity: compare.Parity,
) -> Description:
    precision = "fp32" if account is None else "int8"
    logits = synthetic_logits(session, about.recipe, _SEEDS)
    tolerance = _SELF_TEST_TOLERANCE[precision] * max(1.0, float(np.abs(logits).max()))
    return Description(
        name=name,
        version=summary["data"]["fingerprint"].removeprefix("sha256:")[:12],
        task="multiclass",
        classes=about.classes,
        recipe=about.recipe,
        operating_point=OperatingPoint(**summary["operating_point"]),
        intended_use=IntendedUse(modalities=about.modalities),
        self_test=SelfTest(
            seeds=_SEEDS,
            logits=tuple(tuple(float(x) for x in row) for row in logits),
            tolerance=tolerance,
        ),
        precision=precision,
        quantisation=account,
        provenance=_provenance(about, summary, parity),
        requires={
            "ir_version": model.ir_version,
            "opset": graph.opset(model),
            "onnxruntime": "1.23",
        },
    )


def _provenance(about: About, summary: dict[str, Any], parity: compare.Parity) -> dict[str, Any]:
    """Return where the model comes from, without any path of this machine."""
    paths = ("from_run", "weights")
    configuration = {
        name: Path(value).name if name in paths and value else value
        for name, value in summary["config"].items()
    }
    return {
        "run": summary["name"],
        "architecture": about.arch,
        "head": about.head,
        "data_fingerprint": about.fingerprint,
        "images": summary["data"]["images"],
        "patients": summary["data"]["patients"],
        "patients_known": summary["data"]["patients_known"],
        "configuration": configuration,
        "parent_weights": Path(summary["transfer"]["source"]).name,
        "validation": summary["validation"],
        "test": summary["test"],
        "parity": asdict(parity),
        "versions": {
            **summary["training"]["versions"],
            "medtl": __version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }


def _write(path: Path, model: onnx.ModelProto) -> None:
    """Write the file whole, after the runtime has loaded it and passed its self-test."""
    with written_whole(path) as part:
        part.write_bytes(model.SerializeToString())
        self_test(OnnxRuntimeEngine(part, device="cpu"))
