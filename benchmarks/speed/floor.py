"""What HTTP cannot do without: the event loop's thread where it does less and less with requests of the same bytes.

Each step is a process with one event loop (uvloop), which wrk sends the same form; each answers with the bytes that the
server itself once answered it with.

* `sockets`: a protocol that only counts bytes. What is left is the kernel and uvloop.
* `parsed`: llhttp reads the request besides, into a list of headers and a body.
* `task`: a task a request besides, which waits for a thread that takes all requests that wait and wakes the loop once,
  as the engine's threads do.
* `model`: as `task`, and two such threads run the network on as many images as wait, up to eight: they take the cores
  and their caches as in the server.
* `ours`: the server's own port before an ASGI application that only answers (`harness/plain_asgi.py`), and no thread.
* `predict`: the server, whose loop decodes the image, too: what that takes of it, `harness/loop_parts.py` measures.

Figures are microseconds of the thread, on the CPU, a request: medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ..harness import loop_parts, report
from ..harness.closed_loop import add_image, add_rounds, form, lua, rotated, uploaded, wrk
from ..harness.processes import Process, Server, free_port
from ..harness.waiting import eventually
from .http_servers import serve_ours

EXAMPLES = """examples:
  python -m benchmarks.speed.floor               six processes, six minutes
"""
STEPS = ("sockets", "parsed", "task", "ours", "model", "predict")
BATCH = 8


def main() -> int:
    parser = report.parser("speed.floor", __doc__, EXAMPLES)
    add_image(parser)
    add_rounds(parser, [1, 8, 32])
    report.add_out(parser, "floor")
    parser.add_argument("--serve", nargs=3, metavar=("STEP", "PORT", "ANSWER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        step, port, answer = options.serve
        serve(step, int(port), Path(answer).read_bytes())
        return 0
    if report.missing("wrk"):
        return 0
    found = measure(options)
    report.conclude(options.out, found, markdown(found))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    facts, image = report.loaded_machine(), uploaded(options.image)
    rounds: dict[str, dict[str, list[float]]] = {step: {str(c): [] for c in options.clients} for step in STEPS}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (script := scratch / "post.lua").write_bytes(lua(image))
        (picture := scratch / "image").write_bytes(image)
        decode = _decoding(picture)
        server = stack.enter_context(Server(scratch))
        server.wait_ready(180)
        (answer := scratch / "answer").write_bytes(_answered(server.port, image))
        places = {"predict": (server.port, server.pid)}
        for step in STEPS[:-1]:
            port = free_port()
            command = [sys.executable, "-m", "benchmarks.speed.floor", "--serve", step, str(port), str(answer)]
            process = stack.enter_context(Process(command))
            eventually(lambda port=port: _listens(port), 60, f"{step} listens")  # type: ignore[misc]
            places[step] = port, process.pid
        for port, _ in places.values():
            wrk(port, 2, 1.0, script)
        for turn in range(options.rounds):
            for clients in options.clients:
                for step in rotated(STEPS, turn):
                    port, pid = places[step]
                    before = loop_seconds(pid)
                    requests = wrk(port, clients, options.seconds, script)["requests"]
                    rounds[step][str(clients)].append(1e6 * (loop_seconds(pid) - before) / requests)
    return {
        "what": "CPU time of the event loop's thread a request, step by step",
        "machine": facts,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "decode_us": decode,
        "loop_us": {step: {c: statistics.median(times) for c, times in by.items()} for step, by in rounds.items()},
        "samples": rounds,
    }


def loop_seconds(pid: int) -> float:
    """That the first thread of a process has run."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def _decoding(picture: Path) -> float:
    """Microseconds that decoding takes of the event loop, in the place where it is done."""
    environment = {**os.environ, "PYTHONPATH": str(report.ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, loop_parts.__file__, str(picture)]
    done = subprocess.run(command, cwd=report.ROOT, env=environment, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)[loop_parts.DECODE])


def _answered(port: int, image: bytes) -> bytes:
    """The body of an answer to the form."""
    body, content_type = form(image)
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": content_type})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return bytes(answer.read())


def _listens(port: int) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/", b"x"), timeout=5):
            return True
    except OSError:
        return False


# The steps.


def serve(step: str, port: int, body: bytes) -> None:
    """Be one of them."""
    if step == "ours":
        serve_ours(port)
        return
    import uvloop

    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    uvloop.run(_serve({"sockets": Sockets, "parsed": Parsed, "task": Task, "model": Model}[step], port, head + body))


async def _serve(protocol: type[Sockets], port: int, answer: bytes) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(answer), "127.0.0.1", port)
    await server.serve_forever()


class Sockets(asyncio.Protocol):
    """Answers as soon as as many bytes have come as the first request's head announces."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._size = self._come = 0
        self._head = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._come += len(data)
        if not self._size:
            self._head += data
            head, end, _ = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._size = len(head) + len(end) + int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if self._come >= self._size:
            self._come -= self._size
            self.answer()

    def answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._answer)


class Parsed(Sockets):
    """Reads the request with llhttp."""

    def __init__(self, answer: bytes) -> None:
        import httptools

        super().__init__(answer)
        self._parser = httptools.HttpRequestParser(self)
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.headers, self.body = [], []

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        self.answer()


class Task(Parsed):
    """Has a task a request, which a thread lets go on."""

    THREADS = 1
    _waiting: queue.SimpleQueue[asyncio.Future[None]] = queue.SimpleQueue()
    _begun = False

    def on_message_complete(self) -> None:
        loop = asyncio.get_running_loop()
        if not Task._begun:
            Task._begun = True
            for _ in range(self.THREADS):
                threading.Thread(target=self._work, args=(loop,), daemon=True).start()
        self._task = loop.create_task(self._asked())

    async def _asked(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(future)
        await future
        self.answer()

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        run = self.runs()
        while True:
            ready = [self._waiting.get()]
            with suppress(queue.Empty):
                while len(ready) < BATCH:
                    ready.append(self._waiting.get_nowait())
            run(len(ready))
            loop.call_soon_threadsafe(_let_go, ready)

    def runs(self) -> Callable[[int], object]:
        """What a thread does for so many requests."""
        return lambda count: None


class Model(Task):
    """The threads run the network besides."""

    THREADS = 2

    def runs(self) -> Callable[[int], object]:
        import numpy as np
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(
            str(report.bundled_model() / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        images = np.zeros((BATCH, 3, 32, 32), np.uint8)
        return lambda count: session.run(["logits", "p_type", "omega"], {"image": images[:count]})


def _let_go(ready: Sequence[asyncio.Future[None]]) -> None:
    for future in ready:
        if not future.done():
            future.set_result(None)


def markdown(found: Mapping[str, Any]) -> str:
    """The report as a page."""
    machine, loop, decode = found["machine"], found["loop_us"], found["decode_us"]
    clients = list(loop["predict"])
    lines = [
        "# What HTTP cannot do without",
        "",
        f"{machine['cpu']}, {machine['cores']} cores shared with wrk, load {machine['load_before'][0]:.1f} at the "
        "start. Microseconds of the event loop's thread a request of the same bytes, medians of "
        f"{found['rounds']} rounds of {found['seconds']:g} s in turns. `sockets` counts bytes and answers; `parsed` "
        "reads the request with llhttp besides; `task` has a task a request, which waits for a thread; `ours` is the "
        "server's port before an application that only answers; `model` is `task` with two threads that run the "
        "network; `predict` is the server. Of `predict` decoding takes "
        f"{decode:.0f} us there (but for one client, whose image the engine's thread decodes). Made by "
        "`python -m benchmarks.speed.floor`.",
        "",
        f"| clients | {' | '.join(STEPS)} | predict without decoding |",
        "|--:|" + "--:|" * (len(STEPS) + 1),
    ]
    for c in clients:
        whole = loop["predict"][c]
        rest = whole if c == "1" else whole - decode
        lines.append(f"| {c} | {' | '.join(f'{loop[step][c]:.0f}' for step in STEPS)} | {rest:.0f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
