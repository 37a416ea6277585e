"""A serialised ONNX model cut down to some of its outputs.

ONNX Runtime computes every node of a model, also those that lead to no output that was asked for (and an inference
build ignores the run option for it): what a mode does not need must not be in the model that its session got.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ..errors import ContractError
from .onnx_wire import BYTES, Field, encoded, fields

_GRAPH, _PROPERTY = 7, 14  # of the model
_KEY, _VALUE = 1, 2  # of a property
_NODE, _TENSOR, _OUTPUT = 1, 5, 12  # of the graph
_NODE_INPUT, _NODE_OUTPUT, _ATTRIBUTE = 1, 2, 5
_TENSOR_NAME, _VALUE_NAME = 8, 1
_SUBGRAPHS: Final = (6, 11)  # of an attribute


def property_of(data: bytes, key: str) -> str | None:
    """The property `key` of the model's metadata; None where it has none. Raises ContractError: no ONNX file."""
    for field in fields(data, 0, len(data)):
        if (field.number, field.wire) == (_PROPERTY, BYTES) and key.encode() in _texts(data, field, _KEY):
            return b"".join(_texts(data, field, _VALUE)[-1:]).decode("utf-8", "replace")
    return None


def outputs_in(data: bytes) -> set[str]:
    """The names of the model's outputs. Raises ContractError: no ONNX file."""
    graph = _graph(data)
    found = [part for part in fields(data, graph.at, graph.end) if (part.number, part.wire) == (_OUTPUT, BYTES)]
    return {name.decode("utf-8", "replace") for part in found for name in _texts(data, part, _VALUE_NAME)}


def cut(data: bytes, outputs: Collection[str]) -> bytes:
    """The model `data` with these outputs alone, and no node or constant that none of them needs.

    Everything else, the metadata for one, stays byte for byte as it is; `data` itself comes back where nothing goes.

    Raises:
        ContractError: there is no such output, a node that stays has a subgraph (what that uses is not followed), or
            the bytes are not well-formed protobuf.
    """
    graph = _graph(data)
    parts = list(fields(data, graph.at, graph.end))
    kept = _needed(data, parts, outputs)
    if len(kept) == len(parts):
        return data
    smaller = encoded(_GRAPH, b"".join(data[part.begin : part.end] for part in kept))
    return data[: graph.begin] + smaller + data[graph.end :]


def _graph(data: bytes) -> Field:
    graphs = [field for field in fields(data, 0, len(data)) if (field.number, field.wire) == (_GRAPH, BYTES)]
    if len(graphs) != 1:
        raise ContractError(f"the model has {len(graphs)} graphs")
    return graphs[0]


def _needed(data: bytes, parts: list[Field], outputs: Collection[str]) -> list[Field]:
    """Fields of a graph without what leads to none of the outputs."""
    wanted = {name.encode() for name in outputs}
    found = {name for part in parts if part.number == _OUTPUT for name in _texts(data, part, _VALUE_NAME)}
    if not wanted <= found:
        missing = ", ".join(sorted(name.decode() for name in wanted - found))
        raise ContractError(f"the model has no output {missing}")
    needed, kept = set(wanted), []
    # Nodes are sorted: whoever makes a value stands before whoever takes it. Constants may stand anywhere.
    for part in reversed([part for part in parts if part.number == _NODE]):
        if needed.isdisjoint(_texts(data, part, _NODE_OUTPUT)):
            continue
        for attribute in fields(data, part.at, part.end):
            if attribute.number == _ATTRIBUTE and any(
                inner.number in _SUBGRAPHS for inner in fields(data, attribute.at, attribute.end)
            ):
                raise ContractError("a model with subgraphs cannot be cut down to some of its outputs")
        needed.update(name for name in _texts(data, part, _NODE_INPUT) if name)  # one left out is called ""
        kept.append(part)
    keep = set(kept)
    return [
        part
        for part in parts
        if part in keep
        or part.number not in (_NODE, _OUTPUT, _TENSOR)
        or (part.number == _OUTPUT and not wanted.isdisjoint(_texts(data, part, _VALUE_NAME)))
        or (part.number == _TENSOR and not needed.isdisjoint(_texts(data, part, _TENSOR_NAME)))
    ]


def _texts(data: bytes, message: Field, number: int) -> list[bytes]:
    """The values of one text field of a message."""
    return [data[f.at : f.end] for f in fields(data, message.at, message.end) if (f.number, f.wire) == (number, BYTES)]
