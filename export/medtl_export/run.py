"""One export from a run to a model file: trace, check, quantise, compare, describe, write."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from medtl_export import compare, cutoffs, graph
from medtl_export import quantise as quantisation
from medtl_export.compare import Outputs
from medtl_export.describe import Contents, describe
from medtl_export.errors import ImagesMissing, QuantisedSlower, QuantisedWorse
from medtl_export.intended_use import intended_use
from medtl_export.settings import Settings
from medtl_runtime.decision import Decision, OperatingPoint, probabilities
from medtl_runtime.engines import load_engine
from medtl_runtime.engines.onnxruntime import Session
from medtl_runtime.errors import UsageError
from medtl_runtime.files import refuse_existing, written_whole
from medtl_runtime.intended_use import IntendedUse
from medtl_runtime.novelty import EmbeddingReference
from medtl_runtime.onnxfile import read_model_file
from medtl_train import checkpoint as checkpoints
from medtl_train import metrics
from medtl_train.checkpoint import About
from medtl_train.dataset import ImageSet, image_set, read_again, spread
from medtl_train.fit import predict_logits

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_CALIBRATION_IMAGES = 256
_REFERENCE_IMAGES = 2000
_REFERENCE_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and what was measured on the way."""

    path: Path
    bytes: int
    parity: compare.Parity
    quantised: dict[str, Any] | None
    decision: Decision
    intended_use: IntendedUse


def export(
    run: Path,
    path: Path,
    settings: Settings,
    *,
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
    note
        Is told what is being done.

    Raises
    ------
    CheckpointUnusable, UsageError, ExtraMissing
        The run or the key cannot be read, or the images are too few for what is asked of them.
    ImagesMissing
        Its images cannot be read any more.
    ParityFailed, QuantisedWorse, QuantisedSlower
        The file would not be what was validated; none is written.
    """
    refuse_existing(path, overwrite=overwrite)
    key = _key(settings.sign)
    saved = checkpoints.load_run(run)
    about, summary = saved.about, _summary(run)
    contract = intended_use(summary["data"]["headers"], settings.intended_use)
    note(f"{run}: {about.arch}, reading validation images")
    val = _images(run, "val", about)
    cutoffs.require_enough(
        val.labels,
        about.classes,
        false_refusal_rate=settings.false_refusal_rate,
        error_rate=settings.error_rate,
    )

    note("tracing")
    network, temperature = saved.restore(), summary["temperature"]
    reference = predict_logits(network, val.pixels, torch.device("cpu"))
    scored = _scored(val, about, summary, reference)
    candidate = _candidate(graph.to_onnx(network, about.recipe), val)
    parity = compare.check_parity(reference, candidate.outputs.logits, scored, temperature)
    note(
        f"parity with torch on {parity.images} validation images: "
        f"max |Δlogit| {parity.largest_difference:.2g}, {parity.flips} flips"
    )

    novelty = cutoffs.wants_novelty(len(val), settings.false_refusal_rate, note)
    train = _training_images(run, about, settings, novelty=novelty)
    account = None
    if settings.quantise:
        assert train is not None
        note("calibrating, then comparing fp32 and int8")
        candidate, account = _quantised(candidate, train, val, scored, temperature)
        require_better(account, settings.max_drop)

    decision, embeddings = _decide(summary, settings, val, candidate, train if novelty else None)
    contents = Contents(
        about=about,
        summary=summary,
        model=candidate.model,
        session=candidate.session,
        parity=parity,
        quantisation=account,
        decision=decision,
        embedding_reference=embeddings,
        aggregation=settings.aggregation,
        intended_use=contract,
    )
    _write(path, graph.described(candidate.model, describe(path.stem, contents)), key)
    return Exported(
        path=path,
        bytes=path.stat().st_size,
        parity=parity,
        quantised=account,
        decision=decision,
        intended_use=contract,
    )


def _key(path: Path | None) -> "Ed25519PrivateKey | None":
    if path is None:
        return None
    from medtl_runtime.signature import read_private_key

    return read_private_key(path)


def _summary(run: Path) -> dict[str, Any]:
    try:
        summary = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        if {"temperature", "operating_point"} - set(summary) or "headers" not in summary["data"]:
            raise UsageError(f"{run} is a run of another version of medtl; train it again")
    except FileNotFoundError as cause:
        raise UsageError(f"{run} holds no metrics.json: its training is not finished") from cause
    except (ValueError, TypeError, KeyError) as cause:
        if isinstance(cause, UsageError):
            raise
        raise UsageError(f"{run / 'metrics.json'} is damaged") from cause
    return summary


def _images(run: Path, split: str, about: About, at_most: int | None = None) -> ImageSet:
    """Read a split's images again, exactly as for training; or so many, spread over the classes."""
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


def _training_images(
    run: Path, about: About, settings: Settings, *, novelty: bool
) -> ImageSet | None:
    """Read as many training images as calibration and the novelty check use; None for none."""
    if not novelty:
        return _images(run, "train", about, _CALIBRATION_IMAGES) if settings.quantise else None
    size = 2 * about.recipe.channels * about.recipe.size[0] * about.recipe.size[1]
    fitting = max(_CALIBRATION_IMAGES, _REFERENCE_BYTES // size)
    return _images(run, "train", about, min(_REFERENCE_IMAGES, fitting))


def _scored(
    val: ImageSet, about: About, summary: dict[str, Any], logits: NDArray[np.float32]
) -> metrics.Scored:
    """Return the validation images with what a network says of them; ``logits`` are N x K."""
    return metrics.Scored(
        labels=val.labels,
        probabilities=probabilities(logits, summary["temperature"]),
        patients=val.patients,
        classes=about.classes,
        point=OperatingPoint(**summary["operating_point"]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Candidate:
    """A graph that may go into the file, and what it says of the validation images."""

    model: onnx.ModelProto
    session: Session
    outputs: Outputs


def _candidate(model: onnx.ModelProto, val: ImageSet) -> _Candidate:
    session = Session(model.SerializeToString(), device="cpu")
    return _Candidate(model=model, session=session, outputs=compare.run_all(session, val.pixels))


def _quantised(
    given: _Candidate, train: ImageSet, val: ImageSet, scored: metrics.Scored, temperature: float
) -> tuple[_Candidate, dict[str, Any]]:
    """Return the int8 graph and its account for the model file: fp32 against int8."""
    pixels = train.pixels[spread(train.labels.tolist(), _CALIBRATION_IMAGES)]
    made = _candidate(quantisation.quantise(given.model, pixels), val)
    before = compare.with_logits(scored, given.outputs.logits, temperature)
    after = compare.with_logits(scored, made.outputs.logits, temperature)
    latency = compare.compare_latency(given.session, made.session, val.pixels)
    account = {
        "scheme": quantisation.SCHEME,
        "calibration_images": len(pixels),
        "kept_in_float": quantisation.kept_in_float(made.model),
        "operators": graph.operator_counts(made.model),
        "validation_images": len(val),
        "accuracy": {"fp32": compare.accuracy(before), "int8": compare.accuracy(after)},
        "flips": compare.flips(before, after),
        "latency": asdict(latency),
        "machine": {**compare.machine(), "engine": made.session.name},
    }
    return made, account


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


def _decide(
    summary: dict[str, Any],
    settings: Settings,
    val: ImageSet,
    chosen: _Candidate,
    train: ImageSet | None,
) -> tuple[Decision, EmbeddingReference | None]:
    """Return how logits become findings, and what novelty is measured from.

    Parameters
    ----------
    chosen
        What goes into the file.
    train
        None for no novelty check.
    """
    temperature, triage, novelty, reference = summary["temperature"], None, None, None
    outputs = chosen.outputs
    if settings.error_rate is not None:
        triage = cutoffs.fit_triage(outputs.logits, val.labels, temperature, settings.error_rate)
    if train is not None:
        rate = settings.false_refusal_rate or cutoffs.DEFAULT_RATE
        trained = compare.run_all(chosen.session, train.pixels)
        reference, novelty = cutoffs.fit_novelty(trained, train.labels, outputs, rate)
    decision = Decision(
        temperature=temperature,
        operating_point=OperatingPoint(**summary["operating_point"]),
        triage=triage,
        novelty=novelty,
    )
    return decision, reference


def _write(path: Path, model: onnx.ModelProto, key: "Ed25519PrivateKey | None") -> None:
    """Write the file whole, after the runtime has loaded it and passed its self-test."""
    data = model.SerializeToString()
    if key is not None:
        from medtl_runtime.signature import sign

        data = sign(data, key)
    with written_whole(path) as part:
        part.write_bytes(data)
        load_engine(read_model_file(part), device="cpu", self_test="always")
