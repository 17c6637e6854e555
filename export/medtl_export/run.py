"""One export from a run to a model file: trace, check, quantise, decide, describe, write."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from medtl_export import compare, cutoffs, documents, graph
from medtl_export.choose import Chosen, Question, choose
from medtl_export.describe import Contents, describe
from medtl_export.gate import Gate
from medtl_export.images import training_images
from medtl_export.intended_use import intended_use
from medtl_export.settings import Settings
from medtl_export.targets import Target, find_target, not_measured, open_session
from medtl_runtime.decision import Decision, OperatingPoint, probabilities
from medtl_runtime.engines import load_engine
from medtl_runtime.errors import UsageError
from medtl_runtime.files import refuse_existing, written_whole
from medtl_runtime.intended_use import IntendedUse
from medtl_runtime.novelty import EmbeddingReference
from medtl_runtime.onnxfile import read_model_file
from medtl_train import checkpoint as checkpoints
from medtl_train import metrics
from medtl_train.checkpoint import About, Checkpoint
from medtl_train.config import DistilConfig
from medtl_train.console import Reporter
from medtl_train.dataset import Image, ImageSet, image_set
from medtl_train.finished import read_images, read_summary
from medtl_train.fit import predict_logits

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and what was measured on the way."""

    path: Path
    bytes: int
    parity: compare.Parity
    precision: str
    account: dict[str, Any] | None
    """Of the quantisation; None where none was asked for."""
    decision: Decision
    intended_use: IntendedUse
    documents: tuple[Path, ...]
    """The report, the card and the bill of materials."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """A finished run, read again."""

    folder: Path
    saved: Checkpoint
    summary: dict[str, Any]
    images: tuple[Image, ...]
    """Of the validation split."""
    val: ImageSet

    @property
    def about(self) -> About:
        return self.saved.about

    @property
    def temperature(self) -> float:
        return self.summary["temperature"]

    @property
    def point(self) -> OperatingPoint:
        return OperatingPoint(**self.summary["operating_point"])

    def scored(self, logits: NDArray[np.float32]) -> metrics.Scored:
        """Return the validation images with what a network says of them, (N, K)."""
        return metrics.Scored(
            labels=self.val.labels,
            probabilities=probabilities(logits, self.temperature),
            patients=self.val.patients,
            classes=self.about.classes,
            point=self.point,
        )


def export(
    run: Path,
    path: Path,
    settings: Settings,
    *,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda _: None,
    reporter: Reporter | None = None,
) -> Exported:
    """Write the model file of a run, and beside it a report, a model card and a bill of materials.

    Parameters
    ----------
    run
        A folder that medtl-train wrote; the images that its ``splits.csv`` names are read again.
    path
        The file to write.
    note
        Is told what is being done.
    reporter
        Shows the training of a student; quiet by default.

    Raises
    ------
    CheckpointUnusable, UsageError, ExtraMissing
        The run or the key cannot be read, the images are too few for what is asked of them, or an
        engine is missing.
    ImagesMissing
        Its images cannot be read any more.
    GateUndefined
        Accuracy cannot be compared, because the validation images lack a class.
    ParityFailed, QuantisedWorse
        The file would not be what was validated; none is written.
    """
    for output in (path, *documents.paths(path)):
        refuse_existing(output, overwrite=overwrite)
    key, target = _key(settings.sign), find_target(settings.target)
    taught = _read(run, note)
    if settings.distil is None:
        return _export(taught, None, path, settings, target, key, note)
    reference = _float_logits(taught)
    reporter = reporter or Reporter(quiet=True)
    student = _read(_distilled(run, settings.distil, note, reporter), note)
    teacher = taught.scored(reference)
    return _export(student, teacher, path, settings, target, key, note)


def _key(path: Path | None) -> "Ed25519PrivateKey | None":
    if path is None:
        return None
    from medtl_runtime.signature import read_private_key

    return read_private_key(path)


def _read(run: Path, note: Callable[[str], None]) -> _Run:
    saved, summary = checkpoints.load_run(run), read_summary(run)
    note(f"{run}: {saved.about.arch}, reading validation images")
    images = read_images(run, "val", saved.about)
    if not images:
        raise UsageError(f"{run} has no val images in its splits.csv; accuracy cannot be shown")
    val = image_set(images, saved.about.classes)
    return _Run(folder=run, saved=saved, summary=summary, images=images, val=val)


def _float_logits(source: _Run) -> NDArray[np.float32]:
    """Return what torch says of the validation images."""
    return predict_logits(source.saved.restore(), source.val.pixels, torch.device("cpu"))


def _distilled(run: Path, arch: str, note: Callable[[str], None], reporter: Reporter) -> Path:
    """Return the run of a student, trained now if it has not been."""
    from medtl_train.distil import distil, is_student

    folder = run.with_name(f"{run.resolve().name}-{arch}")
    if is_student(folder, run, arch):
        note(f"{folder} is the student; it is taken as it is")
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        distil(run, folder, arch, DistilConfig(), device=device, reporter=reporter)
    return folder


def _export(
    source: _Run,
    teacher: metrics.Scored | None,
    path: Path,
    settings: Settings,
    target: Target,
    key: "Ed25519PrivateKey | None",
    note: Callable[[str], None],
) -> Exported:
    about, val = source.about, source.val
    contract = intended_use(source.summary["data"]["headers"], settings.intended_use)
    cutoffs.require_enough(
        val.labels,
        about.classes,
        false_refusal_rate=settings.false_refusal_rate,
        error_rate=settings.error_rate,
    )
    reference = _float_logits(source)
    gate = _gate(source, settings, teacher or source.scored(reference))
    novelty = cutoffs.wants_novelty(len(val), settings.false_refusal_rate, note)
    train = training_images(
        source.folder,
        about,
        calibration=settings.quantise.calibration_images if settings.quantise else 0,
        novelty=novelty,
    )

    note("tracing")
    network = source.saved.restore()
    floating = _floating(graph.to_onnx(network, about.recipe), val, target)
    parity = compare.check_parity(
        reference, floating.outputs.logits, source.scored(reference), source.temperature
    )
    compare.check_maps(floating.outputs, compare.MAPS_TOLERANCE["fp32"])
    note(
        f"parity with torch on {parity.images} validation images: "
        f"max |Δlogit| {parity.largest_difference:.2g}, {parity.flips} flips"
    )
    chosen = floating
    if settings.quantise is not None:
        assert train is not None
        assert gate is not None
        question = Question(
            run=source.folder,
            about=about,
            network=network,
            floating=floating,
            gate=gate,
            train=train,
            validation=val,
            target=target,
            settings=settings.quantise,
            teacher=None if teacher is None else _teacher(source.summary),
        )
        chosen = choose(question, note)

    decision, embeddings = _decide(source, settings, chosen, train if novelty else None)
    contents = Contents(
        about=about,
        summary=source.summary,
        chosen=chosen,
        target=target,
        parity=parity,
        decision=decision,
        embedding_reference=embeddings,
        aggregation=settings.aggregation,
        intended_use=contract,
    )
    described = describe(path.stem, contents)
    data = _written(path, graph.described(chosen.model, described), target, key)
    written = documents.write(
        path,
        described,
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        size_bytes=len(data),
        float_bytes=floating.model.ByteSize(),
        subgroups=documents.subgroup_rows(
            source.images,
            source.scored(chosen.outputs.logits),
            patients_known=source.summary["data"]["patients_known"],
        ),
    )
    return Exported(
        path=path,
        bytes=len(data),
        parity=parity,
        precision=chosen.precision,
        account=chosen.account,
        decision=decision,
        intended_use=contract,
        documents=written,
    )


def _teacher(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what the account says of a teacher."""
    facts = summary["distillation"]["teacher"]
    return {"teacher": {name: facts[name] for name in ("name", "arch")}}


def _gate(source: _Run, settings: Settings, reference: metrics.Scored) -> Gate | None:
    if settings.quantise is None:
        return None
    gate = Gate(
        reference=reference,
        temperature=source.temperature,
        point=source.point,
        metric=settings.quantise.metric,
        max_drop=settings.quantise.max_drop,
    )
    gate.check()
    return gate


def _floating(model: onnx.ModelProto, val: ImageSet, target: Target) -> Chosen:
    measured = not_measured(target) is None
    session = open_session(target, model.SerializeToString(), threads=None, measured=measured)
    outputs = compare.run_all(session, val.pixels)
    return Chosen(model=model, session=session, outputs=outputs, precision="fp32")


def _decide(
    source: _Run, settings: Settings, chosen: Chosen, train: ImageSet | None
) -> tuple[Decision, EmbeddingReference | None]:
    """Return how logits become findings, and what novelty is measured from.

    Parameters
    ----------
    train
        None for no novelty check.
    """
    triage, novelty, reference = None, None, None
    outputs, labels = chosen.outputs, source.val.labels
    if settings.error_rate is not None:
        triage = cutoffs.fit_triage(outputs.logits, labels, source.temperature, settings.error_rate)
    if train is not None:
        rate = settings.false_refusal_rate or cutoffs.DEFAULT_RATE
        trained = compare.run_all(chosen.session, train.pixels)
        reference, novelty = cutoffs.fit_novelty(trained, train.labels, outputs, rate)
    decision = Decision(
        temperature=source.temperature,
        operating_point=source.point,
        triage=triage,
        novelty=novelty,
    )
    return decision, reference


def _written(
    path: Path, model: onnx.ModelProto, target: Target, key: "Ed25519PrivateKey | None"
) -> bytes:
    """Write the file whole, after the runtime has loaded it and passed its self-test."""
    data = model.SerializeToString(deterministic=True)
    if key is not None:
        from medtl_runtime.signature import sign

        data = sign(data, key)
    device = target.device if not_measured(target) is None else "cpu"
    with written_whole(path) as part:
        part.write_bytes(data)
        load_engine(read_model_file(part), device=device, self_test="always")
    return data
