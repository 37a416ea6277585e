"""The instruments of the fault table: clients that notice every kind of failure, bad versions that are bad."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks.faults.__main__ import SCENARIOS, markdown
from benchmarks.faults.scenarios import Result
from benchmarks.harness import bad_models
from benchmarks.harness.exchange import exposition
from benchmarks.harness.load import Load, quantile
from server.engines.repository import Repository
from tests.server.tiny import ROOT

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(label: str = "cat", score: float = 0.25, status: bytes = b"200 OK", cut: int = 0) -> Answer:
    """A server's answer to an upload; without its last `cut` bytes."""

    async def write(writer: asyncio.StreamWriter) -> None:
        result = {"predictions": [{"label": label}], "adversarial": {"score": score}}
        body = json.dumps({"results": [result], "model": {"version": "1"}}).encode()
        head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        writer.write((head + body)[: -cut or None])

    return write


async def silence(writer: asyncio.StreamWriter) -> None:
    """No answer: the connection closes."""


async def for_ever(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (answer(), "ok"),
        (answer(score=0.2501), "ok"),
        (answer(score=0.26), "wrong"),
        (answer(label="dog"), "wrong"),
        (answer(status=b"503 Busy"), "503"),
        (answer(status=b"500 Oops"), "500"),
        (answer(cut=5), "IncompleteReadError"),
        (silence, "IncompleteReadError"),
        (for_ever, "TimeoutError"),
    ],
)
def test_a_client_tells_right_answers_from_every_kind_of_failure(fault: Answer, outcome: str) -> None:
    """A table of faults is worth as much as the clients that look."""

    async def run() -> list[str]:
        turns = [answer(), fault]

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            await turns.pop(0)(writer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        load = Load(server.sockets[0].getsockname()[1], images=[b"an image"], seconds=60)
        await load.learn()
        load.seconds = 0.1 if fault is for_ever else 60
        await load.once(0)
        server.close()
        return [sample.outcome for sample in load.samples]

    assert asyncio.run(run()) == [outcome]


@pytest.mark.parametrize("kind", [kind for kind in bad_models.KINDS if kind not in ("wrong shape", "wrong values")])
def test_a_bad_version_is_refused_by_the_repository(kind: str, repository: Path, tmp_path: Path) -> None:
    """All but those whose graph has to be loaded or run to tell."""
    import shutil

    from server.errors import StartupError

    shutil.copytree(repository, tmp_path / "repository")
    bad_models.KINDS[kind](tmp_path / "repository/awnet", 2)
    with pytest.raises(StartupError):
        Repository(tmp_path / "repository").read("awnet", 2)


def test_a_completed_copy_is_whole(repository: Path, tmp_path: Path) -> None:
    """The control: what is refused half is accepted whole."""
    import shutil

    shutil.copytree(repository, tmp_path / "repository")
    bad_models.half_copied(tmp_path / "repository/awnet", 2)
    bad_models.complete(tmp_path / "repository/awnet", 2)
    read = Repository(tmp_path / "repository")
    assert read.read("awnet", 2).sha256 == read.read("awnet", 1).sha256


def test_a_missed_goal_is_printed_as_missed() -> None:
    """And a scenario that could not run is not told as one that passed."""
    result = Result("something")
    result.goal("0 failed requests", "3 of 100", False)
    goals = [{"goal": goal, "measured": measured, "met": met} for goal, measured, met in result.goals]
    ran = {"what": "something", "seconds": 1, "machine": {"cpu": "x", "cores": 2}, "figures": {}, "goals": goals}
    page = markdown({"rolling": ran, "triton-kill": {"machine": {}, "not_run": "no triton"}})
    assert "| 0 failed requests | 3 of 100 | **missed** |" in page
    assert "Not run: no triton." in page
    assert "| [rolling](#rolling) | 0 of 1 |" in page
    assert "| [triton-kill](#triton-kill) | not run |" in page


def test_a_quantile_is_one_of_the_samples() -> None:
    """Of few samples the highest."""
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_metrics_are_read_by_their_full_names() -> None:
    """Labels may hold spaces."""
    assert exposition(b'# HELP a b\na{b="c d"} 2\n') == {'a{b="c d"}': 2.0}


@pytest.mark.process
def test_the_command_line_explains_itself() -> None:
    """Help with examples, the list of scenarios, and a clear word about a misspelt one."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "benchmarks.faults", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert "examples:" in call("--help").stdout
    assert len(call("--list").stdout.splitlines()) == len(SCENARIOS)
    misspelt = call("roling")
    assert misspelt.returncode == 2
    assert "roling" in misspelt.stderr
