"""Fixtures of the server's tests; what they are made of is in `tiny`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
