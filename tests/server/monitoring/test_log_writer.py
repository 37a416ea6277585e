"""A log that nobody reads: the server goes on, what is lost is counted, and the end is not held up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.harness.processes import free_port
from server.monitoring.log_writer import LogWriter
from tests.server.tiny import CALL, ROOT, publish
from tests.waiting import eventually


def test_lines_are_written_in_their_order() -> None:
    """And a flush waits for them."""
    reading, writing = os.pipe()
    writer = LogWriter(writing)
    for n in range(100):
        writer.put(b"%d\n" % n)
    assert writer.flush(60)
    assert os.read(reading, 65536).split() == [b"%d" % n for n in range(100)]


def test_what_nobody_reads_is_dropped_and_counted() -> None:
    """Nobody waits; who reads on learns how many lines are missing."""
    reading, writing = os.pipe()
    writer = LogWriter(writing, waiting_bytes=100_000)
    begun = time.monotonic()
    for _ in range(10_000):
        writer.put(b"x" * 99 + b"\n")
    assert not writer.flush(0.1)
    assert time.monotonic() - begun < 60
    said = b""
    while b"were dropped" not in said:
        said += os.read(reading, 65536)
    dropped = int(said.split(b" lines of the log")[0].rpartition(b"\n")[2])
    assert 10_000 > dropped > 8_000


@pytest.mark.process
def test_a_server_whose_log_is_not_read_answers_and_ends(tmp_path: Path) -> None:
    """A line a request fills a pipe of 64 kB after some hundred; the next once blocked everybody."""
    port = free_port()
    command = [sys.executable, "-m", "server", "--repository", str(publish(tmp_path)), "--port", str(port)]
    command += ["--admin-port", "none", "--request-log", "--drain-seconds", "0", "--poll-seconds", "0"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AWNET_")}
    with subprocess.Popen(command, cwd=ROOT, env=clean, stderr=subprocess.PIPE) as server:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", **CALL) as http:

            def ready() -> bool:
                try:
                    return http.get("/v2/health/ready").status_code == 200
                except httpx.TransportError:
                    return False

            eventually(ready)
            for _ in range(2000):
                assert http.get("/nothing").status_code == 404
            assert ready()
        server.terminate()
        assert server.wait(60) == 0
