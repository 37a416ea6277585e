"""What one `/predict` takes of the event loop, part by part: `speed.stages` runs it in the measured checkout.

python loop_parts.py IMAGE, with the checkout as working folder and PYTHONPATH. The whole server runs in this process,
with the bundled model, but for two things: the socket (a connection is fed bytes, and its answer is the sign for the
next request), and the network, whose answer is always the same one and costs nothing. The image is decoded on
the event loop, as under load. A part's time is CPU time of the thread and its own, without that of parts which it
calls; a function that a checkout does not have counts for whoever calls it. What measuring takes is taken off, as
far as that is known: together the parts are up to a tenth more than all, which is measured without them, though tasks
and the loop itself are only in that. First deciles over many requests: what nothing else on the machine has held up.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from time import thread_time_ns
from typing import Any

BOUNDARY = "awnet-benchmark"
TURNS, TURN, WARM = 15, 100, 30
TOTAL, WITHOUT = "all", "all but decoding"
DECODE, LOG = "structure, decode, statistics", "beside: a log line, off by default"

ANSWERING = ("service.answering", "answering")  # now, and in checkouts before it moved
# Part -> functions, below `server`, patched where they are looked up.
PARTS = {
    "connection, bytes out": [
        *(f"http.connection:Connection.{name}" for name in ("data_received", "_run", "write")),
    ],
    "parse": ["http.reading:RequestReader.feed"],
    "request and response": [
        *(f"http.connection:Connection.{name}" for name in ("begin", "add", "finish", "answered")),
        *(f"http.transaction:Transaction.{name}" for name in ("run", "receive", "send")),
        *(f"http.exchange:Exchange.{name}" for name in ("__init__", "__enter__", "__exit__", "read", "respond")),
    ],
    "id, client, caller, rates": [
        "http.front:Front.__call__",
        "monitoring.request:Requests.observe",
        "monitoring.request:ObservedRequest.__enter__",
        "service.service:Service.admit",
        "service:Service.admit",
    ],
    "query, headers, lease": ["http.app:PublicFront._answer", "http.app:PublicFront._predict"],
    "form": ["http.upload:uploads"],
    "admission to decoding and engine": [
        *(f"{answering}:Answering._signals" for answering in ANSWERING),
        "core.decoding:Decoding.prepare",
    ],
    DECODE: ["core.decoding:_admit", "core.decoding:_decode"],
    "queue": [
        "engines.onnxruntime:_EmbeddedRunner.infer",
        "engines.batching:Feed.submit",
        "engines.batching:Batcher.enter",
        "engines.batching:Batcher.leave",
    ],
    "answers of a batch": ["engines.batching:Batcher._deliver"],
    "verdict, policy": [
        *(f"{answering}:{name}" for answering in ANSWERING for name in ("Answering.run", "judge_image")),
        "core.policy:Policies.decide",
    ],
    "metrics": [
        *(f"monitoring.metrics:Metrics.{name}" for name in ("request", "batch", "stages")),
        *(f"monitoring.metrics:Metrics.{name}" for name in ("count_verdicts", "count_decisions", "answered")),
        "monitoring.metrics:Metrics.rejection",
    ],
    "watch, history, record": [
        *(f"{answering}:Answering._record" for answering in ANSWERING),
        "monitoring.verdict_history:VerdictHistory.add",
        "monitoring.request:ObservedRequest.__exit__",
        "monitoring.request:Requests.ended",
    ],
    LOG: ["monitoring.request_log:RequestLog.write"],
    "document": ["http.app:document"],
    "JSON": ["http.app:_written"],
}


class Clock:
    """Own time of each part, in nanoseconds, without what measuring it takes; of one thread."""

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._since = 0
        self._own: Counter[str] = Counter()
        # By part, of functions and of steps of coroutines: calls of it, and its calls of others.
        self._calls: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
        self._called: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
        # What measuring one of those adds to its own time, and to its caller's.
        self._inside, self._outside = {False: 0.0, True: 0.0}, {False: 0.0, True: 0.0}
        self._calibrate()

    def enter(self, part: str, steps: bool) -> None:
        now = thread_time_ns()
        if self._stack:
            caller = self._stack[-1]
            self._own[caller] += now - self._since
            self._called[steps][caller] += 1
        self._calls[steps][part] += 1
        self._stack.append(part)
        self._since = thread_time_ns()

    def leave(self) -> None:
        now = thread_time_ns()
        self._own[self._stack.pop()] += now - self._since
        self._since = thread_time_ns()

    def taken(self) -> dict[str, float]:
        """What has come together since the last call."""
        found = dict(self._own)
        for steps in (False, True):
            for part in found:
                found[part] -= self._calls[steps][part] * self._inside[steps]
                found[part] -= self._called[steps][part] * self._outside[steps]
            self._calls[steps].clear()
            self._called[steps].clear()
        self._own.clear()
        return found

    def _calibrate(self) -> None:
        async def nothing() -> None: ...

        for steps, function in ((False, lambda: None), (True, nothing)):
            call = timed(self, "inner", function)
            inside, outside = [], []
            for _ in range(2000):
                self.enter("outer", False)
                if steps:
                    with suppress(StopIteration):
                        call().send(None)
                else:
                    call()
                self.leave()
                found = self.taken()
                inside.append(found["inner"])
                outside.append(found["outer"])
            self._inside[steps], self._outside[steps] = statistics.median(inside), statistics.median(outside)
        self._outside[False] -= self._inside[False]
        self._outside[True] -= self._inside[False]


class _Stepped:
    """A coroutine whose steps are timed."""

    def __init__(self, clock: Clock, part: str, steps: Any) -> None:
        self._clock, self._part, self._steps = clock, part, steps

    def __await__(self) -> Generator[Any, Any, Any]:
        clock, part, send = self._clock, self._part, self._steps.send
        while True:
            clock.enter(part, True)
            try:
                waits_for = send(None)
            except StopIteration as end:
                return end.value
            finally:
                clock.leave()
            yield waits_for


def timed(clock: Clock, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with its time counted for `part`."""
    if inspect.iscoroutinefunction(function):

        async def steps(*given: Any, **named: Any) -> Any:
            return await _Stepped(clock, part, function(*given, **named))

        return steps

    def call(*given: Any, **named: Any) -> Any:
        clock.enter(part, False)
        try:
            return function(*given, **named)
        finally:
            clock.leave()

    return call


class Patches:
    """The functions of `PARTS`, with their time counted while `on`."""

    def __init__(self, clock: Clock) -> None:
        self._places: list[tuple[Any, str, Any, Any]] = []
        for part, places in PARTS.items():
            for place in places:
                module, _, path = place.partition(":")
                with suppress(ImportError, AttributeError):
                    owner: Any = importlib.import_module(f"server.{module}")
                    *outer, name = path.split(".")
                    for step in outer:
                        owner = getattr(owner, step)
                    plain = getattr(owner, name)
                    self._places.append((owner, name, plain, timed(clock, part, plain)))

    def turn(self, on: bool) -> None:
        for owner, name, plain, counted in self._places:
            setattr(owner, name, counted if on else plain)


def answer_at_once() -> None:
    """No session computes anything any more: it gives what it gave the first time."""
    import numpy as np
    import onnxruntime

    run, kept = onnxruntime.InferenceSession.run, {}

    def first(self: Any, outputs: Any, given: Any, *more: Any) -> Any:
        rows = given["image"]
        key = (id(self), tuple(outputs))
        if key not in kept:
            kept[key] = run(self, outputs, {"image": rows[:1]}, *more)
        return [np.repeat(output, len(rows), axis=0) for output in kept[key]]

    onnxruntime.InferenceSession.run = first


class State:
    """Of a port, see `server.http.connection.State`."""

    def __init__(self) -> None:
        self.connections: set[Any] = set()
        self.tasks: set[Any] = set()
        self.default_headers: list[tuple[bytes, bytes]] = []
        self.total_requests = 0


class Transport:
    """A socket whose client sends the next request `once` it has an answer."""

    def __init__(self, once: Callable[[], object]) -> None:
        self._once = once
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent = data
        asyncio.get_running_loop().call_soon(self._once)

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return "127.0.0.1", 40000

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


def form(image: bytes) -> bytes:
    """The request as a browser sends it."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.png"\r\n'
    body = f"{head}Content-Type: image/png\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode() + body


def moved(name: str, *modules: str) -> Any:
    """`name` of the first of these modules that has it: in older checkouts it lies elsewhere."""
    for module in modules:
        with suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), name)
    raise ImportError(name)


async def measured(image: bytes) -> dict[str, float]:
    """Microseconds of each part."""
    from server.http.admission import Admission, ConnectionLimits
    from server.http.app import create_app
    from server.http.connection import Connection
    from server.monitoring import request_log

    process = ("server.process.parts", "server.process.process", "server.process")
    make_service, begin_logging = moved("make_service", *process), moved("begin_logging", *process)
    Settings = moved("Settings", "server.settings.settings", "server.settings")  # noqa: N806
    settings = Settings(admin_port=None, poll_seconds=0, golden_probe_seconds=0)
    begin_logging(settings)
    service = make_service(settings)
    front = create_app(service)
    await service.start()
    answer_at_once()
    service.decoding._waiting = lambda: 1  # so that the event loop decodes
    data, loop = form(image), asyncio.get_running_loop()

    async def play(requests: int, each: Callable[[], object]) -> None:
        """So many requests, one after the other."""
        over, left = asyncio.Event(), requests

        def upcoming() -> None:
            nonlocal left
            each()
            if left:
                left -= 1
                connection.data_received(data)
            else:
                over.set()

        transport: Any = Transport(upcoming)
        admission = Admission(ConnectionLimits.of(settings), front.proxies)
        connection = Connection(front, front.turn_away, admission, State(), None)
        connection.connection_made(transport)
        loop.call_soon(upcoming)
        await over.wait()
        if b'"results":[' not in transport.sent:
            raise SystemExit(f"no answer: {transport.sent[:300]!r}")

    clock = Clock()
    patches = Patches(clock)

    async def turns(number: int) -> tuple[float, dict[str, float]]:
        """All of a request, measured as a whole, and its parts, in turns."""
        whole: list[float] = []
        spent: list[dict[str, float]] = []
        for _ in range(number):
            at: list[int] = []
            patches.turn(False)
            await play(WARM + TURN, lambda at=at: at.append(thread_time_ns()))  # type: ignore[misc]
            whole += [float(end - begin) for begin, end in pairwise(at[WARM:])]
            each: list[dict[str, float]] = []
            patches.turn(True)
            await play(WARM + TURN, lambda each=each: each.append(clock.taken()))  # type: ignore[misc]
            spent += each[WARM:]
        parts = {part: _quick([one.get(part, 0.0) for one in spent]) / 1000 for part in PARTS}
        return _quick(whole) / 1000, parts

    total, found = await turns(TURNS)
    del found[LOG]
    found |= {TOTAL: total, WITHOUT: total - found[DECODE]}
    request_log.configure(True, handler=logging.NullHandler())
    return found | {LOG: (await turns(TURNS // 3))[1][LOG]}


def _quick(times: list[float]) -> float:
    """That of a request that nothing else on the machine has held up: the first decile."""
    return statistics.quantiles(times, n=10)[0]


def main() -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measured(Path(sys.argv[1]).read_bytes()))
    print(json.dumps(found), flush=True)
    os._exit(0)  # the engine's threads are not waited for


if __name__ == "__main__":
    main()
