"""A search on a small real network: what is written down is enough to decide the same again."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from medtl_export import compare, latency, ranges, workbench
from medtl_export.gate import Gate
from medtl_export.ledger import Ledger, ledger_for
from medtl_export.search import Outcome, search
from medtl_export.targets import TARGETS, open_session
from medtl_export.workbench import Choice, Conditions, Workbench, facts_of
from medtl_runtime.decision import Decision, HeadDecision, OperatingPoint, plain_decision
from medtl_runtime.heads import Head
from medtl_train.scoring import metrics

GraphOf = Callable[..., onnx.ModelProto]


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


BODY = """
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(image, w, b)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1], group=4>(r, g, b)
    s = Add(c, r)
    t = Relu(s)
    m = Conv(t, v)
    cam = Conv(m, v)
    logits = ReduceMean<keepdims=0>(cam, axes)
    embedding = ReduceMean<keepdims=0>(m, axes)
"""
WEIGHTS = {
    "w": draw(4, 1, 3, 3),
    "b": draw(4, seed=1),
    "g": draw(4, 1, 3, 3, seed=2),
    "v": draw(4, 4, 1, 1, seed=3),
    "axes": np.array([2, 3]),
}
PIXELS = np.random.default_rng(7).integers(0, 65536, (24, 1, 16, 16)).astype(np.uint16)
HEADS = (Head(name="label", classes=("one", "two", "three", "four")),)


@pytest.fixture(scope="module")
def network(graph_of: GraphOf) -> onnx.ModelProto:
    return graph_of(BODY, WEIGHTS, outputs={"logits": 2, "cam": 4, "embedding": 2})


@pytest.fixture(scope="module")
def gate(network: onnx.ModelProto) -> Gate:
    session = open_session(TARGETS["cpu"], network.SerializeToString(), threads=1, measured=False)
    logits = compare.run_all(session, PIXELS).logits
    validation = compare.Validation(
        heads=HEADS,
        targets=(np.arange(len(PIXELS)) % 4)[:, None].astype(float),
        patients=np.array([str(i) for i in range(len(PIXELS))]),
        decision=plain_decision(HEADS),
    )
    reference = validation.judged(logits)
    return Gate(reference=reference, validation=validation, metric="auroc", max_drop=0.05)


@pytest.fixture
def bench(network: onnx.ModelProto, gate: Gate) -> Callable[..., Workbench]:
    def made(*, ledger: Ledger | None = None, target: str = "cpu", **fields: object) -> Workbench:
        conditions = Conditions(target=TARGETS[target], measured=target == "cpu", threads=1)
        given = {
            "model": network,
            "conditions": conditions,
            "calibration": PIXELS[:8],
            "validation": PIXELS,
            "gate": gate,
            "ledger": ledger or Ledger(None),
        }
        return Workbench(**{**given, **fields})  # pyright: ignore[reportArgumentType]

    return made


@pytest.fixture
def twice_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make up times: a candidate takes half of what the float network takes, and a little noise."""

    def race(networks: list, batches: list, *, seconds: float) -> NDArray[np.float64]:
        times = 1e-3 * np.array([1.0, *[0.5] * (len(networks) - 1)])
        return times * (1 + 0.01 * np.random.default_rng(0).random((20, len(networks))))

    few = partial(metrics.differences, resamples=20)
    monkeypatch.setattr(latency, "race", race)
    monkeypatch.setattr(metrics, "differences", few)


def test_a_repeated_search_measures_nothing_and_decides_the_same(
    bench, twice_as_fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = facts_of(bench())
    first = bench(ledger=ledger_for(tmp_path, facts))
    found = search(first)
    assert found.choice is not None
    model = first.graph(found.choice).SerializeToString()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(latency, "race", never)
    monkeypatch.setattr(latency, "settle", never)
    monkeypatch.setattr(workbench, "open_session", never)
    second = bench(ledger=ledger_for(tmp_path, facts))
    again: Outcome = search(second)
    assert again == found
    assert second.graph(again.choice).SerializeToString() == model


def test_every_row_of_what_was_timed_has_a_time_and_of_what_is_written_all(
    bench, twice_as_fast: None
) -> None:
    found = search(bench())
    chosen = [row for row in found.rows if row.remark == "chosen"]
    assert [row.choice for row in chosen] == [found.choice]
    assert None not in (chosen[0].latency, chosen[0].verdict, chosen[0].error)
    for row in found.rows:
        assert row.latency is not None
        assert row.verdict is not None or row.choice.ranges != "min-max"


@pytest.mark.parametrize("target", ["cpu", "cpu-avx2", "arm", "openvino", "tensorrt"])
@pytest.mark.parametrize(
    "choice",
    [
        Choice(),
        Choice(packed_stem=True),
        Choice(packed_stem=True, corrected=True, ranges="MSE"),
        Choice(operators="products", ranges="percentile"),
        Choice(operators="sums", in_float=frozenset({"stem"}), packed_stem=True),
        Choice(in_float=frozenset({"depthwise", "stage 1"}), corrected=True),
    ],
    ids=lambda choice: choice.name,
)
def test_every_choice_is_a_valid_graph_close_to_the_float_one(
    bench, target: str, choice: Choice
) -> None:
    made = bench(target=target)
    onnx.checker.check_model(made.graph(choice), full_check=True)
    conditions = replace(made.conditions, target=TARGETS["cpu"])
    outputs = [
        compare.run_all(bench(conditions=conditions).opened(model), PIXELS)
        for model in (made.graph(None), made.graph(choice))
    ]
    before, after = outputs
    assert 0 < np.linalg.norm(before.logits - after.logits) / np.linalg.norm(before.logits) < 0.05
    assert after.map_gap < 1e-4


def test_ranges_are_collected_once_for_all_choices(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    collect = ranges.collect

    def counted(*args: object) -> object:
        calls.append(1)
        return collect(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(ranges, "collect", counted)
    made = bench()
    for packed in (False, True):
        for operators in ("all", "sums", "products"):
            for parts in (frozenset(), frozenset({"stem"}), frozenset({"depthwise", "stage 3"})):
                made.graph(Choice(operators=operators, packed_stem=packed, in_float=parts))
    assert len(calls) == 1


def test_names_tell_choices_apart() -> None:
    choices = [
        Choice(operators=operators, packed_stem=packed, in_float=parts, ranges=method, corrected=c)
        for operators in ("all", "sums", "products")
        for packed in (False, True)
        for parts in (frozenset(), frozenset({"stem"}), frozenset({"stem", "gates"}))
        for method in ranges.METHODS
        for c in (False, True)
    ]
    assert len({choice.name for choice in choices}) == len(choices)


@pytest.mark.parametrize("size", [1, 5, 24, 40])
def test_images_are_timed_in_batches_of_the_size_asked_for(bench, size: int) -> None:
    conditions = replace(bench().conditions, batch_size=size)
    batches = bench(conditions=conditions)._batches
    assert 1 <= len(batches) <= 8
    assert {batch.shape for batch in batches} == {(size, 1, 16, 16)}


def test_what_measurements_depend_on_are_the_facts_of_the_ledger(
    bench, network: onnx.ModelProto, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(network)
    other.graph.initializer[0].raw_data = draw(4, 1, 3, 3, seed=9).tobytes()
    conditions = bench().conditions
    moved = OperatingPoint(chosen="elsewhere")

    def decided(**fields: Any) -> compare.Validation:
        return replace(gate.validation, decision=Decision(heads=(HeadDecision(**fields),)))

    changed = [
        bench(model=other),
        bench(calibration=PIXELS[:9]),
        bench(validation=PIXELS[1:]),
        bench(target="arm"),
        bench(conditions=replace(conditions, threads=2)),
        bench(conditions=replace(conditions, batch_size=2)),
        bench(gate=replace(gate, metric="sensitivity")),
        bench(gate=replace(gate, max_drop=None)),
        bench(gate=replace(gate, validation=decided(temperature=2.0))),
        bench(gate=replace(gate, validation=decided(operating_point=moved))),
        bench(gate=replace(gate, reference=gate.validation.judged(draw(len(PIXELS), 4)))),
    ]
    facts = facts_of(bench())
    assert facts_of(bench()) == facts
    assert all(facts_of(one) != facts for one in changed)
    monkeypatch.setattr(workbench, "machine", lambda: {"cpu": "another", "cores": 64})
    assert facts_of(bench()) != facts
