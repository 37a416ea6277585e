"""An event loop on a thread of its own, for callers who have none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for other threads. The thread ends with `close`, or with whoever holds this object."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name=name, daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        self._finalizer.atexit = False  # the thread is a daemon

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Begin `work`. Raises RuntimeError after `close`, and in a forked process, which has no such thread."""
        problem = None
        if not self._finalizer.alive:
            problem = "it has been closed"
        elif os.getpid() != self._process:
            problem = "it was made before this process was forked: make one in each process"
        elif threading.current_thread() is self._thread:
            problem = "it was called from its own event loop"
        if problem is not None:
            work.close()
            raise RuntimeError(problem)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, or what it raises. Whoever is interrupted meanwhile cancels it."""
        future = self.start(work)
        try:
            return future.result()
        finally:
            future.cancel()

    @property
    def closed(self) -> bool:
        """Nothing can be started any more."""
        return not self._finalizer.alive

    def close(self) -> None:
        """End the thread, and what still runs on it."""
        if self._finalizer.alive:
            self._finalizer()
            if os.getpid() == self._process:
                self._thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
