"""Messages between the supervisor and a worker, over a Unix socket."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import Any

from ..errors import AWNetError, LinkLost

log = logging.getLogger("awnet")

ANSWER_SECONDS = 5.0
CALL_SECONDS = 600.0  # an operator's call may open models
SNAPSHOT_EVERY_SECONDS = 1.0  # also the most that a killed worker's counters and detection lose
_LENGTH = 4  # bytes before each message that say how long it is

Handler = Callable[[Any], Awaitable[Any]]


class Link:
    """Requests and notifications over a connected Unix socket; either side may send, several at a time."""

    def __init__(self) -> None:
        self._handlers: Mapping[str, Handler] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self.lost = asyncio.Event()

    async def open(self, connected: socket.socket, handlers: Mapping[str, Handler]) -> None:
        """Take the socket over and listen.

        Args:
            handlers: what answers each kind of question; they are given its body. A handler that raises an AWNetError
                has it raised again where the question came from.
        """
        self._handlers = handlers
        connected.setblocking(False)
        reader, self._writer = await asyncio.open_unix_connection(sock=connected)
        self._begin(self._read(reader))

    async def ask(self, what: str, body: Any = None, seconds: float = ANSWER_SECONDS) -> Any:
        """The other side's answer. Raises LinkLost, or the error that its handler raised."""
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"ask": number, "what": what, "body": body})
            return await asyncio.wait_for(future, seconds)
        except TimeoutError:
            raise LinkLost(f"no answer within {seconds:g} s") from None
        finally:
            del self._asked[number]

    def notify(self, what: str, body: Any = None) -> None:
        """Send a message that needs no answer; nothing happens where the link is lost."""
        with suppress(LinkLost):
            self._send({"what": what, "body": body})

    async def close(self) -> None:
        """Let go of the socket."""
        self.lost.set()
        for task in tuple(self._tasks):
            task.cancel()
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._writer is None or self.lost.is_set():
            raise LinkLost("the other process is gone")
        self._writer.write(packed(message))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
                message = json.loads(await reader.readexactly(length))
                if "what" in message:
                    self._begin(self._answer(message))
                elif (future := self._asked.get(message["answer"])) is not None and not future.done():
                    if "problem" in message:
                        future.set_exception(error_of(*message["problem"]))
                    else:
                        future.set_result(message["body"])
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.lost.set()
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(LinkLost("the other process is gone"))

    async def _answer(self, message: Mapping[str, Any]) -> None:
        try:
            reply: dict[str, Any] = {"body": await self._handlers[message["what"]](message["body"])}
        except AWNetError as error:
            reply = {"problem": [error.slug, error.detail]}
        except Exception:
            log.exception("%s failed", message["what"])
            reply = {"problem": [AWNetError.slug, "something went wrong here; the log has it"]}
        if "ask" in message:
            with suppress(LinkLost):
                self._send({"answer": message["ask"], **reply})

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def packed(message: Mapping[str, Any]) -> bytes:
    """A message as it goes over the link."""
    data = json.dumps(message).encode()
    return len(data).to_bytes(_LENGTH, "big") + data


def received(connected: socket.socket) -> Any:
    """The first message, waited for without an event loop. Raises EOFError."""

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = connected.recv(size - len(data))
            if not part:
                raise EOFError("the supervisor is gone")
            data += part
        return data

    return json.loads(exactly(int.from_bytes(exactly(_LENGTH), "big")))


def error_of(slug: str, detail: str) -> AWNetError:
    """An error that was raised in another process."""
    kinds = [AWNetError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return next(kind for kind in kinds if kind.slug == slug)(detail)
