"""Finds what a serialised ONNX model refers to outside itself; needs neither a runtime nor the library onnx."""

from __future__ import annotations

from typing import Final

from ..errors import ContractError

# Messages of onnx.proto that can hold a tensor or an operator, and the fields that lead from one to the next.
_INSIDE: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "tensor": {},
}
_DOMAIN: Final = {"node": 7, "function": 10}
_OWN_DOMAINS: Final = (b"", b"ai.onnx")
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 64  # messages within messages; a graph in a graph takes three


def scan(data: bytes) -> None:
    """Refuse a serialised ONNX model that reaches outside itself, whether in its graph, a subgraph or a function.

    Raises:
        ContractError: a tensor keeps its data in another file (that file has no hash, and its path may point
            anywhere), an operator is of a foreign domain, or the bytes are not well-formed protobuf.
    """
    todo = [("model", 0, len(data), 0)]
    while todo:
        message, at, end, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise ContractError(f"the model nests deeper than {MAX_DEPTH} messages")
        inside, domain = _INSIDE[message], _DOMAIN.get(message)
        while at < end:
            tag, at = _varint(data, at, end)
            field, wire = tag >> 3, tag & 7
            if field == 0 or tag >= 1 << 32:
                raise _malformed()
            if wire == _VARINT:
                value, at = _varint(data, at, end)
                if message == "tensor" and field == _DATA_LOCATION and value != 0:
                    raise ContractError("a tensor keeps its data outside of the model file")
            elif wire == _BYTES:
                size, at = _varint(data, at, end)
                start, at = at, at + size
                if at > end:
                    raise _malformed()
                if field in inside:
                    todo.append((inside[field], start, at, depth + 1))
                elif field == domain and data[start:at] not in _OWN_DOMAINS:
                    raise ContractError(f"operators of the domain {_shown(data[start:at])} are not run here")
                elif message == "tensor" and field == _EXTERNAL_DATA:
                    raise ContractError("a tensor keeps its data outside of the model file")
            elif wire == _FIXED64:
                at += 8
            elif wire == _FIXED32:
                at += 4
            else:
                raise _malformed()  # groups: ONNX has none
        if at != end:
            raise _malformed()


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
    raise _malformed()


def _malformed() -> ContractError:
    return ContractError("the model is not a well-formed ONNX file")


def _shown(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))
