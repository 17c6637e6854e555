"""The account says of the file what is in it."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from medtl_export import graph, ranges
from medtl_export.account import account, kept_in_float, saturation, scheme
from medtl_export.compare import Validation
from medtl_export.gate import Difference, Gate, Verdict
from medtl_export.latency import Latency
from medtl_export.qdq import Format, Plan, lay_out, write
from medtl_export.search import Row
from medtl_export.targets import TARGETS
from medtl_export.topology import Topology
from medtl_export.workbench import Choice
from medtl_runtime.decision import plain_decision
from medtl_runtime.heads import Head

GraphOf = Callable[..., onnx.ModelProto]


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


BODY = """
    a = Conv<pads=[1,1,1,1]>(image, w)
    r = Relu(a)
    b = Conv(r, v)
    s = Add(r, b)
    h = HardSwish(s)
    m = Conv(h, v)
    cam = Conv(m, v)
    logits = ReduceMean<keepdims=0>(cam, axes)
    embedding = ReduceMean<keepdims=0>(m, axes)
"""
WEIGHTS = {"w": draw(4, 1, 3, 3), "v": draw(4, 4, 1, 1, seed=1), "axes": np.array([2, 3])}
HEAD = {
    ("cam", "Conv", "head"),
    ("logits", "ReduceMean", "head"),
    ("embedding", "ReduceMean", "head"),
}


@pytest.fixture(scope="module")
def small(graph_of: GraphOf) -> onnx.ModelProto:
    return graph_of(BODY, WEIGHTS, outputs={"logits": 2, "cam": 4, "embedding": 2})


def quantised(model: onnx.ModelProto, form: Format, *in_float: str, **plan: Any) -> onnx.ModelProto:
    head = frozenset(graph.head_nodes(model))
    made = Plan(form=form, in_float=head.union(in_float), **plan)
    pixels = np.random.default_rng(0).integers(0, 65536, (2, 1, 16, 16)).astype(np.uint16)
    tensors = lay_out(Topology(model), made).quantised
    found = ranges.ranges_of(ranges.collect(model, tensors, pixels), "min-max")
    return write(Topology(model), model, made, found)


def kept(model: onnx.ModelProto, form: Format) -> set[tuple[str, str, str]]:
    return {(o["node"], o["operator"], o["reason"]) for o in kept_in_float(model, form)}


FORMS = pytest.mark.parametrize(
    "form", [Format(), Format(signed=True), Format(outputs=False)], ids=["cpu", "arm", "openvino"]
)


def test_what_stays_in_float_is_the_head_and_what_has_no_kernel(small: onnx.ModelProto) -> None:
    found = kept(quantised(small, Format()), Format())
    assert found == {*HEAD, ("h", "HardSwish", "no int8 kernel")}


def test_a_product_that_was_left_in_float_is_chosen_so(small: onnx.ModelProto) -> None:
    found = kept(quantised(small, Format(), "m"), Format())
    assert ("m", "Conv", "chosen") in found
    found = kept(quantised(small, Format(), "b"), Format())
    assert {("b", "Conv", "chosen"), ("s", "Add", "chosen")} <= found


def test_a_sum_of_rounded_numbers_whose_result_is_not_rounded_is_in_float(
    small: onnx.ModelProto,
) -> None:
    made = quantised(small, Format(), operators=frozenset({"Conv"}))
    assert ("s", "Add", "chosen") in kept(made, Format())


@FORMS
def test_a_convolution_of_the_head_is_in_float_though_it_reads_rounded_features(
    small: onnx.ModelProto, form: Format
) -> None:
    assert kept(quantised(small, form), form) >= HEAD


def test_where_the_engine_fuses_a_sum_is_in_integers_by_its_inputs(
    small: onnx.ModelProto,
) -> None:
    form = Format(outputs=False)
    assert "s" not in {name for name, _, _ in kept(quantised(small, form), form)}


def test_the_scheme_is_said_in_words() -> None:
    found = {name: scheme(target.form) for name, target in TARGETS.items()}
    assert found["cuda"] == "float16 inside, float32 inputs and outputs"
    assert found["cpu"] == "QDQ, uint8 activations, int8 weights per output channel"
    assert found["cpu-avx2"].startswith(found["cpu"])
    assert "16 bits in pairs" in found["cpu-avx2"]
    assert "int8 activations, int8 weights" in found["arm"]
    assert "zero points of 0" in found["tensorrt"]


def test_saturation_is_read_from_the_weights(small: onnx.ModelProto) -> None:
    exact = Format(exact_pairs=True)
    assert saturation(quantised(small, Format()), Format()) == "possible without VNNI"
    assert saturation(quantised(small, exact), exact) == "impossible, by its weights"
    signed = Format(signed=True)
    assert saturation(quantised(small, signed), signed).startswith("no")


LATENCY = Latency(reference_ms=4, candidate_ms=2, speed_up=2, low=1.9, high=2.1, rounds=60)
VERDICT = Verdict(
    difference=Difference(value=-0.001, low=-0.004, high=0.001),
    head="label",
    flips=2,
    accuracy={"label": {"auroc": 0.9}},
    accepted=True,
)
ROWS = (
    Row(choice=Choice(), latency=LATENCY, verdict=VERDICT, error=0.01, remark="chosen"),
    Row(choice=Choice(corrected=True), latency=None, verdict=None, error=None, remark="worse"),
)


def told(model: onnx.ModelProto, **fields: Any) -> dict[str, Any]:
    heads = (Head(name="label", classes=("healthy", "lesion")),)
    validation = Validation(
        heads=heads,
        targets=np.array([[0.0], [1]]),
        patients=np.array(["a", "b"]),
        decision=plain_decision(heads),
    )
    reference = validation.judged(np.eye(2, dtype=np.float32))
    given = {
        "target": TARGETS["cpu"],
        "model": model,
        "precision": "int8",
        "gate": Gate(reference=reference, validation=validation, metric="auroc", max_drop=0.005),
        "before": Verdict(
            difference=None,
            head=None,
            flips=0,
            accuracy={"label": {"auroc": 0.91}},
            accepted=True,
        ),
        "after": VERDICT,
        "latency": LATENCY,
        "reason": "the fastest",
        "not_measured": None,
        "rows": ROWS,
        "images": {"calibration": 300, "validation": 2},
        "conditions": {"batch_size": 1, "threads": None},
        "engine": "ONNX Runtime",
    }
    found = account(**{**given, **fields})
    return json.loads(json.dumps(found, allow_nan=False))


def test_an_account_of_integers_says_all_of_it(small: onnx.ModelProto) -> None:
    model = quantised(small, Format())
    found = told(model)
    assert found["target"] == "cpu"
    assert found["scheme"] == scheme(Format())
    assert found["saturation"] == "possible without VNNI"
    assert found["calibration_images"] == 300
    assert found["validation_images"] == 2
    assert found["accuracy"] == {
        "fp32": {"label": {"auroc": 0.91}},
        "chosen": {"label": {"auroc": 0.9}},
    }
    assert (found["head"], found["not_judged"]) == ("label", [])
    assert found["difference"] == {"value": -0.001, "low": -0.004, "high": 0.001}
    assert found["flips"] == 2
    assert found["latency"]["speed_up"] == 2
    assert found["machine"]["engine"] == "ONNX Runtime"
    assert found["machine"]["cpu"]
    assert found["operators"] == graph.operator_counts(model)
    assert len(found["kept_in_float"]) == 4


def test_an_account_of_a_float_network_claims_no_integers(small: onnx.ModelProto) -> None:
    found = told(small, precision="fp32", latency=None, reason="every int8 candidate is slower")
    assert found["scheme"] == "float32"
    assert found["saturation"] is None
    assert found["kept_in_float"] == []
    assert found["latency"] is None
    assert len(found["search"]) == 2  # what was tried is told all the same


def test_an_account_of_float16_says_so(small: onnx.ModelProto) -> None:
    found = told(small, precision="fp16", target=TARGETS["cuda"], rows=())
    assert found["scheme"].startswith("float16")
    assert found["saturation"] is None
    assert found["kept_in_float"] == []


def test_every_row_of_the_search_is_complete(small: onnx.ModelProto) -> None:
    first, second = told(quantised(small, Format()))["search"]
    assert first["name"] == Choice().name
    assert first["verdict"] == "chosen"
    assert first["flips"] == 2
    assert first["error"] == 0.01
    assert second["name"] == Choice(corrected=True).name
    assert second == {**dict.fromkeys(first), "name": second["name"], "verdict": "worse"}
