"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Torch's threads: test processes and what they start share the cores, and tiny networks gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.marks", "tests.reaper"]


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs warn of variables that are no settings, as those are that name the suite's own data."""
    for name in [name for name in os.environ if name.startswith("AWNET_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated AW-Net of width 4 as `best.pt`."""
    pytest.importorskip("torch")
    from tests.tiny_awnet import write_checkpoint
    from training.networks.awnet import AWNetConfig

    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "best.pt", AWNetConfig(width=4, beta=4.0))


@pytest.fixture
def begun() -> Callable[[], set[threading.Thread]]:
    """Threads that were begun in this test and are there; those of tests before it may end at any time."""
    before = set(threading.enumerate())
    return lambda: set(threading.enumerate()) - before


@pytest.fixture
def foreground() -> Iterator[None]:
    """Ctrl-C interrupts, as it does in a terminal: a suite that runs in the background was told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
