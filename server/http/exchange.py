"""Reads the body of one HTTP request, sends its response, and notices a client that disconnects in between."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType

from starlette.types import Message, Receive, Send

from ..errors import BodyTooLarge
from ..monitoring.request import ObservedRequest
from .caching import NO_STORE

INLINE_BYTES = 1 << 20  # a larger body is put together on another thread than the event loop's
DISCONNECT_CHECK_SECONDS = 0.05  # a request that takes twice as long is given up once its client has gone


class ClientGoneError(Exception):
    """The client has disconnected."""


class DisconnectWatcher:
    """Starts listening for disconnects of clients whose requests have run for a while: listening costs a task each.

    One timer checks all requests, because a timer for each would cost more than the rest of this.
    """

    def __init__(self) -> None:
        self._new: dict[Exchange, None] = {}
        self._old: dict[Exchange, None] = {}
        self._armed = False

    def begin(self, exchange: Exchange) -> None:
        self._new[exchange] = None
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_later(DISCONNECT_CHECK_SECONDS, self._look)

    def end(self, exchange: Exchange) -> None:
        if self._new.pop(exchange, self) is self:
            self._old.pop(exchange, None)

    def _look(self) -> None:
        for exchange in self._old:
            exchange.listen()
        self._old, self._new = self._new, {}
        self._armed = bool(self._old)
        if self._armed:
            asyncio.get_running_loop().call_later(DISCONNECT_CHECK_SECONDS, self._look)


class Exchange:
    """One request's body and response; the response to HEAD has the headers of the one to GET and no body.

    Args:
        request: gets the status once the response has begun.
        watcher: starts listening for disconnects.
        headers: of the request, names in lower case.
        head: the method is HEAD.
        close: close the connection after the response.

    Once the body has been read, `with exchange:` cancels what it awaits if the client disconnects, and then raises
    ClientGoneError.
    """

    __slots__ = (
        "_close",
        "_gone",
        "_head",
        "_listening",
        "_request",
        "_request_id",
        "_send",
        "_task",
        "_unread",
        "_watcher",
        "receive",
    )

    def __init__(
        self,
        receive: Receive,
        send: Send,
        request: ObservedRequest,
        watcher: DisconnectWatcher,
        headers: Mapping[bytes, bytes],
        *,
        head: bool,
        close: bool,
    ) -> None:
        self.receive = receive
        self._send = send
        self._request = request
        self._request_id = request.id.encode()
        self._watcher = watcher
        self._close = close
        self._head = head
        self._unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        self._listening: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._watcher.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.end(self)
        listening, self._listening = self._listening, None  # or both would wait for a collection of garbage
        if listening is not None:
            listening.cancel()
            if self._gone and kind is asyncio.CancelledError and self._task is not None and self._task.uncancel() == 0:
                raise ClientGoneError from None

    def listen(self) -> None:
        """Wait for the client to hang up."""
        self._listening = asyncio.create_task(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    async def read(self, declared: bytes | None, limit: int) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge: before reading where that is known.
            ClientGoneError: it left before it had sent all of it.
        """
        if declared is not None and int(declared) > limit:
            raise _too_large(limit)
        message = await self.receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            chunks, size = [body], len(body)
            while message.get("more_body"):
                if size > limit:
                    raise _too_large(limit)
                message = await self.receive()
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
            body = b"".join(chunks) if size < INLINE_BYTES else await asyncio.to_thread(b"".join, chunks)
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._unread = False
        if len(body) > limit:
            raise _too_large(limit)
        return body

    async def respond(self, status: int, extra: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer, the last one of the connection where the request's body was not read."""
        headers, given = [(b"x-request-id", self._request_id), *extra], dict(extra)
        if b"cache-control" not in given:
            headers.append((b"cache-control", NO_STORE))
        if b"content-length" not in given and status != 304:
            headers.append((b"content-length", b"%d" % len(body)))
        if self._close or self._unread:
            headers.append((b"connection", b"close"))
        self._request.answered(status)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": b"" if self._head else body})

    async def forward(self, message: Message) -> None:
        """`send` for the other routes, with the request id added."""
        if message["type"] == "http.response.start":
            self._request.answered(message["status"])
            given = message.get("headers", [])
            extra = [(b"x-request-id", self._request_id)]
            if all(name != b"cache-control" for name, _ in given):
                extra.append((b"cache-control", NO_STORE))
            if self._close:
                extra.append((b"connection", b"close"))
            message["headers"] = [*given, *extra]
        elif self._head:
            message["body"] = b""
        await self._send(message)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes")
