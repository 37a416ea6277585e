"""What a test needs, as marks that cannot drift: a test that starts a program without saying so fails.

    process   starts processes of ours: a server, a command, a worker, a fork
    real      needs a real program that is not ours, or builds a wheel or an image; `requires` adds it
    slow      takes more than two seconds on two cores

A fixture that starts a process asks for the fixture `process`, and every test that uses it has the mark.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requires import Missing

STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}  # events that Python tells audit hooks
TOOLS = {"git", "openssl"}  # they answer at once, and nothing of theirs stays behind

_unmarked: list[pytest.Item] = []  # the test that runs, where it may start nothing


@pytest.fixture(scope="session")
def process() -> None:
    """Asked for by fixtures that start a process of ours."""


def pytest_itemcollected(item: pytest.Item) -> None:
    if "process" in getattr(item, "fixturenames", ()):
        item.add_marker("process")
    if any(isinstance(argument, Missing) for mark in item.iter_markers("skipif") for argument in mark.args):
        item.add_marker("real")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not (item.get_closest_marker("process") or item.get_closest_marker("real")):
        _unmarked.append(item)
    try:
        return (yield)
    finally:
        _unmarked.clear()


def _started(event: str, arguments: tuple[object, ...]) -> None:
    if event in STARTS and _unmarked:
        program = Path(str(arguments[0])).name if arguments else "a copy of itself"
        if program not in TOOLS:
            raise RuntimeError(f"{_unmarked[0].nodeid} starts {program}: it needs the mark 'process' (tests/marks.py)")


sys.addaudithook(_started)
