"""One Ray of this machine for the whole room: `python -m awnet.ray`, with two replicas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.harness.ray import RayServe
from tests.server.recorded_answers import SETTINGS


@pytest.fixture(scope="session")
def on_ray(tmp_path_factory: pytest.TempPathFactory, process: None) -> Iterator[RayServe]:
    """Two replicas with the settings of the recorded answers; their metrics are on ports of their own."""
    folder = tmp_path_factory.mktemp("ray")
    with RayServe(folder, **SETTINGS) as server:
        server.wait_ready()
        yield server
