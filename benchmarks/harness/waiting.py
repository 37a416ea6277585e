"""Waiting for a state that others bring about, on the clock of threads and on that of an event loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 180.0  # for whatever a busy, slow machine may have to do first


def eventually(state: Callable[[], T], seconds: float = PATIENCE_SECONDS, what: str = "") -> T:
    """The first true value of `state`, which other threads or processes bring about; TimeoutError if there is none."""
    deadline, pause = time.monotonic() + seconds, 0.001
    while not (found := state()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return found


async def until(state: Callable[[], Any], seconds: float = PATIENCE_SECONDS, pause_seconds: float = 0.001) -> Any:
    """The same where other tasks of this loop bring it about too; `state` may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        found = state()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s")
        await asyncio.sleep(pause_seconds)
