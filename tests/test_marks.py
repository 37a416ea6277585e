"""Marks say what a test needs, and a test that needs more than it says fails."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests.requires import requires


def test_a_program_that_is_started_without_a_mark_fails_the_test() -> None:
    """However it is started; git may be asked."""
    command = [sys.executable, "-c", ""]
    with pytest.raises(RuntimeError, match=r"test_a_program_that_is_started.* needs the mark 'process'"):
        subprocess.run(command)
    with pytest.raises(RuntimeError, match="needs the mark"):
        asyncio.run(asyncio.create_subprocess_exec(*command))
    subprocess.run(["git", "--version"], check=True, capture_output=True)


@pytest.mark.process
def test_with_the_mark_it_may() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def test_who_uses_what_starts_a_process_has_the_mark(request: pytest.FixtureRequest, process: None) -> None:
    """Through any number of fixtures."""
    assert request.node.get_closest_marker("process")


@requires("haproxy")
def test_who_requires_a_program_has_the_mark(request: pytest.FixtureRequest) -> None:
    """It need not be written twice."""
    assert request.node.get_closest_marker("real")
