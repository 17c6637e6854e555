"""One export from a run to a model file: trace, check, quantise, decide, describe, write."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from medtl_export.intended_use import intended_use
from medtl_export.settings import Settings
from medtl_export.source import Source, read_source, training_images
from medtl_export.targets import Target, find_target, not_measured, open_session
from medtl_models.ensemble import Classifier
from medtl_runtime.decision import Decision, HeadDecision
from medtl_runtime.engines import load_engine
from medtl_runtime.errors import UsageError
from medtl_runtime.files import refuse_existing, written_whole
from medtl_runtime.heads import Head, columns_of
from medtl_runtime.intended_use import IntendedUse
from medtl_runtime.modelfile import Description
from medtl_runtime.novelty import EmbeddingReference
from medtl_runtime.onnxfile import read_model_file
from medtl_train.config import DistilConfig
from medtl_train.console import Reporter
from medtl_train.data.images import ImageSet

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
    heads: tuple[Head, ...]
    decision: Decision
    intended_use: IntendedUse
    documents: tuple[Path, ...]
    """The report, the card and the bill of materials."""


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
    taught = read_source(run, note)
    if settings.distil is None:
        return _export(taught, None, path, settings, target, key, note)
    reference = taught.torch_logits()
    reporter = reporter or Reporter(quiet=True)
    student = read_source(_distilled(run, settings.distil, note, reporter), note)
    teacher = taught.validation.judged(reference)
    return _export(student, teacher, path, settings, target, key, note)


def _key(path: Path | None) -> "Ed25519PrivateKey | None":
    if path is None:
        return None
    from medtl_runtime.signature import read_private_key

    return read_private_key(path)


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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """What is asked of an export, checked against what the run has to offer."""

    settings: Settings
    target: Target
    intended_use: IntendedUse
    reference: NDArray[np.float32]
    """What torch says of the validation images."""
    gate: Gate | None
    """None where nothing is to be quantised."""
    train: ImageSet | None
    """To calibrate with, and to say what is novel; None for neither."""
    novelty: bool


def _export(
    source: Source,
    teacher: compare.Judgement | None,
    path: Path,
    settings: Settings,
    target: Target,
    key: "Ed25519PrivateKey | None",
    note: Callable[[str], None],
) -> Exported:
    asked = _asked(source, teacher, settings, target, note)
    network = source.saved.restore()
    floating, parity = _traced(source, asked, network, note)
    chosen = floating
    if asked.gate is not None:
        facts = None if teacher is None else _teacher(source.summary)
        chosen = choose(_question(source, asked, network, floating, facts), note)
    decision, embeddings = _decide(source, asked, chosen)
    contents = Contents(
        about=source.about,
        summary=source.summary,
        chosen=chosen,
        target=target,
        parity=parity,
        decision=decision,
        embedding_reference=embeddings,
        aggregation=settings.aggregation,
        intended_use=asked.intended_use,
    )
    described = describe(path.stem, contents)
    data = _written(path, graph.described(chosen.model, described), target, key)
    return Exported(
        path=path,
        bytes=len(data),
        parity=parity,
        precision=chosen.precision,
        account=chosen.account,
        heads=source.about.heads,
        decision=decision,
        intended_use=asked.intended_use,
        documents=_documents(source, path, described, data, chosen, floating),
    )


def _asked(
    source: Source,
    teacher: compare.Judgement | None,
    settings: Settings,
    target: Target,
    note: Callable[[str], None],
) -> _Asked:
    """Refuse what cannot be done before anything is traced; read what is needed to do it."""
    about, val = source.about, source.val
    if settings.quantise and settings.quantise.qat and about.members > 1:
        found = f"{source.folder} is an ensemble of {about.members}"
        raise UsageError(f"--qat fine-tunes one network; {found}")
    cutoffs.require_enough(
        about.heads,
        val.targets,
        false_refusal_rate=settings.false_refusal_rate,
        error_rate=settings.error_rate,
    )
    contract = intended_use(source.summary["data"]["headers"], settings.intended_use)
    reference = source.torch_logits()
    gate = _gate(source, settings, teacher or source.validation.judged(reference))
    novelty = cutoffs.wants_novelty(len(val), settings.false_refusal_rate, note)
    calibration = settings.quantise.calibration_images if settings.quantise else 0
    return _Asked(
        settings=settings,
        target=target,
        intended_use=contract,
        reference=reference,
        gate=gate,
        train=training_images(source.folder, about, calibration=calibration, novelty=novelty),
        novelty=novelty,
    )


def _traced(
    source: Source, asked: _Asked, network: Classifier, note: Callable[[str], None]
) -> tuple[Chosen, compare.Parity]:
    """Return the float network as ONNX, which computes what torch computes."""
    note("tracing")
    floating = _floating(graph.to_onnx(network, source.about.recipe), source.val, asked.target)
    parity = compare.check_parity(asked.reference, floating.outputs.logits, source.validation)
    compare.check_maps(floating.outputs, compare.MAPS_TOLERANCE["fp32"])
    note(
        f"parity with torch on {parity.images} validation images: "
        f"max |Δlogit| {parity.largest_difference:.2g}, {parity.flips} flips"
    )
    return floating, parity


def _question(
    source: Source,
    asked: _Asked,
    network: Classifier,
    floating: Chosen,
    teacher: dict[str, Any] | None,
) -> Question:
    assert asked.gate is not None
    assert asked.train is not None
    assert asked.settings.quantise is not None
    return Question(
        run=source.folder,
        about=source.about,
        network=network,
        floating=floating,
        gate=asked.gate,
        train=asked.train,
        validation=source.val,
        target=asked.target,
        settings=asked.settings.quantise,
        teacher=teacher,
    )


def _documents(
    source: Source,
    path: Path,
    described: Description,
    data: bytes,
    chosen: Chosen,
    floating: Chosen,
) -> tuple[Path, ...]:
    rows = documents.subgroup_rows(
        source.images,
        source.val.targets,
        source.validation.judged(chosen.outputs.logits),
        patients_known=source.summary["data"]["patients_known"],
    )
    return documents.write(
        path,
        described,
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        size_bytes=len(data),
        float_bytes=floating.model.ByteSize(),
        subgroups=rows,
    )


def _teacher(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what the account says of a teacher."""
    facts = summary["distillation"]["teacher"]
    return {"teacher": {name: facts[name] for name in ("name", "arch")}}


def _gate(source: Source, settings: Settings, reference: compare.Judgement) -> Gate | None:
    if settings.quantise is None:
        return None
    gate = Gate(
        reference=reference,
        validation=source.validation,
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
    source: Source, asked: _Asked, chosen: Chosen
) -> tuple[Decision, EmbeddingReference | None]:
    """Return how logits become findings, and what novelty is measured from."""
    heads, settings, train = source.about.heads, asked.settings, asked.train
    novelty, reference = None, None
    if asked.novelty:
        assert train is not None
        rate = settings.false_refusal_rate or cutoffs.DEFAULT_RATE
        trained = compare.run_all(chosen.session, train.pixels)
        reference, novelty = cutoffs.fit_novelty(
            heads, trained, train.targets, chosen.outputs, rate
        )
    fitted = source.validation.decision.heads
    of_heads = zip(heads, fitted, columns_of(heads), source.val.targets.T, strict=True)
    decided = tuple(
        _with_limits(head, own, chosen.outputs.logits[:, columns], targets, settings.error_rate)
        for head, own, columns, targets in of_heads
    )
    return Decision(heads=decided, novelty=novelty), reference


def _with_limits(
    head: Head,
    decision: HeadDecision,
    logits: NDArray[np.float32],
    targets: NDArray[np.float64],
    error_rate: float | None,
) -> HeadDecision:
    """Return a head's decision with when it abstains, or with how far its value may be off."""
    if head.kind == "regression":
        interval = cutoffs.fit_interval(head, logits, targets, error_rate)
        return replace(decision, interval=interval)
    if error_rate is None:
        return decision
    triage = cutoffs.fit_triage(head, logits, targets, decision.temperature, error_rate)
    return replace(decision, triage=triage)


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
