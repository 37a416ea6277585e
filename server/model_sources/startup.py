"""What a server does about its model source before it opens anything: the version is there, and it is that one."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..core.model_source import parse_model_source
from ..settings.settings import Settings
from .pull import Pull, Pulled, pull

T = TypeVar("T")

log = logging.getLogger("awnet")


def run(work: Coroutine[Any, Any, T], *signals: signal.Signals) -> T:
    """`asyncio.run`, whose work these signals cancel, so that what was begun is removed. Raises CancelledError then."""

    async def cancelled_by_signals() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for sent in signals:
            loop.add_signal_handler(sent, task.cancel)
        return await work

    return asyncio.run(cancelled_by_signals())


def _log(line: str) -> None:
    log.info("model source: %s", line)


async def fetch(settings: Settings, say: Callable[[str], None] = _log) -> Settings:
    """The settings with the version that their model source names, which is in the repository now.

    A version that `AWNET_VERSION` names is the number that it gets. Nothing is asked of the network where a version
    with the pinned digest is there already. `say` is told what takes long. Raises SourceError.
    """
    if not settings.model_source:
        return settings
    found = await pull(task_of(settings, say))
    log.info("model source: %s, %s", summary(found), found.source)
    return settings.model_copy(update={"version": str(found.version)})


def task_of(settings: Settings, say: Callable[[str], None] = _log) -> Pull:
    """What the settings ask to be fetched."""
    return Pull(
        parse_model_source(settings.model_source),
        settings.repository,
        settings.model,
        settings.pinned,
        settings.signing_key,
        settings.model_source_seconds,
        say=say,
    )


def summary(found: Pulled) -> str:
    """What came of it."""
    return f"version {found.version} of {found.folder.parent.name} {'was fetched' if found.new else 'is there already'}"
