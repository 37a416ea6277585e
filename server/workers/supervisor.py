"""Starts several workers behind one port, replaces those that die, and coordinates them.

The supervisor owns the listening sockets and accepts no connection. It takes no part in a request, so it may be slow
and simple. `metrics_merge` merges the workers' counts, `link` carries the messages.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from ..access import rates
from ..core.cpu_limits import share_of, usable_cores
from ..errors import AWNetError, LinkLost
from ..monitoring.log_writer import log_to_stderr
from ..monitoring.snapshot import Family, Sample, Snapshot
from ..ports.listening import listen_all, reserve_shared
from ..settings.settings import Settings
from .link import CALL_SECONDS, SNAPSHOT_EVERY_SECONDS, Link, packed
from .load_table import LoadTable, shared_memory
from .metrics_merge import Totals

log = logging.getLogger("awnet")

SNAPSHOT_SECONDS = 1.0  # a worker that does not answer a scrape in this time counts with its last snapshot
CHECK_SECONDS = 1.0
SILENT_CHECKS = 30  # a worker that sends no snapshot for so many is killed: probes only reach live ones
STEADY_SECONDS = 2.0  # a worker that served for so long is replaced at once
PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.25, 10.0
GIVE_UP_AFTER = 5  # starts in a row that failed while no other worker served
SHARED = (
    "max_connections",
    "max_connections_per_client",
    "max_held_bytes",
    "grpc_max_calls",
    "answer_cache",
)  # each worker has its part of these
MARGIN_SECONDS = 5.0  # beyond drain and shutdown, before workers that should have left are killed


def supervise(settings: Settings, command: Sequence[str]) -> int:
    """Serve with `settings.workers` processes until told to stop.

    Args:
        settings: see `Supervisor`.
        command: starts a worker; the number of its socket is added.

    Returns:
        The exit status, as of one process.
    """
    log_to_stderr(settings.log_level, "supervisor %(name)s")
    if not hasattr(os, "memfd_create"):
        log.critical("several workers need Linux; one process serves everywhere (--workers 1)")
        return 2
    return asyncio.run(Supervisor(settings, command).run())


class _Worker:
    """One worker process."""

    def __init__(self, process: asyncio.subprocess.Process, link: Link) -> None:
        self.process = process
        self.link = link
        self.begun = time.monotonic()
        self.up_since: float | None = None
        self.silent = 0  # checks since its last snapshot


class Supervisor:
    """Starts the first worker, then the others, and keeps their number.

    Args:
        settings: as for one process. Threads, unless given, queue capacity and images in flight at each Triton are
            divided among the workers, so that the service has as many as with one worker.
        command: starts a worker; the number of its socket is added.
    """

    def __init__(self, settings: Settings, command: Sequence[str]) -> None:
        self._settings = settings
        self._command = command
        self._count = settings.workers
        self._totals = Totals()
        self._workers: dict[int, _Worker] = {}
        self._restarts = 0
        self._failures = 0  # workers in a row that did not start, or hardly had
        self._first_up = asyncio.Event()
        self._leaving = asyncio.Event()
        self._changing = asyncio.Lock()  # one operator's call, or one worker that joins, at a time
        self._status = 0
        self._models: Any = None  # what the workers served, by the last snapshot
        self._salt = secrets.token_bytes(16)
        self._sockets: dict[str, list[socket.socket]] = {}
        self._grpc: socket.socket | None = None
        self._load_table_memory = shared_memory(self._count)
        self._rates_memory = rates.shared_memory()
        self._load_table = LoadTable(self._load_table_memory, self._count, 0)

    async def run(self) -> int:
        """Until told to stop, or until it is clear that nothing can be served."""
        settings = self._settings
        try:
            self._sockets = listen_all(settings.http_ports, *settings.protected)
            if settings.grpc_port is not None:
                self._grpc = reserve_shared(settings.host, settings.grpc_port)
        except AWNetError as error:
            log.critical("%s: %s", error.title, error.detail)
            return 2
        threads = [settings.threads or share_of(usable_cores(), self._count, n) for n in range(self._count)]
        log.info("%d workers, threads of each: %s", self._count, ", ".join(map(str, threads)))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        keepers = [asyncio.create_task(self._keep(number)) for number in range(self._count)]
        sharing = asyncio.create_task(self._share_verdicts())
        await asyncio.wait(keepers)
        sharing.cancel()
        for keeper in keepers:
            keeper.result()
        return self._status

    # The life of the workers.

    async def _keep(self, number: int) -> None:
        """Keep one worker of this number running until the end."""
        if number:
            await self._either(self._first_up.wait())
        while not self._leaving.is_set():
            worker = await self._start(number)
            status = await self._watched(number, worker)
            await self._gone(number, worker)
            if self._leaving.is_set():
                if status not in (0, -signal.SIGTERM, -signal.SIGINT):
                    self._status = self._status or 1
                return
            up = worker.up_since
            what = f"worker {number} (pid {worker.process.pid}) {_ended(status)}"
            if up is None and not self._first_up.is_set():
                log.critical("%s before it was ready: nothing is served", what)
                self._end(status)
                return
            steady = up is not None and time.monotonic() - up >= STEADY_SECONDS
            self._failures = 0 if steady else self._failures + 1
            if up is None and not self._serving() and self._failures >= GIVE_UP_AFTER:
                log.critical("%s; no worker serves and %d in a row have failed: giving up", what, self._failures)
                self._end(1)
                return
            doublings = min(max(0, self._failures - 2), 10)
            pause = 0.0 if self._failures < 2 else min(MAX_PAUSE_SECONDS, PAUSE_SECONDS * 2**doublings)
            log.error("%s; %d of %d serve on; another one in %.2f s", what, self._serving(), self._count, pause)
            if status < 0 and up is not None:
                log.warning("what worker %d had counted since its last snapshot (1 s at most) is lost", number)
            self._restarts += 1
            await self._either(asyncio.sleep(pause))

    async def _start(self, number: int) -> _Worker:
        settings, ours, theirs = self._settings, *socket.socketpair()
        cores = share_of(usable_cores(), self._count, number)
        room = max(-(-settings.queue_capacity // self._count), min(settings.queue_capacity, settings.max_images))
        given = settings.model_dump(mode="json") | {
            "threads": settings.threads or cores,
            "queue_capacity": room,
            "triton_in_flight": max(1, settings.triton_in_flight // self._count),
            **{name: -(-getattr(settings, name) // self._count) for name in SHARED},
        }
        if self._grpc is not None:
            given["grpc_port"] = self._grpc.getsockname()[1]
        assignment = {
            "settings": given,
            "number": number,
            "workers": self._count,
            "first": not self._first_up.is_set(),
            "sockets": {purpose: [one.fileno() for one in sockets] for purpose, sockets in self._sockets.items()},
            "load_table": self._load_table_memory,
            "rates": self._rates_memory,
            "salt": self._salt.hex(),
        }
        ours.sendall(packed(assignment))
        process = await asyncio.create_subprocess_exec(
            *self._command,
            str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[
                *(one.fileno() for one in (theirs, *self._held())),
                self._load_table_memory,
                self._rates_memory,
            ],
            process_group=0,  # a terminal's Ctrl-C is passed on by us, once
        )
        theirs.close()

        async def loaded(body: Any) -> None:
            await self._join(number, worker)

        async def snapshot(body: Any) -> None:
            worker.silent = 0
            # Until it takes requests, it has no part in what the service is.
            if self._workers.get(number) is worker and (worker.up_since is not None or not self._up()):
                sent = Snapshot.from_json(body)
                self._totals.update(number, sent)
                self._models = sent.models

        async def totals(body: Any) -> Any:
            return await self._collect()

        worker = self._workers[number] = _Worker(process, Link())
        await worker.link.open(
            ours,
            {
                "loaded": loaded,
                "snapshot": snapshot,
                "last": snapshot,
                "totals": totals,
                "operate": self._operate,
            },
        )
        if self._leaving.is_set():
            self._signal(worker, signal.SIGTERM)  # it was not there when the others got theirs
        return worker

    async def _watched(self, number: int, worker: _Worker) -> int:
        """The exit status of the worker; one that sends no snapshots any more is killed."""
        ending = asyncio.create_task(worker.process.wait())
        while not ending.done():
            # Checks, not seconds: a machine that was stopped for a while must not look like a silent worker.
            worker.silent += 1
            await asyncio.wait([ending], timeout=CHECK_SECONDS)
            if not ending.done() and worker.up_since is not None and worker.silent > SILENT_CHECKS:
                log.error("worker %d has sent nothing for %.0f s and is killed", number, SILENT_CHECKS * CHECK_SECONDS)
                self._signal(worker, signal.SIGKILL)
        return ending.result()

    async def _join(self, number: int, worker: _Worker) -> None:
        """The worker's models have passed the self-test: let it adopt what the others serve, and accept connections."""
        async with self._changing:
            state = None
            for other in self._up():
                with suppress(LinkLost):
                    state = await other.link.ask("state")
                    break
            else:
                state = self._models
            try:
                await worker.link.ask("join", state, CALL_SECONDS)
            except AWNetError as error:
                if not worker.link.lost.is_set():
                    log.error("worker %d could not join: %s", number, error.detail)
                    self._signal(worker, signal.SIGKILL)
                return
            worker.up_since = time.monotonic()
        self._first_up.set()
        log.info(
            "worker %d (pid %d) serves after %.1f s; %d of %d do",
            *(number, worker.process.pid, worker.up_since - worker.begun, self._serving(), self._count),
        )

    async def _gone(self, number: int, worker: _Worker) -> None:
        """Drop everything of a worker that has ended but its counts."""
        del self._workers[number]
        self._totals.leave(number)
        self._load_table.clear(number)
        await worker.link.close()

    # The end.

    def _leave(self, number: int) -> None:
        """A signal to leave, passed on as often as it comes."""
        for worker in self._workers.values():
            self._signal(worker, number)
        self._shut(self._settings.drain_seconds + self._settings.shutdown_seconds + MARGIN_SECONDS)

    def _end(self, status: int) -> None:
        """There is no point in going on."""
        self._status = status if status > 0 else 1
        for worker in self._workers.values():
            self._signal(worker, signal.SIGTERM)
        self._shut(self._settings.drain_seconds + self._settings.shutdown_seconds + MARGIN_SECONDS)

    def _shut(self, seconds: float) -> None:
        if not self._leaving.is_set():
            self._leaving.set()
            # The workers have their own; when the last of them closes, clients are refused, not left to wait.
            for ours in (*self._held(), *([self._grpc] if self._grpc else [])):
                ours.close()
            asyncio.get_running_loop().call_later(seconds, self._kill)

    def _held(self) -> Iterator[socket.socket]:
        return chain.from_iterable(self._sockets.values())

    def _kill(self) -> None:
        for number, worker in self._workers.items():
            log.error("worker %d did not leave in time and is killed", number)
            self._signal(worker, signal.SIGKILL)

    def _signal(self, worker: _Worker, number: int) -> None:
        with suppress(ProcessLookupError):
            worker.process.send_signal(number)

    async def _either(self, work: Any) -> None:
        """Until `work` is done, or it is time to leave."""
        tasks = [asyncio.ensure_future(work), asyncio.create_task(self._leaving.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    # What concerns all.

    def _up(self) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.up_since is not None]

    def _asked(self) -> list[tuple[int, _Worker]]:
        """The serving workers; while there are none yet, all, since clients may reach any of them."""
        known = sorted(self._workers.items())
        return [(number, worker) for number, worker in known if worker.up_since is not None] or known

    def _serving(self) -> int:
        return len(self._up())

    def _reload(self) -> None:
        """SIGHUP, passed on; to starting workers, too: they may have read the repository already."""
        for worker in self._workers.values():
            worker.link.notify("reload")

    async def _share_verdicts(self) -> None:
        """Send each worker the recent verdicts of the others, for the page."""
        while True:
            await asyncio.sleep(SNAPSHOT_EVERY_SECONDS)
            for number, worker in self._workers.items():
                if worker.up_since is not None:
                    worker.link.notify("others", self._totals.verdicts_of_others(number))

    async def _operate(self, call: Any) -> list[dict[str, Any]]:
        """An admin call in every worker: the answer or the problem of each."""
        async with self._changing:
            asked = self._asked()
            answers = await asyncio.gather(*(self._call(number, worker, call) for number, worker in asked))
            return [answer for answer in answers if answer is not None]

    async def _call(self, number: int, worker: _Worker, call: Any) -> dict[str, Any] | None:
        answer: dict[str, Any] = {"worker": number, "pid": worker.process.pid}
        try:
            return answer | {"result": await worker.link.ask("operate", call, CALL_SECONDS)}
        except LinkLost as error:
            # Its successor adopts the state of the others.
            return None if worker.link.lost.is_set() else answer | {"problem": [error.slug, error.detail]}
        except AWNetError as error:
            return answer | {"problem": [error.slug, error.detail]}

    async def _collect(self) -> dict[str, Any]:
        """What all workers have counted until now."""
        await asyncio.gather(*(self._ask(number, worker) for number, worker in self._asked()))
        return self._totals.total(self._own()).to_json()

    async def _ask(self, number: int, worker: _Worker) -> None:
        with suppress(LinkLost):
            snapshot = await worker.link.ask("snapshot", seconds=SNAPSHOT_SECONDS)
            if self._workers.get(number) is worker:
                self._totals.update(number, Snapshot.from_json(snapshot))

    def _own(self) -> Sequence[Family]:
        values = (float(self._count), float(self._serving()), float(self._restarts))
        return [
            Family(name, kind, "service", text, [Sample(f"{name}_total" if kind == "counter" else name, {}, value)])
            for (name, kind, text), value in zip(OWN, values, strict=True)
        ]


# The supervisor's metrics; a server of one process has none of them.
OWN = (
    ("awnet_workers", "gauge", "Workers that the service should have; only where there are several."),
    ("awnet_workers_up", "gauge", "Workers that take requests; only where there are several."),
    ("awnet_worker_restarts", "counter", "Workers that ended unasked and were replaced; only where there are several."),
)


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"
