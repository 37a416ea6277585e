"""Entity tags: who has an answer already is told so, and not the answer again (RFC 9110, 8.8.3 and 13.1.2)."""

from __future__ import annotations

import hashlib

REVALIDATE, NO_STORE = b"no-cache", b"no-store"


def tag_of(body: bytes) -> bytes:
    """The strong entity tag of a body."""
    return f'"{hashlib.sha256(body).hexdigest()[:24]}"'.encode()


def matches(header: bytes, tag: bytes) -> bool:
    """Whether an `If-None-Match` names the tag, by weak comparison."""
    return any(given.strip().removeprefix(b"W/") in (tag, b"*") for given in header.split(b","))
