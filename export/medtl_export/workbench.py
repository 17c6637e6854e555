"""Builds candidates and measures them: how fast, how faithful, and what validation images say."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from medtl_export import bias, latency, ranges, rewrite
from medtl_export.compare import Judgement, Outputs, machine, run_all
from medtl_export.gate import Gate, Verdict
from medtl_export.graph import without_traces
from medtl_export.latency import Latency
from medtl_export.ledger import Ledger
from medtl_export.qdq import JOINING, PASSING, PRODUCTS, Plan, lay_out, write
from medtl_export.ranges import Method, Spread
from medtl_export.structure import Structure, structure_of
from medtl_export.targets import Target, open_session
from medtl_export.topology import Topology
from medtl_runtime.heads import columns_of
from medtl_runtime.recipe import as_batch
from medtl_runtime.selftest import Runs
from medtl_train.fitting.staging import Pixels

Operators = Literal["all", "sums", "products"]

_OPERATORS: dict[Operators, frozenset[str]] = {
    "all": frozenset((*PRODUCTS, *PASSING, *JOINING)),
    "sums": frozenset((*PRODUCTS, *PASSING, "Add", "AveragePool")),
    "products": frozenset(PRODUCTS),
}

_TIMED_IMAGES = 8
_COMPARED_IMAGES = 64
_BIAS_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to quantise a network: what the search varies."""

    operators: Operators = "all"
    """``products``: convolutions and products of matrices; ``sums``: additions and pooling, too."""
    packed_stem: bool = False
    """See `rewrite.with_packed_stem`."""
    in_float: frozenset[str] = frozenset()
    """Names of parts; see `structure_of`."""
    ranges: Method = "min-max"
    corrected: bool = False
    """Whether biases are corrected; see `medtl_export.bias`."""

    @property
    def name(self) -> str:
        """What people and the ledger call it."""
        words = {"all": "all operators", "sums": "products and sums", "products": "products"}
        extra = [
            *(["packed stem"] if self.packed_stem else []),
            *([f"float {' and '.join(sorted(self.in_float))}"] if self.in_float else []),
            *(["corrected biases"] if self.corrected else []),
        ]
        return ", ".join([f"int8 {words[self.operators]}", f"{self.ranges} ranges", *extra])


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditions:
    """How candidates are measured."""

    target: Target
    measured: bool
    """Whether this machine can tell how fast the target is."""
    threads: int | None = None
    """None: as many as physical cores."""
    batch_size: int = 1


@dataclass(kw_only=True, eq=False)
class Workbench:
    """A float network, and what is known of its quantised forms."""

    model: onnx.ModelProto
    conditions: Conditions
    calibration: NDArray[np.uint16]
    """Canonical training images, N x C x H x W."""
    validation: Pixels
    gate: Gate
    ledger: Ledger
    tick: Callable[[], None] = field(default=lambda: None)
    """Called after each calibration image."""

    @cached_property
    def structure(self) -> Structure:
        """The parts of the network."""
        return structure_of(self._graphs[False])

    @cached_property
    def _graphs(self) -> dict[bool, onnx.ModelProto]:
        """The float graphs to quantise, by whether the stem is packed."""
        plain = rewrite.with_pooling(self.model)
        return {False: plain, True: rewrite.with_packed_stem(plain)}

    @property
    def stem_can_be_packed(self) -> bool:
        """Whether packing changes the graph."""
        return self._graphs[True] is not self._graphs[False]

    @cached_property
    def _spreads(self) -> dict[str, Spread]:
        graph = self._graphs[True]
        tensors: set[str] = set()
        for packed, one in self._graphs.items():
            for operators in _OPERATORS:
                choice = Choice(operators=operators, packed_stem=packed)
                tensors |= lay_out(Topology(one), self._plan(choice)).quantised
        return ranges.collect(graph, tensors, self.calibration, self.tick)

    def _plan(self, choice: Choice) -> Plan:
        form = self.conditions.target.form
        assert form is not None
        return Plan(
            form=form,
            in_float=self.structure.nodes(choice.in_float),
            operators=_OPERATORS[choice.operators],
        )

    def graph(self, choice: Choice | None) -> onnx.ModelProto:
        """Return the graph of a choice; of None, the float graph."""
        if choice is None:
            return self.model
        model = self._graphs[choice.packed_stem]
        topology, found = Topology(model), ranges.ranges_of(self._spreads, choice.ranges)

        def written(plan: Plan) -> onnx.ModelProto:
            return without_traces(write(topology, model, plan, found))

        plan = self._plan(choice)
        if choice.corrected:
            stages = [self.structure.parts[name] for name in self.structure.stages]
            pixels = self.calibration[:_BIAS_IMAGES]
            plan = bias.corrected(model, plan, stages, pixels, written)
        return written(plan)

    def session(self, choice: Choice | None) -> Runs:
        """Return what runs a choice."""
        return self.opened(self.graph(choice))

    def opened(self, model: onnx.ModelProto) -> Runs:
        """Return what runs a graph on the target's engine, or on the CPU in its place."""
        conditions = self.conditions
        return open_session(
            conditions.target,
            model.SerializeToString(),
            threads=conditions.threads,
            measured=conditions.measured,
        )

    @cached_property
    def _batches(self) -> list[NDArray[np.float32]]:
        size = self.conditions.batch_size
        pixels = self.validation[: size * _TIMED_IMAGES]
        if len(pixels) < size:
            pixels = np.resize(pixels, (size, *pixels.shape[1:]))
        starts = range(0, len(pixels) - size + 1, size)
        return [as_batch(pixels[start : start + size]) for start in starts]

    def raced(self, best: Choice, trial: Choice, *, seconds: float) -> tuple[Latency, float]:
        """Return a trial's time against the float graph's, and what it gains over the best.

        The gain is the lower bound of the best's time over the trial's: above 1, it is faster.
        """

        def measure() -> dict[str, object]:
            networks = [self.session(choice) for choice in (None, best, trial)]
            times = latency.race(networks, self._batches, seconds=seconds)
            found, gained = (latency.compare(times[:, [k, 2]]) for k in (0, 1))
            return {"latency": asdict(found), "gain": gained.low}

        found = self.ledger.measured(f"{trial.name} beside {best.name}", measure)
        return Latency(**found["latency"]), found["gain"]

    def settled(self, name: str, model: onnx.ModelProto) -> Latency:
        """Return a graph's time against the float graph's, measured until it is clear."""

        def measure() -> dict[str, object]:
            reference, candidate = self.session(None), self.opened(model)
            return asdict(latency.settle(reference, candidate, self._batches))

        return Latency(**self.ledger.measured(f"{name}, final time", measure))

    def verdict(self, choice: Choice | None) -> Verdict:
        """Return what the validation images say."""

        def measure() -> dict[str, object]:
            return self.gate.judge(self.outputs(choice).logits).to_json()

        name = "float" if choice is None else choice.name
        return Verdict.from_json(self.ledger.measured(f"{name}, validation", measure))

    def outputs(self, choice: Choice | None) -> Outputs:
        """Return what a choice says of the validation images."""
        return run_all(self.session(choice), self.validation)

    def error(self, choice: Choice) -> float:
        """Return the mean square by which logits of calibration images differ from the float ones.

        It is relative to their variance, and the mean over the heads. Ranges and parts are chosen
        by it, which leaves the validation images to judge the outcome.
        """
        return self.ledger.measured(f"{choice.name}, error", lambda: self.measured_error(choice))

    def measured_error(self, choice: Choice) -> float:
        """Measure what `error` returns, whatever the ledger holds."""
        found = run_all(self.session(choice), self.calibration[:_COMPARED_IMAGES]).logits
        columns = columns_of(self.gate.validation.heads)
        return float(np.mean([_off(found[:, k], self._float_logits[:, k]) for k in columns]))

    @cached_property
    def _float_logits(self) -> NDArray[np.float32]:
        return run_all(self.session(None), self.calibration[:_COMPARED_IMAGES]).logits


def facts_of(bench: Workbench) -> dict[str, object]:
    """Return what the measurements of a search depend on, as JSON values.

    A run can be copied to another machine, where other times hold.
    """
    gate, conditions = bench.gate, bench.conditions
    images = hashlib.sha256(bench.calibration.tobytes())
    for index in range(len(bench.validation)):
        images.update(bench.validation[index : index + 1].tobytes())
    return {
        "graph": hashlib.sha256(bench.model.SerializeToString(deterministic=True)).hexdigest(),
        "images": images.hexdigest(),
        "reference": _digest_of(gate.reference),
        "decision": gate.validation.decision.to_json(),
        "machine": machine(),
        "target": conditions.target.name,
        "threads": conditions.threads,
        "batch_size": conditions.batch_size,
        "metric": gate.metric,
        "max_drop": gate.max_drop,
    }


def _off(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the mean squared difference of a head's columns, relative to their variance."""
    difference = np.square(found - expected, dtype=np.float64).mean()
    return float(difference / max(expected.var(dtype=np.float64), 1e-12))


def _digest_of(judged: Judgement) -> str:
    """Return a SHA-256 of all that a network says of the validation images."""
    digest = hashlib.sha256(judged.called.tobytes())
    for head, answers in judged.answers.items():
        digest.update(head.encode())
        for array in vars(answers).values():
            if isinstance(array, np.ndarray) and array.dtype.kind in "if":
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
