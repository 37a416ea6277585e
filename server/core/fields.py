"""Typed values out of parsed JSON: each function returns the value it names, or raises ContractError with its place."""

from __future__ import annotations

import base64
import binascii
import math
import sys
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import ContractError

ROUNDING = 1e-9  # of the arithmetic that an interval and its value came from


def refuse(where: str, why: str) -> NoReturn:
    """Raise ContractError."""
    raise ContractError(f"contract: {where} {why}")


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        refuse(where, "is missing" if value is None else "is not an object")
    return value


def sequence(part: dict[str, Any], key: str, where: str = "") -> list[Any]:
    """The list under `key`."""
    value = part.get(key)
    if not isinstance(value, list):
        refuse(f"{where}.{key}" if where else key, "is missing" if value is None else "is not a list")
    return value


def text(value: Any, where: str) -> str:
    """A text that is not empty and can be written as UTF-8, so that it can be answered."""
    if not isinstance(value, str) or not value or any("\ud800" <= character <= "\udfff" for character in value):
        refuse(where, "is not a text")
    return value


def finite(value: Any, where: str) -> float:
    """A number that a float can hold, not a truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        refuse(where, f"is {value!r:.60}, not a number")
    return value


def number(part: dict[str, Any], key: str, where: str) -> float:
    """The finite number under `key`."""
    return float(finite(part.get(key), f"{where}.{key}"))


def interval(low: float, value: float, high: float, where: str) -> None:
    """Refuse an interval that leaves its value out by more than rounding does."""
    if not low - ROUNDING <= value <= high + ROUNDING:
        refuse(where, "has its value outside its interval")


def share(value: Any, where: str) -> float:
    """A finite number from 0 to 1."""
    found = float(finite(value, where))
    if not 0 <= found <= 1:
        refuse(where, f"is {found!r}, not from 0 to 1")
    return found


def integer(part: dict[str, Any], key: str, where: str, *, least: int) -> int:
    """The integer under `key`, at least `least`."""
    value = part.get(key)
    if type(value) is not int or value < least:
        refuse(f"{where}.{key}", f"is {value!r}, not an integer of at least {least}")
    return value


def tensor(raw: Any, where: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any]:
    """The array of a TENSOR object; `shape` may leave dimensions open with None."""
    part = mapping(raw, where)
    if part.get("dtype") != np.dtype(dtype).name:
        refuse(where, f"has dtype {part.get('dtype')!r}, expected {np.dtype(dtype).name!r}")
    given = part.get("shape")
    if (
        not isinstance(given, list)
        or len(given) != len(shape)
        or any(
            type(n) is not int or n < 0 or (want is not None and n != want)
            for n, want in zip(given, shape, strict=True)
        )
    ):
        refuse(where, f"has shape {given!r}, expected {list(shape)!r}")
    try:
        data = base64.b64decode(text(part.get("base64"), where), validate=True)
    except binascii.Error:
        refuse(where, "is not base64")
    if len(data) != math.prod(given) * np.dtype(dtype).itemsize:
        refuse(where, "has another number of bytes than its shape")
    array = np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(given)
    if not np.isfinite(array).all():
        refuse(where, "holds values that are not finite")
    return array
