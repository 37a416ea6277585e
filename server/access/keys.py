"""The file of API keys: hashes of keys, and what each of them lets its holder ask.

A key is 256 random bits. Its plain SHA-256 is what is kept: nobody finds 256 random bits by trying, so that a slow or
salted hash, which protects passwords that people choose, would only make each request dearer. For the same reason a
key of another form is none, whatever the file says (docs/decisions/0022-api-keys.md).

    [keys.shop]
    sha256 = "..."                    # or a list: several keys of one holder, while one replaces another
    scopes = ["predict"]              # of predict, signals, metrics, admin
    answers = "bands"                 # and so on, see `Entry`
    [anonymous]                       # callers without a key; without this table they may nothing
    scopes = ["predict"]
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
    model_validator,
)

from ..core.answers import Answers
from ..core.modes import Mode
from ..core.policy import Policy
from ..core.regular_files import open_regular
from ..errors import StartupError
from .caller import Caller, Rate, Scope

PREFIX = "awnet_"
KEY = re.compile(rb"awnet_[A-Za-z0-9_-]{43}")
NAME = r"[A-Za-z0-9_-]{1,64}"
MAX_FILE_BYTES = 1 << 20
MAX_KEYS = 1000  # each is compared with the key of each request

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]
_SECRET = re.compile(r"awnet_[A-Za-z0-9_-]{43}|[0-9a-fA-F]{64}")


class Allowance(BaseModel):
    """What the file says of callers without a key, and of each key; see `caller.Caller`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scopes: tuple[Scope, ...] = ()
    answers: Answers | None = None
    mode: Mode | None = None
    policy: Policy | None = None
    requests_per_second: float | None = Field(default=None, gt=0, strict=True)
    burst: int | None = Field(default=None, ge=1, le=1_000_000, strict=True)
    queue_share: float | None = Field(default=None, gt=0, le=1, strict=True)

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> Allowance:
        if self.burst is not None and self.requests_per_second is None:
            raise ValueError("'burst' needs 'requests_per_second' beside it")
        return self

    def caller(self, name: str | None, answers: Answers) -> Caller:
        """The caller that is allowed this; `answers` where it does not say."""
        rate = None if self.requests_per_second is None else Rate.of(self.requests_per_second, self.burst)
        return Caller(
            name, frozenset(self.scopes), self.answers or answers, self.mode, self.policy, rate, self.queue_share
        )


class Entry(Allowance):
    """One key.

    Attributes:
        sha256: of the key, in hex; of several keys with one name where one replaces another.
        expires: from this moment on the key is refused; a date is its beginning, UTC.
    """

    sha256: Annotated[
        tuple[Hash, ...],
        Field(min_length=1),
        BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
    ]
    expires: Annotated[datetime, Strict()] | Annotated[date, Strict()] | None = None

    @property
    def expires_at(self) -> float:
        """Seconds since 1970."""
        if self.expires is None:
            return float("inf")
        moment = self.expires
        if not isinstance(moment, datetime):
            moment = datetime(moment.year, moment.month, moment.day)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    anonymous: Allowance = Allowance()
    keys: Mapping[Annotated[str, StringConstraints(pattern=f"^{NAME}$")], Entry] = Field(default_factory=dict)


class _Known(NamedTuple):
    """One key as requests are compared with it."""

    digest: bytes
    expires_at: float
    caller: Caller


@dataclass(frozen=True, slots=True)
class Keys:
    """What one state of the file says.

    Attributes:
        anonymous: a caller without a key.
        entries: by name.
    """

    anonymous: Caller
    entries: Mapping[str, Entry] = field(default_factory=dict)
    _known: tuple[_Known, ...] = ()

    @classmethod
    def parse(cls, text: str, answers: Answers = "exact") -> Keys:
        """What `text` says; `answers` of those that do not say. Raises StartupError, which never quotes a hash."""
        try:
            given = _File.model_validate(tomllib.loads(text))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join("".join(str(part).split()) for part in first["loc"])  # names are whatever the file says
            raise StartupError(_SECRET.sub("...", f"the file of keys: {where}: {first['msg']}")) from None
        except (ValueError, RecursionError) as error:
            raise StartupError(_SECRET.sub("...", f"the file of keys is no TOML: {error}")) from None
        known: list[_Known] = []
        holders: dict[bytes, str] = {}
        for name, entry in given.keys.items():
            if name == "anonymous" or _SECRET.search(name):
                raise StartupError("the file of keys: 'anonymous', a key and a hash are no names of a key")
            for text_hash in entry.sha256:
                digest = bytes.fromhex(text_hash)
                if digest in holders:
                    raise StartupError(f"the file of keys: {holders[digest]} and {name} have the same hash")
                holders[digest] = name
                known.append(_Known(digest, entry.expires_at, entry.caller(name, answers)))
        if len(known) > MAX_KEYS:
            raise StartupError(f"the file of keys holds more than {MAX_KEYS} keys")
        return cls(given.anonymous.caller(None, answers), given.keys, tuple(known))

    def find(self, key: bytes) -> Caller | None:
        """Whose `key` it is; None where it is nobody's, or has expired. The time it takes says nothing of the keys."""
        if not KEY.fullmatch(key):
            return None
        digest, found = sha256(key).digest(), None
        for known in self._known:
            if hmac.compare_digest(known.digest, digest):
                found = known
        return None if found is None or time.time() >= found.expires_at else found.caller


def new_key() -> tuple[str, str]:
    """A key of 256 random bits, and its hash in hex."""
    key = f"{PREFIX}{secrets.token_urlsafe(32)}"
    return key, sha256(key.encode()).hexdigest()


def read_file(path: Path) -> tuple[str, int]:
    """Text and mode of a file of keys. Raises StartupError; a FIFO or a device is refused and not waited for."""
    try:
        with open_regular(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StartupError(f"the file of keys {path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise StartupError(f"the file of keys {path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode(), stat.S_IMODE(mode)
    except UnicodeDecodeError:
        raise StartupError(f"the file of keys {path} is no UTF-8 text") from None
