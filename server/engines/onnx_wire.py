"""The protobuf fields of a serialised ONNX model, read without a runtime and without the library onnx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from ..errors import ContractError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_SIZES: Final = {FIXED64: 8, FIXED32: 4}


class Field(NamedTuple):
    """One field of a message: bytes [begin, end) of the model with its tag, the payload of BYTES from `at` on."""

    number: int
    wire: int
    begin: int
    at: int
    end: int
    value: int  # of a VARINT, else 0


def fields(data: bytes, at: int, end: int) -> Iterator[Field]:
    """The fields of the message that lies in bytes [at, end) of `data`.

    Raises:
        ContractError: the bytes are not well-formed protobuf, as far as they were read.
    """
    while at < end:
        begin, value = at, 0
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0 or tag >= 1 << 32:
            raise malformed()
        payload = at
        if wire == VARINT:
            value, at = _varint(data, at, end)
        elif wire == BYTES:
            size, payload = _varint(data, at, end)
            at = payload + size
        elif wire in _SIZES:
            at += _SIZES[wire]
        else:
            raise malformed()  # groups: ONNX has none
        if at > end:
            raise malformed()
        yield Field(number, wire, begin, payload, at, value)


def encoded(number: int, payload: bytes) -> bytes:
    """A field of BYTES."""
    return head(number, len(payload)) + payload


def head(number: int, size: int) -> bytes:
    """What stands before the `size` bytes of a field of BYTES."""
    return _encoded(number << 3 | BYTES) + _encoded(size)


def malformed() -> ContractError:
    return ContractError("the model is not a well-formed ONNX file")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """(value, place after it)."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise malformed()


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
