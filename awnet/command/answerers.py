"""Who answers a command: a model in this process, or the server behind a URL."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from server.settings.options import SettingsError, settings_of
from server.settings.settings import Settings

from ..client.local import opened
from ..client.over_http import AsyncClient, address, on_this_machine
from ..client.predictor import AsyncPredictor, Options
from ..client.retries import Retries

Open = Callable[[], Awaitable[AsyncPredictor]]

TIMEOUT_SECONDS = 60.0  # of an image, all attempts counted
PATIENCE = Retries(attempts=6, first_seconds=0.2, longest_seconds=10.0, budget=50.0)  # nobody waits at a screen
TO_A_SERVER = ("model", "version", "mode")  # settings that a running server is asked for, too


def answerer(given: argparse.Namespace, retries: Retries | None = None, **options: Any) -> Open:
    """Opens who answers, on the event loop of whoever calls it; that raises StartError.

    Args:
        given: of a parser with `add_server` and `add_settings`.
        retries: of a server; PATIENCE where None.
        options: of `client.predictor.Options`, for every request.

    Raises:
        ValueError: the options cannot be used; nothing is connected yet.
    """
    settings = {name: value for name, value in vars(given).items() if name in Settings.model_fields}
    if given.url is None:
        if given.key is not None:
            raise SettingsError("--key is for the server of --url")
        here = settings_of(settings)
        return lambda: opened(here, Options(**options))
    if others := sorted(settings.keys() - {*TO_A_SERVER}):
        raise SettingsError(f"--{others[0].replace('_', '-')} is a setting of the server, which runs at --url already")
    key = _key(given.key)
    client = AsyncClient(
        given.url, key=key, timeout=TIMEOUT_SECONDS, retries=retries or PATIENCE, **settings, **options
    )
    if key is not None and in_the_open(given.url):
        print(f"warning: the key goes to {given.url} unencrypted", file=sys.stderr)

    async def connected() -> AsyncPredictor:
        return client

    return connected


def in_the_open(url: str) -> bool:
    """Whether others on the network can read what is sent there. Raises ValueError where it is no address."""
    parsed = address(url)
    return parsed.scheme != "https" and not on_this_machine(parsed)


def _key(given: str | None) -> str | None:
    if given is None or not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--key {given}: {getattr(error, 'strerror', None) or 'no API key'}") from None
