"""How many calls of gRPC are open at a time, and how much their messages hold."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from ..errors import NoMessage, RequestTimeout, TooManyCalls


class Calls:
    """Those that are open, and what their messages hold; three quarters of either at most are one client's.

    Calls are counted before their messages are read. How long a message is nobody knows until it is there: so it is
    read once there is room for the longest, and holds its own length until its answer is out. A message that is not
    read stays with the client but for 64 KiB.

    Args:
        most: calls at a time; more are refused.
        held_bytes: of messages.
        message_bytes: the longest message.
    """

    def __init__(self, most: int, held_bytes: int, message_bytes: int) -> None:
        self._most = most
        self._room = max(1, held_bytes // message_bytes) * message_bytes
        self._longest = message_bytes
        self._open: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._changed = asyncio.Event()

    def beside(self) -> Calls:
        """As many calls once more, which hold no messages: for those that stay open."""
        return Calls(self._most, self._longest, self._longest)

    @contextmanager
    def one(self, client: str) -> Iterator[None]:
        """A call of `client`. Raises TooManyCalls."""
        if self._open.total() >= self._most or self._open[client] >= _share(self._most):
            raise TooManyCalls("as many calls are open as are allowed")
        self._add(self._open, client, 1)
        try:
            yield
        finally:
            self._add(self._open, client, -1)

    @asynccontextmanager
    async def message(self, client: str, context: Any, seconds: float) -> AsyncIterator[bytes]:
        """The message of a call, and its room. Raises RequestTimeout, or NoMessage where there is none."""
        held = 0
        try:
            async with asyncio.timeout(seconds):
                while self._held.total() + self._longest > self._room or self._held[client] + self._longest > max(
                    self._longest, _share(self._room)
                ):
                    self._changed.clear()
                    await self._changed.wait()
                held = self._longest
                self._add(self._held, client, held)
                message = await context.read()  # not the iterator of messages, which would keep it
            if not isinstance(message, bytes):  # grpc.aio.EOF
                raise NoMessage("there is no message")
            self._add(self._held, client, len(message) - held)
            held = len(message)
            yield message
        except TimeoutError:
            raise RequestTimeout("the message came too slowly, or there was no room for it") from None
        finally:
            self._add(self._held, client, -held)

    def _add(self, counter: Counter[str], client: str, count: int) -> None:
        counter[client] += count
        if not counter[client]:
            del counter[client]
        if count < 0:
            self._changed.set()


def _share(of: int) -> int:
    """What one client may have at most."""
    return max(1, 3 * of // 4)
