"""A model to fetch, a web server to fetch it from, and a repository to fetch it into."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.core.model_source import parse_model_source
from server.model_sources import transfer
from server.model_sources.pull import Pull, Pulled, pull
from tests.server.model_sources.static import Static, serving
from tests.server.tiny import publish

Fetch = Callable[..., Pulled]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = publish(tmp_path_factory.mktemp("published"))
    return (folder / "awnet/1/model.onnx").read_bytes()


@pytest.fixture(scope="session")
def digest(model: bytes) -> str:
    return hashlib.sha256(model).hexdigest()


@pytest.fixture
def web() -> Iterator[Static]:
    with serving() as server:
        yield server


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def fetch(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Fetches a source into the repository, with hardly a pause between tries."""
    monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 0.001)

    def run(source: str, **given: Any) -> Pulled:
        task = {"name": "awnet", "seconds": 30.0, **given}
        return asyncio.run(pull(Pull(parse_model_source(source), repository, **task)))

    return run


def files(folder: Path) -> list[str]:
    """Every file below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
