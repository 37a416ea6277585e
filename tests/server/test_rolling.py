"""Restarts under load behind the real haproxy. `python -m benchmarks.faults rolling` does the same fifty times."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.faults.scenarios import Bench, kill, rolling
from tests.requires import requires


def misses(goals: list[tuple[str, str, bool]]) -> list[str]:
    return [f"{goal}: {measured}" for goal, measured, met in goals if not met]


@requires("haproxy")
def test_rolling_restarts_of_two_replicas_fail_no_request(repository: Path, tmp_path: Path) -> None:
    """Clients with kept and with new connections; every answer is right, every exit is clean and in time."""
    result = asyncio.run(rolling(Bench(tmp_path, repository, restarts=4)))
    assert misses(result.goals) == []
    assert result.figures["requests"] > 50


@requires("haproxy")
def test_a_killed_replica_costs_its_clients_one_request_at_most(repository: Path, tmp_path: Path) -> None:
    """The other one takes over; 8 clients never lose more than what each had in flight, and get nothing wrong."""
    result = asyncio.run(kill(Bench(tmp_path, repository, kills=2)))
    assert max(result.figures["errors_of_each_kill"]) <= 8
    assert result.figures["outcomes"].keys() <= {"ok", "502", "IncompleteReadError", "ConnectionResetError"}
