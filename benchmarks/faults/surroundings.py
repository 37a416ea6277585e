"""Faults of what a server stands on: a full disk, a log that nobody reads, files that do not answer, clock, settings.

Each function starts the server that it needs, does the damage while a good client looks on, and judges goals that were
set beforehand; `faults` runs them beside those of `scenarios` and `server_faults`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..harness import bad_models
from ..harness.dead_mount import dead_mount, possible
from ..harness.exchange import fetch, get, seconds_until
from ..harness.load import IMAGES, Sample, loaded
from ..harness.processes import Process, free_port
from ..harness.report import ROOT
from .scenarios import Bench, Replica, Result
from .server_faults import spread

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


# The log.


async def full_disk(bench: Bench) -> Result:
    """The disk that holds the log and the temporary files is full; later it is not."""
    result = Result("the log and TMPDIR lie on a disk of 256 KiB that fills; the request log is on")
    folder = bench.folder / "small-disk"
    with _small_disk(folder):
        filler = folder / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(1 << 20))
        os.environ["TMPDIR"] = str(folder)
        try:
            server = Replica(folder, repository=bench.repository, request_log=True)
        finally:
            del os.environ["TMPDIR"]
        with server:
            await server.until_ready()
            async with loaded(server.port, keeping=2, opening=2) as load:
                await asyncio.sleep(min(8.0, bench.seconds))
                written, full = len(server.text()), time.monotonic()
                filler.unlink()
                await asyncio.sleep(2)
                later = len(server.text())
            failed = load.failed()
    result.figures = {"requests": len(load.samples), "seconds_full": round(full - load.samples[0].begun, 1)}
    result.goal("0 failed requests", failed, failed == 0)
    result.goal("the log goes on once there is room", f"{written} bytes, then {later}", later > written)
    return result


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=256k"):
        raise OSError(ctypes.get_errno(), "a small disk needs root")
    try:
        yield
    finally:
        libc.umount2(os.fsencode(folder), 2)


class _Unread(Replica):
    """Its standard error is a pipe that nobody reads."""

    def start(self) -> None:
        self.popen = subprocess.Popen(
            self.command, cwd=self.folder, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )


async def stuck_log(bench: Bench) -> Result:
    """Nobody reads standard error, which is a pipe of 64 KiB; beside a server whose log is read."""
    result = Result("nobody reads standard error, a pipe of 64 KiB; the request log is on, of 300 bytes a request")
    kinds_of, seen = {"read": Replica, "nobody reads": _Unread}, dict[str, Any]()
    loads: dict[str, list[Sample]] = {name: [] for name in kinds_of}
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, kind in kinds_of.items():
            servers[name] = stack.enter_context(kind(bench.folder, repository=bench.repository, request_log=True))
            await seconds_until(lambda name=name: get(servers[name].port, "/v2/health/ready"), 150)
        for _ in range(4):  # in turns, so that a busy moment meets both
            for name, server in servers.items():
                async with loaded(server.port, keeping=4, opening=0, pause=0, images=[IMAGES[0]]) as load:
                    await asyncio.sleep(min(10.0, bench.seconds) / 2)
                loads[name] += load.samples
        for name, server in servers.items():
            begun = time.monotonic()
            status = await asyncio.to_thread(server.stop)
            seen[name] = spread(loads[name]) | {
                "exit": {"status": status, "seconds": round(time.monotonic() - begun, 1)}
            }
    unread = seen["nobody reads"]
    result.figures = seen
    result.goal("more than the pipe holds was logged", f"{unread['requests']} requests", unread["requests"] > 300)
    result.goal("0 failed requests", unread["failed"], unread["failed"] == 0)
    ratio = unread["p50_ms"] / seen["read"]["p50_ms"]
    result.goal("p50 at most 1.5 times that of the server whose log is read", f"{ratio:.2f}", ratio <= 1.5)
    result.goal("SIGTERM ends it with status 0", unread["exit"], unread["exit"]["status"] == 0)
    return result


# Files.


async def files(bench: Bench) -> Result:
    """A FIFO in place of a file of a new version; a repository on a mount that dies; a FIFO as the file of keys."""
    result = Result(
        "a FIFO as manifest and as model of a new version, then the whole repository on a dead mount, under load"
    )
    repository = bench.folder / "files-repository"
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(bench.repository / "awnet", repository / "awnet")
    newest = max(int(path.name) for path in (repository / "awnet").iterdir() if path.name.isdigit())
    settings = {"poll_seconds": 0.2, "repository_seconds": 1, "drain_seconds": 0}
    with Replica(bench.folder, repository=repository, **settings) as server:
        await server.until_ready()
        async with loaded(server.port, keeping=2, opening=2) as load:
            for number, name in enumerate(("manifest.json", "model.onnx"), start=newest + 1):
                folder = repository / "awnet" / str(number)
                shutil.copytree(repository / "awnet" / str(newest), folder)
                manifest = json.loads((folder / "manifest.json").read_text("utf-8")) | {"version": number}
                (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
                (folder / name).unlink()
                os.mkfifo(folder / name)
                line = f"{number}: {name} cannot be read: it is no regular file"
                outcome = await _logged_after(lambda line=line: line in server.text())
                result.goal(f"a FIFO as {name}: refused and told", outcome, outcome != "not told")
            with dead_mount(repository) if possible() else contextlib.nullcontext():
                outcome = (
                    await _logged_after(lambda: "has not answered for 1 s" in server.text())
                    if possible()
                    else "no root"
                )
                result.goal(
                    "a dead mount: told, counted as unavailable", outcome, outcome not in ("not told", "no root")
                )
                text = (await fetch(server.port, "/metrics")).decode()
                counted = next(line for line in text.splitlines() if 'result="unavailable"' in line)
                result.figures["counted"] = counted
                await asyncio.sleep(1)
                begun = time.monotonic()
                ready = await get(server.port, "/v2/health/ready")
                await load.end()
                status = await asyncio.to_thread(server.stop)
                ended = round(time.monotonic() - begun, 1)
        result.goal("readiness stays, 0 failed requests", f"{ready}, {load.failed()}", ready and not load.failed())
        result.goal("SIGTERM ends it in 10 s with status 0", f"{status} in {ended} s", status == 0 and ended < 10)
    os.mkfifo(keys := bench.folder / "keys.toml")
    status, said, seconds = await _start_with(AWNET_API_KEYS=str(keys), AWNET_REPOSITORY=str(bench.repository))
    line = said.splitlines()[-1].rpartition("awnet: ")[2].replace(f"{bench.folder}/", "")
    result.goal("a FIFO as the file of keys: the start ends, with a line", f"{status}: {line}", status > 0)
    result.figures["seconds of that start"] = seconds
    return result


async def _logged_after(check: Callable[[], bool]) -> str:
    try:
        return f"after {await seconds_until(lambda: _now(check), 20):.1f} s"
    except TimeoutError:
        return "not told"


async def _now(check: Callable[[], bool]) -> bool:
    return check()


# The clock.


async def clock(bench: Bench) -> Result:
    """The wall clock jumps by a day, forth and back, under load."""
    result = Result("the wall clock jumps a day forth, two days back and home again under load (libfaketime)")
    offset, spoil = bench.folder / "offset", bad_models.KINDS["no model"]
    shutil.copytree(bench.repository / "awnet", (repository := bench.folder / "clock-repository") / "awnet")
    offset.write_text("+0", "ascii")
    os.environ |= {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",  # seconds; without, each look at the clock reads the file
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    try:
        server = Replica(bench.folder, repository=repository, poll_seconds=0.5)
    finally:
        for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE", "FAKETIME_CACHE_DURATION"):
            del os.environ[name]
    with server:
        await server.until_ready(150)
        async with loaded(server.port, keeping=2, opening=2) as load:
            for number, jump in enumerate(("+1d", "-1d", "+0"), start=100):
                offset.write_text(jump, "ascii")
                await asyncio.sleep(2)
                spoil(repository / "awnet", number)  # which is logged, with the day
                await _logged_after(lambda number=number: f"awnet version {number}" in server.text())
                await asyncio.sleep(2)
                ready = await get(server.port, "/v2/health/ready")
                result.goal(
                    f"{jump}: readiness stays, 0 failed", f"{ready}, {load.failed()}", ready and not load.failed()
                )
        days = [line[:10] for line in server.text().splitlines() if " refused: " in line]
    result.goal("the jumps reached the server: days in its log", " ".join(days), len(set(days)) == 3)
    result.figures["requests"] = len(load.samples)
    return result


# Settings.

REFUSED = {
    "--shutdown-seconds": ("inf", "nan", "-1", "1e9", "soon", ""),
    "--timeout-seconds": ("0", "inf"),
    "--port": ("http", "70000", "-1"),
    "--max-batch": ("0", "1.5", "nan"),
    "--queue-capacity": ("many",),
}


async def settings(bench: Bench) -> Result:
    """Values that are none, variables that are no setting, and what Kubernetes sets for a Service called awnet."""
    result = Result("starts with values that are no numbers, a variable that is no setting, and Kubernetes' links")
    for option, values in REFUSED.items():
        wrong = []
        for value in values:
            status, said, _ = await _start_with(f"{option}={value}")
            if status != 2 or len(said.splitlines()) != 1 or option.strip("-").replace("-", "_") not in said:
                wrong.append(f"{value!r}: {status} {said!r}")
        outcome = "; ".join(wrong) or f"{len(values)} of {len(values)}"
        result.goal(f"{option} {' '.join(map(repr, values))}: status 2 and one line", outcome, not wrong)
    status, said, _ = await _start_with("--port=-1", AWNET_MAX_BATCHES="4")
    result.goal("AWNET_MAX_BATCHES: the nearest name is told", said.splitlines()[0], "AWNET_MAX_BATCH" in said)
    links = {
        "AWNET_PORT": "tcp://10.0.0.7:8000",
        "AWNET_SERVICE_HOST": "10.0.0.7",
        "AWNET_PORT_8000_TCP_ADDR": "10.0.0.7",
    }
    port = free_port()
    command = [sys.executable, "-m", "server", "--port", str(port), "--admin-port", "none", "--threads", "1"]
    with Process([*command, "--repository", bench.repository], bench.folder / "links.log", links) as process:
        await seconds_until(lambda: get(port, "/v2/health/ready"), 60, process)
        quiet = "warning" not in process.text()
    result.goal("Kubernetes' links: the server starts, no warning", quiet, quiet)
    return result


async def _start_with(*arguments: str, **variables: str) -> tuple[int, str, float]:
    """Status, standard error and seconds of a start that must end by itself."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AWNET_")} | variables
    if "AWNET_API_KEYS" in variables:
        arguments = (*arguments, f"--port={free_port()}", "--admin-port=none")
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "server", *arguments],
        cwd=ROOT,
        env=clean,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    except TimeoutError:
        process.send_signal(signal.SIGKILL)
        return -9, "it did not end", 60.0
    text = "\n".join(line for line in said.decode().splitlines() if line.strip())
    return process.returncode or 0, text[-600:], round(time.monotonic() - begun, 1)


SURROUNDINGS: dict[str, tuple[Callable[[Bench], Awaitable[Result]], Sequence[str]]] = {
    "full-disk": (full_disk, ("root",)),
    "stuck-log": (stuck_log, ()),
    "files": (files, ("root",)),
    "clock": (clock, ("libfaketime",)),
    "settings": (settings, ()),
}
