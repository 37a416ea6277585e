"""What the machine could do without a server: decoding and the model in a loop, alone and beside the client.

The loop runs in one process a core, so that the processes share nothing but the machine. Beside the client: wrk keeps
32 connections and sends the requests that the server got, as many a second as the server answered (each connection
pauses between two), to a program that reads them and answers with as many bytes as the server does. What is left of
the cores is the loop's: what a server would reach whose parsing, queue, verdicts and answers cost nothing. The program
that answers is a bare protocol on uvloop; its CPU time a request is told beside the figure.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from server.core.cpu_limits import usable_cores

from ..harness.closed_loop import Figures, posting, wrk
from ..harness.processes import Process, free_port
from ..harness.report import ROOT

CLIENTS = 32
LOOP, ANSWER = "loop", "answer"


def main(arguments: list[str]) -> int:
    """A process of its own: `loop MODEL IMAGE BATCH SECONDS` or `answer PORT BYTES`."""
    if arguments[0] == LOOP:
        loop(Path(arguments[1]), Path(arguments[2]).read_bytes(), int(arguments[3]), float(arguments[4]))
    else:
        asyncio.run(answer(int(arguments[1]), int(arguments[2])))
    return 0


def loop(model: Path, image: bytes, batch: int, seconds: float) -> None:
    """Warm up, say so, wait for a line, and print the images a second of one core."""
    os.environ["AWNET_PEER_MODEL"] = str(model)
    from .apps.onnx_model import Model

    asked = Model()
    images = [image] * batch
    for _ in range(max(1, 64 // batch)):
        asked.answers(images)
    print("warm", flush=True)
    sys.stdin.readline()
    count, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        asked.answers(images)
        count += batch
    print(count / spent, flush=True)


async def answer(port: int, size: int) -> None:
    """Read whole requests and answer each with `size` bytes, for ever."""
    import uvloop

    told = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self._transport, self._data, self._wanted = transport, bytearray(), 0

        def data_received(self, data: bytes) -> None:
            self._data += data
            if not self._wanted and (end := self._data.find(b"\r\n\r\n")) >= 0:
                length = self._data[:end].lower().partition(b"content-length:")[2].partition(b"\r")[0]
                self._wanted = end + 4 + int(length or 0)
            if self._wanted and len(self._data) >= self._wanted:
                self._data.clear()
                self._wanted = 0
                self._transport.write(told)

    assert uvloop.Loop
    server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", port)
    await server.serve_forever()


@contextmanager
def warm(model: Path, image: Path, batch: int, seconds: float) -> Iterator[list[subprocess.Popen[str]]]:
    """A loop on every core that waits for `go`."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.peers",
        "--part",
        LOOP,
        str(model),
        str(image),
        str(batch),
        str(seconds),
    ]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        loops = [
            stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True))
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


def beside(
    model: Path, image: Path, post: tuple[bytes, dict[str, str]], rate: float, size: int, seconds: float, folder: Path
) -> Figures:
    """The loop at batch 16 beside the client.

    Args:
        post: body and headers of the request.
        rate: requests a second that the client sends.
        size: bytes of an answer's body.

    Returns:
        images_per_second, of the loop; rate, as it was reached; partner_cpu_ms, a request, of the program that answers.
    """
    port = free_port()
    (script := folder / "beside.lua").write_bytes(posting(*post, pause_ms=1000 * CLIENTS / rate))
    command = [sys.executable, "-m", "benchmarks.peers", "--part", ANSWER, str(port), str(size)]
    with Process(command) as partner, warm(model, image, 16, seconds) as loops, ThreadPoolExecutor(1) as pool:
        partner.answering(f"http://127.0.0.1:{port}/")
        told = pool.submit(wrk, port, CLIENTS, seconds + 1, script, [partner.pid])
        time.sleep(0.3)
        images = go(loops)
        figures = told.result()
    return {"images_per_second": images, "rate": figures["rps"], "partner_cpu_ms": figures["cpu_ms"]}
