"""Restarts under load behind the real haproxy. `python -m benchmarks.faults rolling` does the same fifty times."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.scenarios import Bench, kill, rolling
from tests.requires import requires


def misses(goals: list[tuple[str, str, bool]]) -> list[str]:
    return [f"{goal}: {measured}" for goal, measured, met in goals if not met]


@requires("haproxy")
def test_rolling_restarts_of_two_front_ends_fail_no_request(repository: Path, tmp_path: Path) -> None:
    """Callers with kept and with new connections; every answer is right, every exit is clean and in time."""
    result = asyncio.run(rolling(Bench(tmp_path, repository, restarts=4)))
    assert misses(result.goals) == []
    assert result.figures["requests"] > 50


@requires("haproxy")
def test_a_killed_front_end_costs_at_most_what_it_had_in_flight(repository: Path, tmp_path: Path) -> None:
    """The other one takes over; how soon it is back is a matter of the machine, and is measured elsewhere."""
    result = asyncio.run(kill(Bench(tmp_path, repository, kills=2)))
    assert [miss for miss in misses(result.goals) if not miss.startswith("back in")] == []
