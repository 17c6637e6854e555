"""What is refused of a model file before an engine sees it, with the onnx package as the judge."""

import os
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from medtl_runtime.errors import ModelNotFound, ModelUnusable
from medtl_runtime.modelfile import METADATA_KEY, file_digest
from medtl_runtime.onnxfile import (
    OPERATORS,
    STANDARD_DOMAINS,
    ModelBytes,
    inspect_model,
    read_model_file,
)
from medtl_runtime.onnxwire import metadata_entry

PATH = Path("m.onnx")


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> bytes:
    return tiny_model.read_bytes()


@pytest.fixture
def model(tiny: bytes) -> ModelProto:
    return onnx.load_from_string(tiny)


def refused(model: ModelProto | bytes, words: str) -> None:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(ModelUnusable, match=rf"^m\.onnx is not a usable medtl model: .*{words}"):
        inspect_model(data, PATH)


def agrees(found: ModelBytes, data: bytes) -> None:
    """Assert that onnx reads the same from the bytes."""
    model = onnx.load_from_string(data)
    assert found.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert found.opsets == {entry.domain: entry.version for entry in model.opset_import}
    assert found.ir_version == model.ir_version % 2**64
    assert found.inputs == tuple(value.name for value in model.graph.input)
    assert found.outputs == tuple(value.name for value in model.graph.output)
    assert found.operators == {(node.domain, node.op_type) for node in model.graph.node}


def test_a_model_file_is_read_as_onnx_reads_it(tiny_model: Path, tiny: bytes) -> None:
    found = read_model_file(tiny_model)
    agrees(found, tiny)
    assert METADATA_KEY in found.metadata
    assert found.data == tiny
    assert found.path == tiny_model
    assert found.digest == file_digest(tiny_model)


def test_showing_a_model_does_not_show_its_bytes(tiny: bytes) -> None:
    assert len(repr(inspect_model(tiny, PATH))) < 500


@pytest.mark.parametrize("value", [{"value_string": "abc"}, {"value_strings": ["a", "b"]}])
def test_a_constant_of_strings_is_refused(model: ModelProto, value: dict[str, str]) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], **value))
    refused(model, "a constant of strings")


def test_an_empty_constant_of_the_type_string_is_refused(model: ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(AttributeProto(name="value_string", type=AttributeProto.STRING))
    model.graph.node.append(node)
    refused(model, "a constant of strings")


@pytest.mark.parametrize("to", [TensorProto.STRING, TensorProto.COMPLEX64, 0, -1, 99])
def test_a_cast_to_something_else_than_numbers_is_refused(model: ModelProto, to: int) -> None:
    model.graph.node.append(helper.make_node("Cast", ["image"], ["c"], to=to))
    refused(model, "a cast to data type")


def test_numbers_may_be_constants_and_casts_and_other_attributes_may_be_strings(
    model: ModelProto,
) -> None:
    pool = {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}
    model.graph.node.extend(
        [
            helper.make_node("Constant", [], ["c"], value_int=3),
            helper.make_node("Cast", ["image"], ["d"], to=TensorProto.FLOAT16),
            helper.make_node("MaxPool", ["image"], ["e"], **pool),
        ]
    )
    agrees(inspect_model(model.SerializeToString(), PATH), model.SerializeToString())


def test_weights_are_not_copied(model: ModelProto) -> None:
    weights = np.ones(8_000_000, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "more"))
    model.graph.initializer.append(helper.make_tensor("listed", 1, [10_000], weights[:10_000]))
    data = model.SerializeToString()
    tracemalloc.start()
    found = inspect_model(data, PATH)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.data is data
    assert peak < 1_000_000


# --- files


def test_a_missing_file_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"none\.onnx: no such model file"):
        read_model_file(tmp_path / "none.onnx")


def test_a_file_over_the_cap_is_refused_with_its_size(tiny_model: Path, tiny: bytes) -> None:
    size = len(tiny)
    with pytest.raises(ModelUnusable, match=f"{size} bytes; expected at most {size - 1}"):
        read_model_file(tiny_model, most_bytes=size - 1)
    assert read_model_file(tiny_model, most_bytes=size).data == tiny


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path / "pipe.onnx", Path("/dev/zero"), tmp_path):
        started = time.monotonic()
        with pytest.raises(ModelUnusable, match=r"not a regular file|Is a directory"):
            read_model_file(path)
        assert time.monotonic() - started < 5


def test_a_file_that_cannot_be_opened_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "loop.onnx").symlink_to(tmp_path / "loop.onnx")
    with pytest.raises(ModelUnusable, match=r"cannot be read .*symbolic links"):
        read_model_file(tmp_path / "loop.onnx")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
        (b"not a model", "damaged"),
        (b"\x08\x0a", "no whole ONNX graph"),
    ],
)
def test_other_files_are_refused(data: bytes, words: str) -> None:
    refused(data, words)


def test_a_file_that_onnx_and_onnx_runtime_read_differently_is_refused(tiny: bytes) -> None:
    data = b"\x12\x06abORTM" + tiny  # a producer's name, or the mark of ONNX Runtime's format
    assert onnx.load_from_string(data).producer_name == "abORTM"
    refused(data, "poses as one")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_refused(tiny: bytes, share: float) -> None:
    refused(tiny[: int(share * len(tiny))], "")


def test_damage_is_refused_or_gives_what_onnx_reads_too(tiny: bytes) -> None:
    chance = random.Random(0)
    taken = 0
    for _ in range(600):
        data = bytearray(tiny)
        for _ in range(chance.choice((1, 1, 3, 30))):
            # Most of the file is the description; damage to the structure is what matters.
            position = chance.randrange(min(chance.choice((20, 700, len(data))), len(data)))
            data[position] = chance.choice((data[position] ^ 1 << chance.randrange(8), 0xFF, 0))
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        try:
            found = inspect_model(bytes(data), PATH)
        except ModelUnusable:
            continue
        try:
            agrees(found, bytes(data))
            taken += 1
        except DecodeError:  # in a part that is left to the engine, which then takes nothing
            pass
    assert 50 < taken < 500


# --- weights outside the file


def test_weights_in_another_file_are_refused(model: ModelProto, tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones(1000, np.float32), "more")
    model.graph.initializer.append(weights)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=100)
    with pytest.raises(ModelUnusable, match="weights outside the file"):
        read_model_file(tmp_path / "m.onnx")


def outside(**fields: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "more")
    tensor.ClearField("raw_data")
    for key, value in fields.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_a_location_without_the_mark_is_refused(model: ModelProto) -> None:
    model.graph.initializer.append(outside(location="../../etc/passwd"))
    refused(model, "weights outside the file")


def test_the_mark_without_a_location_is_refused(model: ModelProto) -> None:
    tensor = outside()
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.initializer.append(tensor)
    refused(model, "weights outside the file")


def test_an_address_in_memory_is_refused(model: ModelProto) -> None:
    tensor = outside(location="*/_ORT_MEM_ADDR_/*", offset="140000000000000", length="16")
    model.graph.initializer.append(tensor)
    refused(model, "weights outside the file")


@pytest.mark.parametrize("many", [False, True])
def test_weights_outside_the_file_are_found_in_attributes_too(
    model: ModelProto, many: bool
) -> None:
    tensor = outside(location="weights.bin")
    value = [tensor] if many else tensor
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))
    refused(model, "weights outside the file")


def test_a_mark_that_only_a_32_bit_parser_takes_for_external_is_refused(model: ModelProto) -> None:
    name = b"m" * 40
    model.graph.initializer.append(outside())
    model.graph.initializer[-1].name = name.decode()
    # data_location 2**32 + 1, in place of as many bytes of the name
    mark = b"\x70\x81\x80\x80\x80\x10"
    whole, part = model.SerializeToString(), b"\x42\x28" + name
    assert whole.count(part) == 1
    shorter = b"\x42" + bytes([40 - len(mark)]) + name[len(mark) :]
    refused(whole.replace(part, shorter + mark), "weights outside the file")


# --- what a graph may hold


def test_every_operator_that_the_exporter_writes_is_taken() -> None:
    """As counted over its twelve networks, both heads, float and int8."""
    written = """Add AveragePool BatchNormalization Cast Clip Concat Conv DequantizeLinear Gelu Gemm
    Greater HardSigmoid HardSwish LayerNormalization MatMul MaxPool Mul Pow QuantizeLinear
    Reciprocal ReduceMean Relu Reshape Sigmoid Sqrt Sub Transpose Unsqueeze"""
    assert set(written.split()) <= OPERATORS


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_every_operator_on_the_list_is_a_standard_one_from_tensors_to_tensors(name: str) -> None:
    schema = onnx.defs.get_schema(name)
    kinds = {attribute.type.name for attribute in schema.attributes.values()}
    assert not kinds & {"GRAPH", "GRAPHS", "TYPE_PROTO", "TYPE_PROTOS"}
    for value in (*schema.inputs, *schema.outputs):
        assert any(text.startswith("tensor(") for text in value.types)


@pytest.mark.parametrize(
    "name",
    [
        "If",
        "Loop",
        "Scan",
        "RandomNormal",
        "RandomUniformLike",
        "Bernoulli",
        "Dropout",
        "ImageDecoder",
        "StringConcat",
        "SequenceConstruct",
        "OptionalGetElement",
        "NonMaxSuppression",
        "SoftmaxCrossEntropyLoss",
    ],
)
def test_operators_that_a_classifier_does_not_need_are_refused(
    model: ModelProto, name: str
) -> None:
    model.graph.node.append(helper.make_node(name, ["image"], ["more"]))
    refused(model, f"operator {name}, which medtl does not run")


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "org.example", "ai.onnx "])
def test_operators_of_other_domains_are_refused(model: ModelProto, domain: str) -> None:
    model.graph.node.append(helper.make_node("Relu", ["image"], ["more"], domain=domain))
    refused(model, f"operator Relu of {domain}; expected ONNX's standard operators")


def test_the_standard_domain_has_two_names(model: ModelProto) -> None:
    model.graph.node[0].domain = "ai.onnx"
    operators = inspect_model(model.SerializeToString(), PATH).operators
    assert {domain for domain, _ in operators} == set(STANDARD_DOMAINS)


def test_imported_domains_that_nothing_uses_do_no_harm(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert inspect_model(model.SerializeToString(), PATH).opsets == {"": 18, "com.microsoft": 1}


def subgraph() -> onnx.GraphProto:
    return helper.make_graph([], "inner", [], [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("g", subgraph())),
            "a subgraph",
        ),
        (
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("g", [subgraph()])),
            "a subgraph",
        ),
        (
            lambda m: m.graph.node[0].attribute.append(
                AttributeProto(name="a", type=AttributeProto.INT, ref_attr_name="outer")
            ),
            "an attribute of a function",
        ),
        (
            lambda m: m.graph.node[0].attribute.append(
                helper.make_attribute("t", helper.make_tensor_type_proto(1, [2]))
            ),
            "an attribute that is a type",
        ),
        (
            lambda m: m.functions.append(
                helper.make_function("own", "Relu", ["x"], ["y"], [], [helper.make_opsetid("", 18)])
            ),
            "functions of its own",
        ),
        (lambda m: m.training_info.add(), "a graph for training"),
        (lambda m: m.graph.sparse_initializer.add(), "a sparse tensor"),
        (
            lambda m: m.graph.initializer.append(helper.make_tensor("s", 8, [1], [b"text"])),
            "a tensor of strings",
        ),
        (
            lambda m: m.graph.initializer.append(TensorProto(name="s", data_type=8)),
            "data type 8; expected numbers",
        ),
        (lambda m: m.graph.initializer.add(name="s"), "data type None; expected numbers"),
        (
            lambda m: m.graph.value_info.append(
                helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
            ),
            "a value that is not a tensor",
        ),
        (lambda m: setattr(m.graph.node[0], "overload", "o"), "field 8 in a node"),
        (lambda m: m.ClearField("opset_import"), "no version of the standard operators"),
        (lambda m: m.opset_import.append(helper.make_opsetid("", 9)), "operator set '' occurs"),
        (lambda m: m.ClearField("ir_version"), "no whole ONNX graph"),
    ],
)
def test_what_a_classifier_does_not_need_is_refused(
    model: ModelProto, change: Callable[[ModelProto], None], words: str
) -> None:
    change(model)
    refused(model, words)


def test_two_models_joined_are_refused(tiny: bytes) -> None:
    """Protobuf merges them into one graph with the nodes of both."""
    refused(tiny + tiny, "occurs twice in a model")


# --- inputs, outputs, metadata


def test_another_input_is_refused(model: ModelProto) -> None:
    model.graph.input[0].name = "pixels"
    refused(model, r"inputs \[pixels\]; expected image alone")


def test_a_second_input_is_refused_even_for_weights(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("weights", TensorProto.FLOAT, None))
    refused(model, r"inputs \[image, weights\]; expected image alone")


def test_missing_further_and_doubled_outputs_are_refused(model: ModelProto) -> None:
    logits, cam, embedding = model.graph.output
    for outputs in ([logits, cam], [logits, cam, embedding, logits], []):
        other = ModelProto()
        other.CopyFrom(model)
        del other.graph.output[:]
        other.graph.output.extend(outputs)
        refused(other, r"outputs \[.*\]; expected logits, cam, embedding")


def test_the_order_of_outputs_is_free(model: ModelProto) -> None:
    reordered = list(model.graph.output)[::-1]
    del model.graph.output[:]
    model.graph.output.extend(reordered)
    found = inspect_model(model.SerializeToString(), PATH).outputs
    assert found == ("embedding", "cam", "logits")


def test_a_metadata_key_that_occurs_twice_is_refused(tiny: bytes) -> None:
    refused(tiny + metadata_entry(METADATA_KEY, "{}"), "metadata medtl occurs twice")


def test_a_file_does_not_configure_onnx_runtime(tiny: bytes) -> None:
    refused(tiny + metadata_entry("ort_config", "{}"), "metadata ort_config")


def test_names_from_the_file_do_nothing_to_a_terminal(model: ModelProto) -> None:
    model.graph.input[0].name = "\x1b[31mred\n\u202e" + "long" * 1000
    with pytest.raises(ModelUnusable) as caught:
        inspect_model(model.SerializeToString(), PATH)
    text = str(caught.value)
    assert text.isprintable()
    assert "\\x1b[31mred\\n\\u202e" in text
    assert len(text) < 250
