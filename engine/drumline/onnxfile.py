"""As much of the ONNX file format (protobuf) as works without the `onnx` package.

A message is a sequence of fields: a varint of ``number << 3 | wire type``, then a varint (type 0), 8 bytes
(1), a length and as many bytes (2), or 4 bytes (5). Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["OnnxFormatError", "bytes_field", "has_external_data", "int_field", "message_fields"]

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


class OnnxFormatError(ValueError):
    """The bytes are no protobuf message."""


def int_field(number: int, value: int) -> bytes:
    """Encode a field that holds a whole number ≥ 0."""
    return _varint(number << 3 | _VARINT) + _varint(value)


def bytes_field(number: int, value: bytes | str) -> bytes:
    """Encode a field that holds bytes, text or a message."""
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
