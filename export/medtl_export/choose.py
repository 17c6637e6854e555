"""Decides which network goes into the file: quantised where that is faster and no worse."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from medtl_export import compare, graph
from medtl_export.account import account
from medtl_export.compare import Outputs
from medtl_export.errors import QuantisedWorse
from medtl_export.gate import Gate, Verdict
from medtl_export.ledger import Ledger, ledger_for
from medtl_export.search import Outcome, search
from medtl_export.settings import Quantising
from medtl_export.source import read_set
from medtl_export.targets import Precision, Target, not_measured
from medtl_export.workbench import Choice, Conditions, Workbench, facts_of
from medtl_models.ensemble import Classifier
from medtl_models.network import Network
from medtl_runtime.selftest import Runs
from medtl_train.checkpoint import About
from medtl_train.data.images import ImageSet, spread
from medtl_train.data.splits import strata_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """The network that goes into the file, and what it says of the validation images."""

    model: onnx.ModelProto
    session: Runs
    outputs: Outputs
    precision: Precision
    account: dict[str, Any] | None = None
    """None where nothing was to be quantised."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What is to be decided, and on which images."""

    run: Path
    about: About
    network: Classifier
    floating: Chosen
    gate: Gate
    train: ImageSet
    validation: ImageSet
    target: Target
    settings: Quantising
    teacher: Mapping[str, Any] | None = None
    """Name and architecture of the network that the gate compares with, if it is another one."""

    @cached_property
    def calibration(self) -> NDArray[np.uint16]:
        """The training images that ranges are taken from, drawn from all answers."""
        answers = strata_of(self.train.targets, self.about.heads).tolist()
        return self.train.pixels[np.array(spread(answers, self.settings.calibration_images))]


def choose(question: Question, note: Callable[[str], None]) -> Chosen:
    """Return what goes into the file when it is to be quantised.

    Raises
    ------
    QuantisedWorse
        Not even the float network passes the gate, which happens to a distilled one.
    GateUndefined
        The metric of the gate is not defined.
    """
    if not question.gate.judge(question.floating.outputs.logits).accepted:
        raise QuantisedWorse(
            f"the network loses more than --max-drop {question.gate.max_drop:g} "
            f"{question.gate.metric} before it is quantised. No file written"
        )
    return _half(question) if question.target.form is None else _integers(question, note)


def _conditions(question: Question) -> Conditions:
    settings = question.settings
    return Conditions(
        target=question.target,
        measured=not_measured(question.target) is None,
        threads=settings.threads,
        batch_size=settings.batch_size,
    )


def _bench(question: Question, model: onnx.ModelProto, note: Callable[[str], None]) -> Workbench:
    """Return a bench for a float graph, with what an interrupted search has measured before."""
    bench = Workbench(
        model=model,
        conditions=_conditions(question),
        calibration=question.calibration,
        validation=question.validation.pixels,
        gate=question.gate,
        ledger=Ledger(None),
    )
    bench.ledger = ledger_for(question.run, {**facts_of(bench), **graph.versions()})
    if bench.ledger.found:
        note(f"{bench.ledger.found} measurements of an earlier search are taken as they are")
    return bench


def _integers(question: Question, note: Callable[[str], None]) -> Chosen:
    note(f"calibrating on {len(question.calibration)} training images, and searching")
    bench = _bench(question, question.floating.model, note)
    outcome = search(bench, note)
    trained = None
    if outcome.inaccurate and question.settings.qat:
        model, trained = _finetuned(question, note)
        bench = _bench(question, model, note)
        trained["products"] = _counted(bench, _single(question))
        outcome = _joined(outcome, search(bench, note))
    if outcome.choice is None:
        return _float(question, outcome)
    model = bench.graph(outcome.choice)
    session = bench.session(outcome.choice)
    made = Chosen(
        model=model, session=session, outputs=bench.outputs(outcome.choice), precision="int8"
    )
    compare.check_maps(made.outputs, compare.MAPS_TOLERANCE["int8"])
    return replace(made, account={**_account(question, made, outcome), "qat": trained})


def _joined(first: Outcome, tuned: Outcome) -> Outcome:
    """Return where a search arrived that went on with the fine-tuned network."""
    rows = [replace(row, remark=f"fine-tuned: {row.remark}") for row in tuned.rows]
    # Without an int8 network the file holds the one that was not fine-tuned.
    outcome = first if tuned.choice is None else tuned
    return replace(outcome, rows=(*first.rows, *rows))


def _finetuned(
    question: Question, note: Callable[[str], None]
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the float graph of a network that was fine-tuned with rounded weights."""
    from medtl_export.qat import QatSettings, finetune

    settings = QatSettings()
    about = question.about
    network = finetune(
        _single(question),
        read_set(question.run, "train", about),
        about.heads,
        settings=settings,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        note=note,
    )
    facts = {"epochs": settings.epochs, "lr": settings.lr}
    return graph.to_onnx(network.cpu(), about.recipe), facts


def _single(question: Question) -> Network:
    """Return the network; `run` has refused to fine-tune several."""
    assert isinstance(question.network, Network)
    return question.network


def _counted(bench: Workbench, network: Network) -> int:
    """Return how many products are in integers where all are, which must be all of them."""
    from medtl_export.qat import expect_nodes, quantised_sites

    sites = quantised_sites(network)
    expect_nodes(bench.graph(Choice()), sites)
    return sites.convolutions + sites.linears


def _float(question: Question, outcome: Outcome) -> Chosen:
    """Return the float network, with the account of why it is the best deal."""
    floating = question.floating
    return replace(floating, account=_account(question, floating, outcome))


def _half(question: Question) -> Chosen:
    """Return the float16 network, if it is no worse and, where that can be measured, faster."""
    bench = _bench(question, question.floating.model, lambda _: None)
    model = graph.to_float16(question.floating.model)
    session = bench.opened(model)
    outputs = compare.run_all(session, question.validation.pixels)
    verdict = question.gate.judge(outputs.logits)
    if not verdict.accepted:
        return _float(question, _without_integers(bench, "float16 is not accurate enough"))
    found = bench.settled("float16", model) if bench.conditions.measured else None
    if found is not None and found.low <= 1:
        return _float(question, _without_integers(bench, "float16 is not surely faster"))
    compare.check_maps(outputs, compare.MAPS_TOLERANCE["fp16"])
    outcome = _without_integers(bench, "the engine has no integer convolutions, but float16")
    outcome = replace(outcome, latency=found, verdict=verdict)
    made = Chosen(model=model, session=session, outputs=outputs, precision="fp16")
    return replace(made, account=_account(question, made, outcome))


def _without_integers(bench: Workbench, reason: str) -> Outcome:
    verdict = bench.verdict(None)
    return Outcome(choice=None, latency=None, verdict=verdict, reason=reason, rows=())


def _account(question: Question, made: Chosen, outcome: Outcome) -> dict[str, Any]:
    settings, before = question.settings, question.floating
    made_of = account(
        target=question.target,
        model=made.model,
        precision=made.precision,
        gate=question.gate,
        before=_of_reference(question.gate),
        after=outcome.verdict,
        latency=outcome.latency,
        reason=outcome.reason,
        not_measured=not_measured(question.target),
        rows=outcome.rows,
        images={
            "calibration": len(question.calibration),
            "validation": len(question.validation),
        },
        conditions={"batch_size": settings.batch_size, "threads": settings.threads},
        engine=getattr(before.session, "name", ""),
    )
    return made_of if question.teacher is None else {**made_of, "distillation": question.teacher}


def _of_reference(gate: Gate) -> Verdict:
    found = compare.accuracy(gate.reference)
    return Verdict(difference=None, head=None, flips=0, accuracy=found, accepted=True)
