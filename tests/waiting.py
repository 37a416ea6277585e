"""Waiting for a state, not for a time: every test that has to wait does it here.

On a slow machine a wait is longer and nothing else; a state that never comes fails the test at the line that waits.
"""

from __future__ import annotations

import asyncio

from benchmarks.harness.waiting import PATIENCE_SECONDS, eventually, until

__all__ = ["PATIENCE_SECONDS", "eventually", "settle", "until"]


async def settle() -> None:
    """Let every task of this loop that can run do so: afterwards, what has not happened waits for something else."""
    for _ in range(20):
        await asyncio.sleep(0)
