"""The query strings of /predict and /model; whatever is unknown or given twice is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args
from urllib.parse import parse_qsl

from ..core.engine import PRIORITIES, Priority
from ..core.version import WHAT, parse_version
from ..errors import InvalidQuery, UnknownModel

SignalsLevel = Literal["none", "summary", "all"]
DEFAULT_TOP_K = 5
MAX_QUERY_BYTES = 1024
_Word = TypeVar("_Word", bound=str)


@dataclass(frozen=True, slots=True)
class Query:
    """The parsed query of a /predict request.

    Attributes:
        top_k: how many classes to name; None is five, or all where there are fewer.
        signals: how much of omega to add.
        model, version: which one is to answer; None is the default model and its serving version.
        timeout_seconds: how long the client will wait; None is as long as the server allows.
        priority: see `engine.Terms`.
        mode: the operating mode, of which the model has to say whether it has it; None is the server's default.
    """

    top_k: int | None = None
    signals: SignalsLevel = "none"
    model: str | None = None
    version: int | None = None
    timeout_seconds: float | None = None
    priority: Priority = "normal"
    mode: str | None = None

    def classes(self, known: int) -> int:
        """How many of `known` classes to name. Raises InvalidQuery."""
        if self.top_k is None:
            return min(DEFAULT_TOP_K, known)
        if self.top_k > known:
            raise InvalidQuery(f"top_k must be a number from 1 to {known}, not {self.top_k}")
        return self.top_k


NOTHING_ASKED = Query()
MODEL_PARAMETERS = ("name", "version")
PARAMETERS = ("top_k", "signals", "model", "version", "mode", "timeout_ms", "priority")


def parse_query(raw: bytes) -> Query:
    """The query string of /predict.

    Raises:
        InvalidQuery: unknown names, repeated names and unknown values.
        UnknownModel: a version that is none.
    """
    if not raw:
        return NOTHING_ASKED
    given = _parameters(raw, PARAMETERS)
    milliseconds = _count(given, "timeout_ms")
    return Query(
        top_k=_count(given, "top_k"),
        signals=_one_of(given, "signals", get_args(SignalsLevel), "none"),
        model=given.get("model"),
        version=_version(given.get("version", "latest")),
        timeout_seconds=None if milliseconds is None else milliseconds / 1000,
        priority=_one_of(given, "priority", PRIORITIES, "normal"),
        mode=given.get("mode"),
    )


def parse_model_query(raw: bytes) -> tuple[str | None, int | None]:
    """The query string of /model: name and version; None is the default model and its serving version.

    Raises:
        InvalidQuery: unknown and repeated names.
        UnknownModel: a version that is none.
    """
    given = _parameters(raw, MODEL_PARAMETERS)
    return given.get("name"), _version(given.get("version", "latest"))


def _parameters(raw: bytes, known: Sequence[str]) -> dict[str, str]:
    if len(raw) > MAX_QUERY_BYTES:
        raise InvalidQuery(f"the query is longer than {MAX_QUERY_BYTES} bytes")
    given: dict[str, str] = {}
    for name, value in parse_qsl(raw.decode("latin-1"), keep_blank_values=True):
        if name not in known:
            raise InvalidQuery(f"unknown query parameter {name[:40]!r}; there are {', '.join(known)}")
        if name in given:
            raise InvalidQuery(f"the query parameter {name!r} is given twice")
        given[name] = value
    return given


def _count(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise InvalidQuery(f"{name} must be a number from 1 on, not {text[:40]!r}")
    return int(text)


def _version(text: str) -> int | None:
    if text == "latest":
        return None
    version = parse_version(text)
    if version is None:
        raise UnknownModel(f"there is no version {text[:40]!r}: {WHAT}, or 'latest'")
    return version


def _one_of(given: Mapping[str, str], name: str, known: Sequence[_Word], default: _Word) -> _Word:
    text = given.get(name, default)
    for word in known:
        if text == word:
            return word
    raise InvalidQuery(f"{name} must be one of {', '.join(known)}, not {text[:40]!r}")
