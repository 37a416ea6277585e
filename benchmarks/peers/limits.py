"""What the machine could do without a server: decoding and the model in a loop, alone and beside the client.

The loop runs in one process a core, so that the processes share nothing but the machine. Beside the client: wrk keeps
32 connections and sends the requests that the server got, as many a second as the server answered (each connection
pauses between two), to a program that reads them and answers with as many bytes as the server does. What is left of
the cores is the loop's: what a server would reach whose parsing, queue, verdicts and answers cost nothing. The program
that answers is a bare protocol on uvloop; its CPU time a request is told beside the figure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server.core.cpu_limits import usable_cores

from ..harness.closed_loop import Figures, posting, wrk
from ..harness.processes import Process, free_port
from .contestants import APPS, Post

CLIENTS = 32


@contextmanager
def warm(model: Path, image: Path, batch: int, seconds: float) -> Iterator[list[subprocess.Popen[str]]]:
    """A loop on every core that waits for `go`."""
    command = [sys.executable, APPS / "no_server.py", image, str(batch), str(seconds)]
    environment = os.environ | {"PEER_MODEL": str(model.absolute()), "PEER_THREADS": "1"}
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        loops = [
            stack.enter_context(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True))
            for _ in range(usable_cores())
        ]
        try:
            for process in loops:
                if _line(process) != "warm":
                    raise RuntimeError("the loop without a server does not run")
            yield loops
        finally:
            for process in loops:
                process.kill()


def go(loops: list[subprocess.Popen[str]]) -> float:
    """Images a second of all of them."""
    for process in loops:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(_line(process)) for process in loops)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def alone(model: Path, image: Path, batch: int, seconds: float) -> float:
    """Images a second of the loop on every core."""
    with warm(model, image, batch, seconds) as loops:
        return go(loops)


def beside(model: Path, image: Path, sent: Post, rate: float, size: int, seconds: float, folder: Path) -> Figures:
    """The loop at batch 16 beside the client.

    Args:
        sent: the request.
        rate: requests a second that the client sends.
        size: bytes of an answer's body.

    Returns:
        images_per_second, of the loop; rate, as it was reached; partner_cpu_ms, a request, of the program that answers.
    """
    port = free_port()
    (script := folder / "beside.lua").write_bytes(posting(sent.body, sent.headers, pause_ms=1000 * CLIENTS / rate))
    command = [sys.executable, APPS / "no_model.py", str(port), str(size)]
    with Process(command) as partner, warm(model, image, 16, seconds) as loops, ThreadPoolExecutor(1) as pool:
        partner.answering(f"http://127.0.0.1:{port}/")
        load = pool.submit(wrk, port, CLIENTS, seconds + 1, script, [partner.pid])
        time.sleep(0.3)
        images = go(loops)
        figures = load.result()
    return {"images_per_second": images, "rate": figures["rps"], "partner_cpu_ms": figures["cpu_ms"]}
