"""What an ONNX file holds, without the `onnx` package: a reader of the few protobuf fields that a check needs.

The format: https://protobuf.dev/programming-guides/encoding and onnx.proto3. Every length is checked against the bytes
that are there, so a damaged or hostile file costs no more than a look at its own size.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from trainpool.errors import ProgramError

__all__ = ["Contents", "contents"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
STANDARD = ("", "ai.onnx")
BLOCKS = "com.microsoft.nchwc"
"""ONNX Runtime's operators on its blocked memory order: convolution, pooling, and to and from that order."""
MOST_FIELDS = 2_000_000
"""In one file, of which an operator has about ten: a file of nothing but small fields is refused in seconds."""
FLATBUFFER = b"ORTM"
"""ONNX Runtime takes bytes with this at 4 for a file of a format of its own, whatever they are as ONNX."""


@dataclass
class Contents:
    """What a file consists of."""

    operators: set[str] = field(default_factory=set)
    """The types of its operators."""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    nodes: int = 0
    fields: int = 0
    domains: tuple[str, ...] = STANDARD
    """Whose operators it may use."""


def fields(data: memoryview, found: Contents) -> Iterator[tuple[int, int, int | memoryview]]:
    """The fields of a message: number, wire type, value."""
    position = 0
    while position < len(data):
        found.fields += 1
        if found.fields > MOST_FIELDS:
            raise ProgramError(f"the ONNX file has more than {MOST_FIELDS:,} fields")
        tag, position = varint(data, position)
        if tag >= 1 << 32:  # other readers see the low 32 bits alone, that is, another field
            raise ProgramError("not an ONNX file: a field number of more than 29 bits")
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ProgramError("not an ONNX file: field number 0")
        if kind == VARINT:
            value, position = varint(data, position)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, position = varint(data, position)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ProgramError(f"not an ONNX file: wire type {kind}")
        if length > len(data) - position:
            raise ProgramError("an ONNX file that is cut short")
        yield number, kind, data[position : position + length]
        position += length


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ProgramError("an ONNX file that is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ProgramError("not an ONNX file: a number of more than ten bytes")


def message(kind: int, value: int | memoryview) -> memoryview:
    """A field's value that must be bytes."""
    if kind != BYTES or not isinstance(value, memoryview):
        raise ProgramError("not an ONNX file: a number where a message belongs")
    return value


def text(kind: int, value: int | memoryview) -> str:
    """A field's value that must be a string."""
    try:
        return str(message(kind, value), "utf-8")
    except UnicodeDecodeError as error:
        raise ProgramError("not an ONNX file: a name that is no text") from error


def contents(data: bytes, *, blocked: bool = False) -> Contents:
    """The operators, inputs and outputs of an ONNX model, `blocked` with ONNX Runtime's blocked ones.

    Raises:
        ProgramError: the bytes are no such file or cut short, or it holds what no program may: external data, another
            domain's operators, functions of its own, training information, a graph inside of a graph.
    """
    if data[4:8] == FLATBUFFER:
        raise ProgramError("not an ONNX file, but one of ONNX Runtime's own format")
    found = Contents(domains=(*STANDARD, BLOCKS) if blocked else STANDARD)
    graphs = 0
    for number, kind, value in fields(memoryview(data), found):
        if number == 7:  # ModelProto.graph
            graphs += 1
            graph(message(kind, value), found)
        elif number == 8:  # opset_import
            for inner, inner_kind, name in fields(message(kind, value), found):
                if inner == 1 and text(inner_kind, name) not in found.domains:
                    raise ProgramError(f"the ONNX file imports the domain {text(inner_kind, name)!r}")
        elif number in (20, 25):
            what = "training information" if number == 20 else "functions of its own"
            raise ProgramError(f"the ONNX file has {what}, which no program may have")
    if graphs != 1:
        raise ProgramError(f"not an ONNX file: {graphs} graphs")
    return found


def graph(data: memoryview, found: Contents) -> None:
    """Read a GraphProto."""
    for number, kind, value in fields(data, found):
        if number == 1:
            found.nodes += 1
            node(message(kind, value), found)
        elif number == 5:
            tensor(message(kind, value), found)
        elif number in (11, 12):
            names = [text(k, v) for n, k, v in fields(message(kind, value), found) if n == 1]
            (found.inputs if number == 11 else found.outputs).extend(names)
        elif number == 15:
            raise ProgramError("the ONNX file has sparse tensors, which no program may have")


def node(data: memoryview, found: Contents) -> None:
    """Read a NodeProto."""
    for number, kind, value in fields(data, found):
        if number == 4:
            found.operators.add(text(kind, value))
        elif number == 7 and text(kind, value) not in found.domains:
            raise ProgramError(f"the ONNX file uses the domain {text(kind, value)!r}")
        elif number == 5:  # AttributeProto: t = 5, g = 6, tensors = 10, graphs = 11, sparse_tensor(s) = 22, 23
            for inner, inner_kind, attribute in fields(message(kind, value), found):
                if inner in (5, 10):
                    tensor(message(inner_kind, attribute), found)
                elif inner in (6, 11):
                    raise ProgramError("the ONNX file has a graph inside of a graph, which no program may have")
                elif inner in (22, 23):
                    raise ProgramError("the ONNX file has sparse tensors, which no program may have")


def tensor(data: memoryview, found: Contents) -> None:
    """Read a TensorProto: its data must be in the file."""
    for number, _, value in fields(data, found):
        if number == 13 or (number == 14 and value):
            raise ProgramError("the ONNX file keeps tensors in other files, which no program may do")
