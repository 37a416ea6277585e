"""Fixtures of the server's tests; what they are made of is in `tiny`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.cached import Cached
from tests.server.tiny import Running, publish


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with version 1 of the tiny model."""
    return publish(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def served(process: None, repository: Path) -> Iterator[Running]:
    """One server for all tests that only ask it."""
    running = Running(repository, max_body_bytes=1 << 20, max_pixels=4_000_000, max_images=4)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture
def serve_cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cached]]:
    """A service with an answer cache and these settings, that nobody has asked yet."""
    running: list[Cached] = []

    def start(**settings: Any) -> Cached:
        running.append(Cached(tmp_path_factory.mktemp("repository"), **settings))
        running[-1].engine.asked = []
        return running[-1]

    yield start
    for small in running:
        small.close()
