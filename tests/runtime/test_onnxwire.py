"""The protobuf walk, against the onnx package and against bytes that no serialiser writes."""

import time
from collections import Counter
from pathlib import Path

import onnx
import onnx.backend.test
import pytest

from medtl_runtime import onnxwire
from medtl_runtime.onnxwire import Refused, Walk, metadata_entry, without_metadata

LIGHT = sorted((Path(onnx.backend.test.__file__).parent / "data" / "light").glob("*.onnx"))

OVERLONG = b"\xff" * 9 + b"\x02"  # more than 64 bits


def walked(data: bytes, kind: onnxwire.Message = onnxwire.MODEL) -> list:
    return list(Walk().fields(memoryview(data), kind))


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_the_models_that_onnx_ships_are_walked_as_onnx_reads_them(path: Path) -> None:
    graph = dict(walked(path.read_bytes()))["graph"]
    parts = walked(graph, onnxwire.GRAPH)
    expected = onnx.load(path).graph
    names = {"initializer": "initializer", "input": "input", "output": "output"}
    counts = Counter(name for name, _ in parts)
    for name, field in names.items():
        assert counts[name] == len(getattr(expected, field))
    nodes = [dict(walked(value, onnxwire.NODE)) for name, value in parts if name == "node"]
    assert [onnxwire.text(node["op_type"]) for node in nodes] == [n.op_type for n in expected.node]


def test_onnx_ships_models_for_the_test_above() -> None:
    assert len(LIGHT) >= 8


def test_every_field_that_onnx_defines_is_known_with_its_type_or_refused() -> None:
    """The wire types by descriptor: https://protobuf.dev/programming-guides/encoding."""
    wires = {1: 1, 2: 5, 3: 0, 4: 0, 5: 0, 9: 2, 11: 2, 12: 2, 14: 0}
    for kind, proto in (
        (onnxwire.MODEL, onnx.ModelProto),
        (onnxwire.OPSET, onnx.OperatorSetIdProto),
        (onnxwire.ENTRY, onnx.StringStringEntryProto),
        (onnxwire.GRAPH, onnx.GraphProto),
        (onnxwire.NODE, onnx.NodeProto),
        (onnxwire.ATTRIBUTE, onnx.AttributeProto),
        (onnxwire.TENSOR, onnx.TensorProto),
        (onnxwire.VALUE, onnx.ValueInfoProto),
        (onnxwire.VALUE_TYPE, onnx.TypeProto),
    ):
        defined = proto.DESCRIPTOR.fields_by_number
        for number, field in kind.fields.items():
            if field.refused is None:
                assert field.name == defined[number].name
                assert field.wire == wires[defined[number].type]
                assert field.many == defined[number].is_repeated
            else:
                assert number in defined or (kind.name, number) == ("type", 7)


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",  # a number that is not there
        b"\x08\x80",  # ... that goes on
        b"\x08" + OVERLONG,
        b"\x08" + b"\x80" * 10 + b"\x01",
        b"\x12\x05abcd",  # a text of 5 bytes
        b"\x12" + b"\xff" * 9 + b"\x01",  # ... of 2**64 - 1
        b"\x3b\x3c",  # a group
        b"\x0e\x00",  # wire type 6
        b"\x02\x00",  # field 0
        b"\x89PNG\r\n\x1a\n",
        b"DICM",
    ],
)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Refused, match=r"not an ONNX file|does not know"):
        walked(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x08\x0a\x08\x0a", "ir_version occurs twice in a model"),
        (b"\x10\x01", "producer_name of another type in a model"),
        (b"\x0a\x01\x0a", "ir_version of another type in a model"),
        (b"\xd2\x01\x00", "field 26 in a model, which medtl does not know"),
        (b"\xca\x01\x00", "functions of its own"),
        (b"\xa2\x01\x00", "a graph for training"),
    ],
)
def test_what_parsers_could_disagree_about_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(Refused, match=words):
        walked(data)


def test_packed_and_single_numbers_are_both_taken() -> None:
    single = onnx.TensorProto(dims=[2, 300]).SerializeToString()
    packed = b"\x0a\x03\x02\xac\x02"
    assert onnx.TensorProto.FromString(packed).dims == [2, 300]
    assert walked(single, onnxwire.TENSOR) == [("dims", 2), ("dims", 300)]
    assert walked(packed, onnxwire.TENSOR) == [("dims", b"\x02\xac\x02")]


def test_the_walk_ends_after_so_many_fields_however_the_file_is_made() -> None:
    started = time.process_time()
    with pytest.raises(Refused, match="more than 200000 parts"):
        walked(b"\x42\x00" * 2_000_000)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_an_entry_put_behind_a_model_is_metadata_to_onnx(length: int) -> None:
    data = LIGHT[0].read_bytes() + metadata_entry("läsion", "ü" * length)
    (entry,) = onnx.load_from_string(data).metadata_props
    assert (entry.key, entry.value) == ("läsion", "ü" * length)


def test_an_entry_is_taken_out_wherever_it_is_and_the_rest_stays() -> None:
    plain = LIGHT[0].read_bytes()
    a, b, c = (metadata_entry(key, "value") for key in "abc")
    data = a + b + plain + b + c
    assert without_metadata(data, "b") == a + plain + c
    assert without_metadata(data, "d") == data


def test_a_text_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(Refused, match="not UTF-8"):
        onnxwire.text(memoryview(b"\xff"))
