"""Gives up on files that do not answer: a call to a dead network mount returns when the mount does, perhaps never."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from ..core import clock
from ..errors import Unavailable

T = TypeVar("T")


def on_thread(function: Callable[[], T]) -> tuple[asyncio.Future[T], threading.Thread]:
    """Call `function` on a thread of its own that no exit waits for; what comes of it, and the thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function()
        except BaseException as raised:
            error = raised

        def settle() -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(cast(T, result))

        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle)

    thread = threading.Thread(target=work, name="awnet-disk", daemon=True)
    thread.start()
    return future, thread


class Disk:
    """Calls functions that read files, one at a time, each on a thread of its own that no exit waits for.

    Args:
        seconds: after which a call is given up. Its thread goes on waiting, and until it returns no other call begins.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._stuck: threading.Thread | None = None

    async def call(self, function: Callable[..., T], *given: Any) -> T:
        """What `function` gives for these arguments, or raises. Raises Unavailable where it does not return in time."""
        silent = Unavailable(f"the model repository has not answered for {self._seconds:g} s")
        async with self._turn:
            if self._stuck is not None and self._stuck.is_alive():
                raise silent
            self._stuck = None
            future, thread = on_thread(partial(function, *given))
            try:
                return await clock.within(clock.now() + self._seconds, future)
            except TimeoutError:
                self._stuck = thread
                raise silent from None
