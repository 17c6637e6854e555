"""The protobuf messages of an ONNX file, walked without the onnx package.

Field numbers and types are those of ``onnx.proto`` (ONNX 1.19 to 1.23), the encoding is
https://protobuf.dev/programming-guides/encoding. The walk is stricter than protobuf: a field that
it does not know, one of another type, and a single field that occurs twice are refused, because
parsers differ in what they make of these. Payloads are skipped by their length and never copied.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

MOST_FIELDS = 200_000
"""Most fields of one file that are walked, in less than a second; of medtl's networks, densenet121
as int8 has most, 21,000."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Refused(Exception):
    """Why a file is not taken, in words that continue "not a usable medtl model"."""


class Field(NamedTuple):
    """What medtl takes in a field of a message."""

    name: str
    wire: int = BYTES
    many: bool = False
    refused: str | None = None
    """Why the field may not be there at all."""


class Message(NamedTuple):
    """A kind of message: the fields that it may have, by number."""

    name: str
    fields: Mapping[int, Field]


def _many(name: str, wire: int = BYTES) -> Field:
    return Field(name, wire, many=True)


def _refused(why: str) -> Field:
    return Field(why, refused=why)


OUTSIDE = "weights outside the file (external data); expected all of them inside"
_SUBGRAPH = _refused("a subgraph")
_SPARSE = _refused("a sparse tensor")
_TYPE = _refused("an attribute that is a type")
_NO_TENSOR = _refused("a value that is not a tensor")

_METADATA = 14

MODEL = Message(
    "model",
    {
        1: Field("ir_version", VARINT),
        2: Field("producer_name"),
        3: Field("producer_version"),
        4: Field("domain"),
        5: Field("model_version", VARINT),
        6: Field("doc_string"),
        7: Field("graph"),
        8: _many("opset_import"),
        _METADATA: _many("metadata_props"),
        20: _refused("a graph for training"),
        25: _refused("functions of its own"),
    },
)
OPSET = Message("operator set", {1: Field("domain"), 2: Field("version", VARINT)})
ENTRY = Message("metadata entry", {1: Field("key"), 2: Field("value")})
GRAPH = Message(
    "graph",
    {
        1: _many("node"),
        2: Field("name"),
        5: _many("initializer"),
        10: Field("doc_string"),
        11: _many("input"),
        12: _many("output"),
        13: _many("value_info"),
        14: _many("quantization_annotation"),
        15: _SPARSE,
        16: _many("metadata_props"),
    },
)
NODE = Message(
    "node",
    {
        1: _many("input"),
        2: _many("output"),
        3: Field("name"),
        4: Field("op_type"),
        5: _many("attribute"),
        6: Field("doc_string"),
        7: Field("domain"),
        9: _many("metadata_props"),
    },
)
ATTRIBUTE = Message(
    "attribute",
    {
        1: Field("name"),
        2: Field("f", FIXED32),
        3: Field("i", VARINT),
        4: Field("s"),
        5: Field("t"),
        6: _SUBGRAPH,
        7: _many("floats", FIXED32),
        8: _many("ints", VARINT),
        9: _many("strings"),
        10: _many("tensors"),
        11: _SUBGRAPH,
        13: Field("doc_string"),
        14: _TYPE,
        15: _TYPE,
        20: Field("type", VARINT),
        21: _refused("an attribute of a function"),
        22: _SPARSE,
        23: _SPARSE,
    },
)
TENSOR = Message(
    "tensor",
    {
        1: _many("dims", VARINT),
        2: Field("data_type", VARINT),
        4: _many("float_data", FIXED32),
        5: _many("int32_data", VARINT),
        6: _refused("a tensor of strings"),
        7: _many("int64_data", VARINT),
        8: Field("name"),
        9: Field("raw_data"),
        10: _many("double_data", FIXED64),
        11: _many("uint64_data", VARINT),
        12: Field("doc_string"),
        13: _refused(OUTSIDE),
        14: Field("data_location", VARINT),
        16: _many("metadata_props"),
    },
)
VALUE = Message(
    "value",
    {
        1: Field("name"),
        2: Field("type"),
        3: Field("doc_string"),
        4: _many("metadata_props"),
    },
)
VALUE_TYPE = Message(
    "type",
    {1: Field("tensor_type"), 6: Field("denotation")}
    | dict.fromkeys((4, 5, 7, 8, 9), _NO_TENSOR),  # sequences, maps, opaque and optional values
)


class Walk:
    """Walks the messages of one file and stops after `MOST_FIELDS` fields."""

    def __init__(self) -> None:
        self._left = MOST_FIELDS

    def fields(self, message: memoryview, kind: Message) -> Iterator[tuple[str, Any]]:
        """Yield names and values: an int for a varint, else the bytes, as a view.

        A packed list of numbers is yielded as the bytes that it is.

        Raises
        ------
        Refused
            Malformed, or not what ``kind`` allows.
        """
        seen: set[int] = set()
        position = 0
        while position < len(message):
            self._left -= 1
            if self._left < 0:
                raise Refused(f"it has more than {MOST_FIELDS} parts")
            number, wire, value, position = _field(message, position)
            field = kind.fields.get(number)
            if field is None:
                found = f"field {number} in a {kind.name}, which medtl does not know"
                raise Refused(f"{found}; it may be damaged, or not ONNX")
            if field.refused is not None:
                raise Refused(field.refused)
            if wire != field.wire and not (field.many and wire == BYTES):
                raise Refused(f"{field.name} of another type in a {kind.name}; it may be damaged")
            if number in seen and not field.many:
                raise Refused(f"{field.name} occurs twice in a {kind.name}")
            seen.add(number)
            yield field.name, value

    def single(self, message: memoryview, kind: Message) -> dict[str, Any]:
        """Return the fields of a message by name; of those that may repeat, the last."""
        return dict(self.fields(message, kind))


def _field(message: memoryview, position: int) -> tuple[int, int, Any, int]:
    """Return number, wire type and value of the field at ``position``, and where the next is."""
    tag, start = _varint(message, position)
    number, wire = tag >> 3, tag & 7
    if wire == VARINT:
        value, stop = _varint(message, start)
        return number, wire, value, stop
    if wire == BYTES:
        length, start = _varint(message, start)
    elif wire in (FIXED32, FIXED64):
        length = 4 if wire == FIXED32 else 8
    else:  # groups, which ONNX has none of, and types that do not exist
        raise Refused("not an ONNX file, or a damaged one")
    stop = start + length
    if not 0 < number < 2**29 or stop > len(message):
        raise Refused("not an ONNX file, or one that is damaged or cut short")
    return number, wire, message[start:stop], stop


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return an unsigned number of up to 64 bits, and the position behind it."""
    if position < len(message) and message[position] < 0x80:  # nearly all are one byte long
        return message[position], position + 1
    value = 0
    for index, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if value >> 64:
                break
            return value, position + index + 1
    raise Refused("not an ONNX file, or one that is damaged or cut short")


def text(value: memoryview) -> str:
    """Return a string field."""
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as cause:
        raise Refused("a text in it is not UTF-8; it may be damaged") from cause


def without_metadata(data: bytes, key: str) -> bytes:
    """Return a serialised model without the entry ``key`` of its ``metadata_props``.

    Raises
    ------
    Refused
        Malformed.
    """
    whole, position, kept = memoryview(data), 0, []
    walk = Walk()
    while position < len(whole):
        number, wire, value, stop = _field(whole, position)
        entry = number == _METADATA and wire == BYTES
        if not entry or walk.single(value, ENTRY).get("key") != key.encode():
            kept.append(whole[position:stop])
        position = stop
    return b"".join(kept)


def metadata_entry(key: str, value: str) -> bytes:
    """Return one serialised ``metadata_props`` field of a model, to be appended to its bytes.

    Messages are merged by joining their bytes, so what comes out is a valid file.
    """
    entry = _bytes_field(1, key.encode()) + _bytes_field(2, value.encode())
    return _bytes_field(_METADATA, entry)


def _bytes_field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | BYTES]) + _length(len(content)) + content


def _length(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
