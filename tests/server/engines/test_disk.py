"""Files that do not answer are given up, and the server goes on without them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.harness.dead_mount import dead_mount, possible
from server.engines.disk import Disk
from server.engines.onnxruntime import EmbeddedEngine
from server.engines.repository import Mark, Repository
from server.errors import Unavailable
from tests.server.small import service_over, started
from tests.server.tiny import ROOT, Running, encoded, noise, publish
from tests.waiting import eventually, until

COUNTED = 'awnet_reloads_total{model="awnet",result="unavailable"} 2'
needs_root = pytest.mark.skipif(not possible(), reason="a dead mount needs root and /dev/fuse")


def test_a_call_gives_what_the_function_gives_or_raises() -> None:
    """On another thread than the event loop's."""

    async def go() -> None:
        disk = Disk(60)
        assert await disk.call(threading.get_ident) != threading.get_ident()
        assert await disk.call(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await disk.call(divmod, 7, 0)

    asyncio.run(go())


def test_a_call_that_does_not_return_is_given_up_and_none_follows_until_it_has(
    begun: Callable[[], set[threading.Thread]],
) -> None:
    """Or each look at a dead mount would leave another thread that waits for it."""
    there = threading.Event()

    async def go() -> None:
        disk = Disk(0.05)
        with pytest.raises(Unavailable, match=r"has not answered for 0\.05 s"):
            await disk.call(there.wait)
        for _ in range(3):
            with pytest.raises(Unavailable, match="has not answered"):
                await disk.call(int)
        assert len(begun()) == 1
        there.set()
        await until(lambda: not begun())
        assert await disk.call(int) == 0

    asyncio.run(go())


@pytest.mark.process
def test_the_end_of_the_process_waits_for_no_file() -> None:
    """The thread that waits is not joined."""
    program = "import asyncio, threading; from server.engines.disk import Disk\n"
    program += "async def go(): asyncio.create_task(Disk(60).call(threading.Event().wait)); await asyncio.sleep(0.1)\n"
    subprocess.run([sys.executable, "-c", program + "asyncio.run(go())"], cwd=ROOT, timeout=50, check=True)


class Blocked(Repository):
    """A repository on a mount that answers while `there` is set."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.there = threading.Event()
        self.there.set()

    def fingerprint(self) -> tuple[Mark, ...]:
        self.there.wait()
        return super().fingerprint()


def test_a_reload_says_that_the_repository_does_not_answer_and_what_is_open_stays(tmp_path: Path) -> None:
    """As `unavailable`, which is tried again at every look; once it answers, what is new is taken."""
    repository = Blocked(publish(tmp_path))

    async def go() -> None:
        service = service_over(EmbeddedEngine(repository, threads=1, repository_seconds=0.05))
        async with started(service):
            await until(lambda: service.ready)
            repository.there.clear()
            for _ in range(2):
                (change,) = (await service.models.reload())["changes"]
                assert (change["result"], change["version"]) == ("unavailable", "")
                assert service.ready
            repository.there.set()
            publish(tmp_path, "2", seed=2)

            async def taken() -> bool:
                await service.models.reload()
                return service.models.latest().version == 2

            await until(taken)

    asyncio.run(asyncio.wait_for(go(), 60))


@needs_root
@pytest.mark.process
def test_a_server_outlives_a_dead_repository(tmp_path: Path) -> None:
    """It answers, says so once and counts it; SIGTERM is honoured; the mount may come back."""
    publish(tmp_path / "models")
    with Running(tmp_path / "models", repository_seconds=0.5, poll_seconds=0.1) as running:
        running.wait_ready()
        with dead_mount(tmp_path / "models"):
            eventually(lambda: COUNTED in running.http.get("/metrics").text)
            assert running.http.post("/predict", content=encoded(noise())).status_code == 200
        publish(tmp_path / "models", "2", seed=2)
        eventually(lambda: "opened: awnet version 2" in running.text())
        assert running.text().count("has not answered for 0.5 s") == 1
        with dead_mount(tmp_path / "models"):
            time.sleep(0.3)
            begun = time.monotonic()
            assert running.stop(signal.SIGTERM) == 0
            assert time.monotonic() - begun < 15
