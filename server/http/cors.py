"""Which web pages may read answers: cross-origin resource sharing, as the Fetch standard has it.

Keys travel in headers that a script sets itself, never in cookies, so credentials are never allowed, and '*' gives a
page no more than any program outside a browser has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.types import Message, Send

METHODS = b"GET, HEAD, POST"
ACCEPTED = b"authorization, content-type, inference-header-content-length, x-api-key, x-request-id"
EXPOSED = b"inference-header-content-length, retry-after, server-timing, x-request-id"
MAX_AGE_SECONDS = b"600"

Headers = list[tuple[bytes, bytes]]


class Cors:
    """The pages of these origins may read answers.

    Args:
        origins: scheme, host and port as browsers write them; or '*' alone.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._all = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def preflight(self, method: str, headers: Mapping[bytes, bytes]) -> Headers | None:
        """What a browser is told that asks for leave to send a request; None where nothing of the kind is asked."""
        asks = method == "OPTIONS" and b"access-control-request-method" in headers
        if not asks or not self._allows(headers.get(b"origin")):
            return None
        return [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", ACCEPTED),
            (b"access-control-max-age", MAX_AGE_SECONDS),
        ]

    def sending(self, send: Send, origin: bytes | None) -> Send:
        """`send`, with what lets a page of `origin` read the answer, errors included."""
        extra: Headers = [] if self._all else [(b"vary", b"origin")]
        if origin is not None and self._allows(origin):
            allowed = b"*" if self._all else origin
            extra += [(b"access-control-allow-origin", allowed), (b"access-control-expose-headers", EXPOSED)]

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        return sent

    def _allows(self, origin: bytes | None) -> bool:
        return origin is not None and (self._all or origin in self._origins)
