"""Finds what a serialised ONNX model refers to outside itself; needs neither a runtime nor the library onnx."""

from __future__ import annotations

from typing import Final

from ..errors import ContractError
from .onnx_wire import BYTES, VARINT, fields

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
        for field in fields(data, at, end):
            if field.wire == VARINT:
                if message == "tensor" and field.number == _DATA_LOCATION and field.value != 0:
                    raise ContractError("a tensor keeps its data outside of the model file")
            elif field.wire == BYTES:
                if field.number in inside:
                    todo.append((inside[field.number], field.at, field.end, depth + 1))
                elif field.number == domain and data[field.at : field.end] not in _OWN_DOMAINS:
                    name = _shown(data[field.at : field.end])
                    raise ContractError(f"operators of the domain {name} are not run here")
                elif message == "tensor" and field.number == _EXTERNAL_DATA:
                    raise ContractError("a tensor keeps its data outside of the model file")


def _shown(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))
