"""Tensors as the Open Inference Protocol carries them: JSON data, or raw bytes (row-major, little-endian).

Nothing here allocates by what a client claims: shapes are checked against what the model takes before `pixels` or
`elements` look at the data, and data of another length than its shape is refused before it is copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidTensor

Values = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.bool_] | list[bytes]  # of an output
Scalar = bool | int | float | str  # what a `parameters` object of the protocol may hold
LENGTH_BYTES = 4  # of one element of a BYTES tensor, before its bytes
MAX_QUOTE = 40  # of a client's own text in an error message


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input as it arrived; nothing about it has been checked.

    Attributes:
        data: raw bytes, or values: flat or nested lists from JSON, a flat sequence from gRPC.
        parameters: of this tensor.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview | Sequence[Any]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Output:
    """One output: `values` is FP32, FP64 or BOOL as an array, BYTES as a flat list."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Values

    def raw(self) -> bytes:
        """Row-major, little-endian; an element of BYTES has its length before it, 4 bytes."""
        if isinstance(self.values, list):
            return b"".join(
                part for value in self.values for part in (len(value).to_bytes(LENGTH_BYTES, "little"), value)
            )
        return self.values.astype(self.values.dtype.newbyteorder("<"), copy=False).tobytes()

    def listed(self) -> list[Any]:
        """For JSON: flat, row-major. An FP32 value becomes the double of the same value, so nothing is rounded."""
        if isinstance(self.values, list):
            return [value.decode() for value in self.values]
        flat: list[Any] = self.values.ravel().tolist()
        return flat


def quoted(text: object) -> str:
    """A client's own text, fit for an error message: short, with what is unprintable escaped."""
    escaped = ascii(str(text)[: MAX_QUOTE + 1])
    return escaped if len(escaped) <= MAX_QUOTE + 2 else escaped[: MAX_QUOTE + 1] + "..." + escaped[0]


def pixels(tensor: Tensor) -> NDArray[np.uint8]:
    """The values of a UINT8 tensor, in its shape; read-only.

    Raises:
        InvalidTensor: another number of values than the shape says, or one that is no integer from 0 to 255.
    """
    count = math.prod(tensor.shape)
    data = tensor.data
    if not isinstance(data, bytes | memoryview):
        values = flat(tensor.name, data, tensor.shape)
        if set(map(type, values)) - {int}:
            raise InvalidTensor(f"input {quoted(tensor.name)}: UINT8 data must be integers")
        try:
            data = bytes(values)
        except ValueError:
            raise InvalidTensor(f"input {quoted(tensor.name)}: UINT8 data must be integers from 0 to 255") from None
    if len(data) != count:
        raise InvalidTensor(
            f"input {quoted(tensor.name)}: {len(data)} bytes of data, but shape {list(tensor.shape)} needs {count}"
        )
    return np.frombuffer(data, np.uint8).reshape(tensor.shape)


def elements(tensor: Tensor) -> list[bytes | str]:
    """The elements of a BYTES tensor, flat: bytes, or text where they came as JSON.

    Raises:
        InvalidTensor: another number of elements than the shape says, cut, or neither text nor bytes.
    """
    data, count = tensor.data, math.prod(tensor.shape)
    if not isinstance(data, bytes | memoryview):
        values = flat(tensor.name, data, tensor.shape)
        if set(map(type, values)) - {str, bytes}:
            raise InvalidTensor(f"input {quoted(tensor.name)}: BYTES data must be strings")
        return list(values)
    found: list[bytes | str] = []
    at, end = 0, len(data)
    while at < end:
        first = at + LENGTH_BYTES
        at = first + int.from_bytes(data[at:first], "little")
        if at > end or first > end:
            raise InvalidTensor(f"input {quoted(tensor.name)}: the data ends inside element {len(found)}")
        found.append(bytes(data[first:at]))
        if len(found) > count:
            break
    if len(found) != count:
        had = f"more than {count}" if len(found) > count else len(found)
        raise InvalidTensor(
            f"input {quoted(tensor.name)}: {had} elements of data, but shape {list(tensor.shape)} needs {count}"
        )
    return found


def flat(name: str, data: Sequence[Any], shape: tuple[int, ...]) -> Sequence[Any]:
    """`data` without its nesting: it may be flat, or nested as deep as `shape` (the protocol allows both).

    Goes level by level and stops at the first that is wrong, so the work is bounded by the shape.

    Raises:
        InvalidTensor: nested in another way, or another number of values than the shape says.
    """
    count = math.prod(shape)
    if len(shape) == 1 or not (data and isinstance(data[0], list)):
        if len(data) != count:
            raise InvalidTensor(
                f"input {quoted(name)}: {len(data)} values of data, but shape {list(shape)} needs {count}"
            )
        return data
    wrong = InvalidTensor(f"input {quoted(name)}: the data is not nested as shape {list(shape)}")
    level = data
    if len(level) != shape[0]:
        raise wrong
    for dimension in shape[1:]:
        if set(map(type, level)) != {list} or set(map(len, level)) != {dimension}:
            raise wrong
        level = list(chain.from_iterable(level))
    return level
