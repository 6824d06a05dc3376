"""As much of the ONNX file format (protobuf) as works without the `onnx` package.

A message is a sequence of fields: a varint of ``number << 3 | wire type``, then a varint (type 0), 8 bytes
(1), a length and as many bytes (2), or 4 bytes (5). Field numbers are those of onnx.proto3. Whole numbers are
not negative here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "OnnxFormatError",
    "encode_model",
    "encode_node",
    "foreign_domains",
    "has_external_data",
    "message_fields",
]

Shape = Sequence[int | str]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 64

_CHILDREN = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Message → its fields that lead to tensors."""

_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_NODE_DOMAIN, _FUNCTION_DOMAIN = 7, 10
_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_OPSET, _IR_VERSION = 17, 8
_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_INTS = 1, 2, 7


class OnnxFormatError(ValueError):
    """The bytes are no protobuf message."""


def encode_model(
    nodes: Sequence[bytes],
    weights: Mapping[str, NDArray[np.float32]],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Encode an ONNX model whose tensors are all float32.

    Parameters
    ----------
    nodes
        From `encode_node`, in the order in which they run.
    weights
        Name → constant tensor.
    inputs, outputs
        Name → shape; a dimension that varies is a name.
    metadata
        Custom metadata.
    """
    graph = b"".join(_bytes_field(1, node) for node in nodes) + _bytes_field(2, "graph")
    graph += b"".join(_bytes_field(5, _tensor(name, values)) for name, values in weights.items())
    graph += b"".join(_bytes_field(11, _value_info(name, shape)) for name, shape in inputs.items())
    graph += b"".join(_bytes_field(12, _value_info(name, shape)) for name, shape in outputs.items())
    opset = _bytes_field(1, "") + _int_field(2, _OPSET)
    model = _int_field(1, _IR_VERSION) + _bytes_field(2, "drumline")
    model += _bytes_field(7, graph) + _bytes_field(8, opset)
    entries = (_bytes_field(1, key) + _bytes_field(2, value) for key, value in (metadata or {}).items())
    return model + b"".join(_bytes_field(14, entry) for entry in entries)


def encode_node(kind: str, inputs: Sequence[str], output: str, **attributes: int | Sequence[int]) -> bytes:
    """Encode one node: operator, names of its inputs and of its one output, whole-number attributes."""
    node = b"".join(_bytes_field(1, name) for name in inputs) + _bytes_field(2, output)
    node += _bytes_field(4, kind)
    return node + b"".join(_bytes_field(5, _attribute(name, value)) for name, value in attributes.items())


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _bytes_field(1, name) + _int_field(3, value) + _int_field(20, _ATTRIBUTE_INT)
    values = b"".join(_int_field(8, item) for item in value)
    return _bytes_field(1, name) + values + _int_field(20, _ATTRIBUTE_INTS)


def _tensor(name: str, values: NDArray[np.float32]) -> bytes:
    sizes = b"".join(_int_field(1, size) for size in values.shape)
    data = values.astype("<f4").tobytes()
    return sizes + _int_field(2, _FLOAT) + _bytes_field(8, name) + _bytes_field(9, data)


def _value_info(name: str, shape: Shape) -> bytes:
    sizes = (_int_field(1, size) if isinstance(size, int) else _bytes_field(2, size) for size in shape)
    dimensions = _bytes_field(2, b"".join(_bytes_field(1, size) for size in sizes))
    tensor_type = _bytes_field(1, _int_field(1, _FLOAT) + dimensions)
    return _bytes_field(1, name) + _bytes_field(2, tensor_type)


def _int_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _bytes_field(number: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def message_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Iterate over (field number, value) of a message; bytes and fixed numbers as memory views.

    Raises
    ------
    OnnxFormatError
        When the bytes are no message.
    """
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        wire_type = key & 7
        if wire_type == _VARINT:
            value, place = _read_varint(message, place)
            yield key >> 3, value
            continue
        if wire_type == _BYTES:
            length, place = _read_varint(message, place)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise OnnxFormatError(f"wire type {wire_type} at byte {place}")
        if length > len(message) - place:
            raise OnnxFormatError(f"a field at byte {place} ends past its message")
        yield key >> 3, message[place : place + length]
        place += length


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte, place = message[place], place + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise OnnxFormatError(f"no number at byte {place}")


def has_external_data(model: bytes) -> bool:
    """Tell whether any tensor of an ONNX model lies in another file.

    Raises
    ------
    OnnxFormatError
        When `model` is no ONNX model.
    """
    return _leads_outside(memoryview(model), "model", 0)


def _leads_outside(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _DEEPEST:
        raise OnnxFormatError("graphs are nested too deep")
    for number, value in message_fields(message):
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value == 1)):
            return True
        child = _CHILDREN[kind].get(number)
        if child and isinstance(value, memoryview) and _leads_outside(value, child, depth + 1):
            return True
    return False


def foreign_domains(model: bytes) -> list[str]:
    """Return the domains of operators that neither ONNX, ONNX Runtime nor the model itself defines, sorted.

    Raises
    ------
    OnnxFormatError
        When `model` is no ONNX model.
    """
    used: set[str] = set()
    own: set[str] = set()
    _gather_domains(memoryview(model), "model", 0, used, own)
    return sorted(used - own - _KNOWN_DOMAINS)


def _gather_domains(message: memoryview, kind: str, depth: int, used: set[str], own: set[str]) -> None:
    if depth > _DEEPEST:
        raise OnnxFormatError("graphs are nested too deep")
    for number, value in message_fields(message):
        if not isinstance(value, memoryview):
            continue
        if (kind, number) == ("node", _NODE_DOMAIN):
            used.add(bytes(value).decode("utf-8", "replace"))
        elif (kind, number) == ("function", _FUNCTION_DOMAIN):
            own.add(bytes(value).decode("utf-8", "replace"))
        child = _CHILDREN[kind].get(number)
        if child not in (None, "tensor", "sparse"):
            _gather_domains(value, str(child), depth + 1, used, own)
