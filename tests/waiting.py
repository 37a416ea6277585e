"""Waiting for a state, not for a time: every test that has to wait does it here.

On a slow machine a wait is longer and nothing else; a state that never comes fails the test at the line that waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 180.0  # for whatever a busy, slow machine may have to do first


def eventually(state: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """The first true value of `state`, which other threads or processes bring about."""
    deadline, pause = time.monotonic() + seconds, 0.001
    while not (found := state()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return found


async def until(state: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """The first true value of `state`, which other tasks and threads of this process bring about."""
    deadline = time.monotonic() + seconds
    while not (found := state()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        await asyncio.sleep(0.001)
    return found


async def settle() -> None:
    """Let every task of this loop that can run do so: afterwards, what has not happened waits for something else."""
    for _ in range(20):
        await asyncio.sleep(0)
