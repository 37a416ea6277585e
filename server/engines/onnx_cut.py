"""A serialised ONNX model cut down to some of its outputs.

ONNX Runtime computes every node of a model, also those that lead to no output that was asked for (and an inference
build ignores the run option for it): what a mode does not need must not be in the model that its session got.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from ..errors import ContractError
from .onnx_wire import BYTES, Field, fields, head

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
    """The model `data` with these outputs alone; see `Cutter`, which reads a model once for several cuts."""
    return Cutter(data).cut(outputs)


class Cutter:
    """Cuts one model down to some of its outputs, and to others: it is read once.

    Raises:
        ContractError: the bytes are not well-formed protobuf.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._graph = _graph(data)
        self._parts = [_part(data, field) for field in fields(data, self._graph.at, self._graph.end)]

    def cut(self, outputs: Collection[str]) -> bytes:
        """The model with these outputs alone, and no node or constant that none of them needs.

        Everything else, the metadata for one, stays byte for byte as it is; the model itself comes back where nothing
        goes.

        Raises:
            ContractError: there is no such output, or a node that stays has a subgraph (what that uses is not
                followed).
        """
        kept = self._needed({name.encode() for name in outputs})
        if len(kept) == len(self._parts):
            return self._data
        # Copied once: a model has megabytes, and whoever copies them holds the interpreter.
        data, graph = memoryview(self._data), self._graph
        begin = head(_GRAPH, sum(part.end - part.begin for part in kept))
        pieces = (data[part.begin : part.end] for part in kept)
        return b"".join([data[: graph.begin], begin, *pieces, data[graph.end :]])

    def _needed(self, wanted: set[bytes]) -> list[_Part]:
        """The parts without those that lead to no output `wanted`."""
        found = {name for part in self._parts if part.number == _OUTPUT for name in part.made}
        if not wanted <= found:
            missing = ", ".join(sorted(name.decode() for name in wanted - found))
            raise ContractError(f"the model has no output {missing}")
        needed, kept = set(wanted), set()
        # Nodes are sorted: whoever makes a value stands before whoever takes it. Constants may stand anywhere.
        for part in reversed(self._parts):
            if part.number != _NODE or needed.isdisjoint(part.made):
                continue
            if part.nested:
                raise ContractError("a model with subgraphs cannot be cut down to some of its outputs")
            needed.update(name for name in part.taken if name)  # one left out is called ""
            kept.add(part)
        names: dict[int, set[bytes]] = {_OUTPUT: wanted, _TENSOR: needed}
        return [
            part
            for part in self._parts
            if part in kept
            or part.number not in (_NODE, _OUTPUT, _TENSOR)
            or (part.number in names and not names[part.number].isdisjoint(part.made))
        ]


class _Part(NamedTuple):
    """One field of a graph: bytes [begin, end) of the model; names of the values that it makes and takes, and whether
    it has a graph inside.
    """

    number: int
    begin: int
    end: int
    made: tuple[bytes, ...] = ()
    taken: tuple[bytes, ...] = ()
    nested: bool = False


def _part(data: bytes, field: Field) -> _Part:
    place = field.number, field.begin, field.end
    if field.wire != BYTES or field.number not in (_NODE, _TENSOR, _OUTPUT):
        return _Part(*place)
    if field.number != _NODE:
        name = _TENSOR_NAME if field.number == _TENSOR else _VALUE_NAME
        return _Part(*place, tuple(_texts(data, field, name)))
    made, taken, nested = [], [], False
    for inner in fields(data, field.at, field.end):
        if inner.wire != BYTES:
            continue
        if inner.number == _NODE_OUTPUT:
            made.append(data[inner.at : inner.end])
        elif inner.number == _NODE_INPUT:
            taken.append(data[inner.at : inner.end])
        elif inner.number == _ATTRIBUTE and not nested:
            nested = any(part.number in _SUBGRAPHS for part in fields(data, inner.at, inner.end))
    return _Part(*place, tuple(made), tuple(taken), nested)


def _graph(data: bytes) -> Field:
    graphs = [field for field in fields(data, 0, len(data)) if (field.number, field.wire) == (_GRAPH, BYTES)]
    if len(graphs) != 1:
        raise ContractError(f"the model has {len(graphs)} graphs")
    return graphs[0]


def _texts(data: bytes, message: Field, number: int) -> list[bytes]:
    """The values of one text field of a message."""
    return [data[f.at : f.end] for f in fields(data, message.at, message.end) if (f.number, f.wire) == (number, BYTES)]
