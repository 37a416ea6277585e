"""Ray's nodes on this machine: replicas that come and go with the load, and a node that is killed under it.

Each node is a Ray of its own with an address of its own on the loopback, and is told that it has so many cores; all
share those of this machine. `python -m benchmarks.deployment.ray` runs what is here, and says what it is.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import awnet

from ..harness.exchange import exposition, fetch
from ..harness.load import IMAGES, TOLERANCE, Load, Sample, loaded, noise_png, quantile
from ..harness.processes import Process
from ..harness.ray import JOINS, REPLICA, SCORER, RayCluster, RayServe, variables
from ..harness.waiting import eventually, until

CALLERS = 72  # each with one request under way: more than 16 for each of four replicas
REPLICAS = 4
PATIENCE = 900.0  # seconds that replicas have to come or to go
SETTLING = 10.0  # seconds of load before a fault, and after it has been mended
IMAGES_SCORED, PARTS = 4000, 40
CLIENTS = 4  # of `awnet.AsyncClient`


async def scale(folder: Path) -> dict[str, Any]:
    """One replica, load for four of them until they answer, then next to none until one is left."""
    with RayCluster(folder, 2, 2) as cluster, RayServe(folder, REPLICAS, 1, cluster) as server:
        server.wait_ready()
        phases: dict[str, Any] = {}
        began = time.monotonic()
        watching = Answering(server)
        async with loaded(server.port, keeping=CALLERS, opening=0, pause=0.0) as load:
            reached = {}
            for wanted in range(1, REPLICAS + 1):
                await until(partial(watching.answer, wanted), PATIENCE, 0.1)
                reached[wanted] = time.monotonic() - began
            phases["up"] = of_load(load, began, time.monotonic())
            at = time.monotonic()
            await asyncio.sleep(SETTLING)
            phases["all"] = of_load(load, at, time.monotonic())
        where = {number: len(pids) for number, pids in cluster.below(REPLICA).items()}
        began, left = time.monotonic(), {}
        async with loaded(server.port, keeping=1, opening=1, pause=0.2) as load:
            for wanted in range(REPLICAS - 1, 0, -1):
                await until(partial(fewer, server, wanted), PATIENCE, 0.1)
                left[wanted] = time.monotonic() - began
            await asyncio.sleep(SETTLING)
            phases["down"] = of_load(load, began, time.monotonic())
    return {
        "callers": CALLERS,
        "replicas": REPLICAS,
        "replicas_by_node": where,
        "answering_after_seconds": reached,
        "left_after_seconds": left,
        "phases": phases,
    }


async def node(folder: Path) -> dict[str, Any]:
    """Four replicas on three nodes; all processes of one that is not the head are killed at once.

    No other node comes; those that are left have the cores for its replicas. Half of the callers open a connection for
    each request; beside them callers use `awnet.AsyncClient`, which tries again.
    """
    with RayCluster(folder, 2, 2, 2) as cluster, RayServe(folder, REPLICAS, None, cluster) as server:
        server.wait_ready()
        watching = Answering(server)
        where = cluster.below(REPLICA)
        victim = max(range(1, len(where)), key=lambda number: len(where[number]))
        async with loaded(server.port) as load, clients(server.url) as trying:
            await until(lambda: watching.answer(REPLICAS), PATIENCE, 0.1)
            await asyncio.sleep(SETTLING)
            before = set(server.pids())
            flying, at = load.flying, time.monotonic()
            cluster.nodes[victim].kill()
            gone = before - set(server.pids())
            await until(lambda: len(set(server.pids())) == REPLICAS and watching.answer(REPLICAS), PATIENCE, 0.1)
            back = time.monotonic() - at
            await asyncio.sleep(SETTLING)
            ended = time.monotonic()
        lost = [s for s in load.samples if s.outcome != "ok" and s.ended >= at]
        return {
            "replicas": REPLICAS,
            "nodes": len(where),
            "replicas_killed": len(gone),
            "callers": load.keeping + load.opening,
            "under_way": flying,
            "before": of_load(load, at - SETTLING, at),
            "until_back": of_load(load, at, at + back),
            "after": of_load(load, at + back, ended),
            "failing_for_seconds": max((s.ended - at for s in lost), default=0.0),
            "longest_ms": 1000 * max(s.ended - s.begun for s in load.samples if s.ended >= at),
            "capacity_back_after_seconds": back,
            "clients": trying.summary(),
        }


def fewer(server: RayServe, wanted: int) -> bool:
    """Whether so many replicas are left, or less."""
    return len(server.pids()) <= wanted


class Answering:
    """Which replicas answer, by their ports of metrics."""

    def __init__(self, server: RayServe) -> None:
        self._server = server

    async def answer(self, count: int) -> bool:
        """Whether as many have answered a request of somebody."""
        ports = range(self._server.metrics_port, self._server.metrics_port + self._server.replicas)
        answered = await asyncio.gather(*(self._answers(port) for port in ports))
        return sum(answered) >= count

    async def _answers(self, port: int) -> bool:
        with suppress(OSError, EOFError, ValueError, TimeoutError):
            samples = exposition(await fetch(port, "/metrics"))
            return any(v > 0 for name, v in samples.items() if name.startswith("awnet_verdicts_total"))
        return False


@dataclass
class Trying:
    """What callers of `awnet.AsyncClient` have seen, tries again included."""

    samples: list[Sample] = field(default_factory=list)
    ending: bool = False

    def summary(self) -> dict[str, Any]:
        """Of all calls."""
        return {
            "callers": CLIENTS,
            "outcomes": dict(Counter(sample.outcome for sample in self.samples)),
            "longest_ms": 1000 * max(sample.ended - sample.begun for sample in self.samples),
        }

    async def call(self, client: awnet.AsyncClient, number: int) -> None:
        right: dict[int, tuple[str, float]] = {}
        for turn in itertools.count(number):
            if self.ending:
                return
            which, begun = turn % len(IMAGES), time.monotonic()
            try:
                result = await client.predict(IMAGES[which])
                answer = result.predictions[0].label, float(result.score or 0)
                label, score = right.setdefault(which, answer)
                outcome = "ok" if answer[0] == label and abs(answer[1] - score) <= TOLERANCE else "wrong"
            except awnet.Error as error:
                outcome = type(error).__name__
            self.samples.append(Sample(begun, time.monotonic(), outcome))
            await asyncio.sleep(0.02)


@asynccontextmanager
async def clients(url: str) -> AsyncIterator[Trying]:
    """Callers that try again, for the length of the block."""
    trying = Trying()
    async with awnet.AsyncClient(url) as client:
        tasks = [asyncio.create_task(trying.call(client, number)) for number in range(CLIENTS)]
        try:
            yield trying
        finally:
            trying.ending = True
            await asyncio.gather(*tasks)


def of_load(load: Load, since: float, until: float) -> dict[str, Any]:
    """What the callers saw of requests that ended in this time."""
    samples = [sample for sample in load.samples if since <= sample.ended < until]
    latency = [1000 * (sample.ended - sample.begun) for sample in samples if sample.outcome == "ok"]
    return {
        "seconds": until - since,
        "requests": len(samples),
        "outcomes": dict(Counter(sample.outcome for sample in samples)),
        "requests_a_second": len(latency) / (until - since),
        "p50_ms": quantile(latency, 0.5),
        "p99_ms": quantile(latency, 0.99),
    }


def scored(folder: Path, count: int = IMAGES_SCORED, cores: Sequence[int] = (1, 2, 2)) -> dict[str, Any]:
    """Images of noise scored on nodes, of which the second is killed, and by `awnet predict` in one process."""
    import pyarrow
    from pyarrow.parquet import read_table, write_table

    keys, in_part = [f"{number:06}" for number in range(count)], count // PARTS
    source, files = folder / "images.parquet", folder / "images"
    files.mkdir()
    images = [noise_png(32, number) for number in range(count)]
    for key, data in zip(keys, images, strict=True):
        (files / f"{key}.png").write_bytes(data)
    write_table(pyarrow.table({"image": images, "key": keys}), source, row_group_size=in_part)
    out, partial, expected = folder / "out", folder / "out.partial", folder / "expected.parquet"
    with predicting(folder, files, "--out", expected) as run:
        if run.popen.wait(PATIENCE):
            raise run.failure()

    with RayCluster(folder, *cores) as cluster:
        begun = time.monotonic()
        options = ["--engine", "ray", "--id-column", "key", "--part", str(in_part), "--address", cluster.address]
        with predicting(folder, source, *options, "--out", out) as run:

            def parts() -> int:
                return len(list(partial.glob("part-*")))

            eventually(lambda: not run.running or parts() > PARTS // 3, PATIENCE, "parts are there")
            there, scorers = parts(), cluster.below(SCORER)
            cluster.nodes[1].kill()
            killed = time.monotonic()
            status = run.popen.wait(PATIENCE)
            ended = time.monotonic()
        said = run.text().strip().splitlines()[-1]
    rows = read_table(out).to_pylist()
    rows_of = Counter(row["file"] for row in rows)
    right = {Path(row["file"]).stem: row for row in read_table(expected).to_pylist()}
    unlike = sum(not alike(row, right[row["file"]]) for row in rows)
    return {
        "images": count,
        "nodes": len(scorers),
        "scorers_by_node": {number: len(pids) for number, pids in scorers.items()},
        "parts_when_killed": there,
        "parts": len(list(out.glob("part-*"))),
        "status": status,
        "said": said,
        "seconds": ended - begun,
        "seconds_after_the_kill": ended - killed,
        "rows": len(rows),
        "ids_missing": len(set(keys) - rows_of.keys()),
        "ids_more_than_once": sum(number > 1 for number in rows_of.values()),
        "ids_of_no_image": len(rows_of.keys() - set(keys)),
        "without_answer": sum(row["error"] is not None for row in rows),
        "unlike_one_process": unlike,
        "in_order": [row["file"] for row in rows] == keys,
    }


def alike(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows say the same; scores differ in their last digits by what was in one batch."""
    numbers = {name for name, value in row.items() if isinstance(value, float) and isinstance(other[name], float)}
    same = all(row[name] == other[name] for name in row if name not in {"file", *numbers})
    return same and all(abs(row[name] - other[name]) <= TOLERANCE for name in numbers)


def predicting(folder: Path, *arguments: str | Path) -> Process:
    """`awnet predict` with a log in the folder."""
    command: Sequence[str | Path] = [sys.executable, "-m", "awnet", "predict", *arguments]
    return Process(command, folder / "predict.log", variables(folder) | JOINS)


def of_scale(found: dict[str, Any]) -> list[str]:
    callers, replicas = found["callers"], found["replicas"]
    up = ", ".join(f"{seconds:.0f}" for seconds in found["answering_after_seconds"].values())
    down = ", ".join(f"{count} after {seconds:.0f} s" for count, seconds in found["left_after_seconds"].items())
    names = {
        "up": f"{callers} callers, until {replicas} replicas answer",
        "all": f"{callers} callers, all replicas",
        "down": "2 callers who pause, until one replica is left",
    }
    return [
        f"Two nodes, 1 to {replicas} replicas. With {callers} callers who check each answer and do not pause, replicas "
        f"answered after {up} s ({_by_node(found['replicas_by_node'])}). With two callers who pause 200 ms, "
        f"of them were left: {down}.",
        "",
        *_phases({name: found["phases"][phase] for phase, name in names.items()}),
    ]


def of_node(found: dict[str, Any]) -> list[str]:
    names = {"before": "before", "until_back": "from the kill until all replicas are back", "after": "after"}
    failed = found["failing_for_seconds"]
    last = f"The last that failed ended {failed:.2f} s after the kill" if failed else "None failed"
    return [
        f"{found['replicas']} replicas on {found['nodes']} nodes; one node with {found['replicas_killed']} of them "
        f"killed by SIGKILL, with {found['under_way']} requests under way of {found['callers']} callers, who pause "
        f"20 ms and check each answer. {last}, the longest took {found['longest_ms']:.0f} ms; "
        f"{found['replicas']} replicas answered again after {found['capacity_back_after_seconds']:.0f} s, on the nodes "
        "that were left.",
        "",
        *_phases({name: found[phase] for phase, name in names.items()}),
        "",
        beside(found["clients"]),
    ]


def beside(found: dict[str, Any]) -> str:
    """What `Trying.summary` has."""
    return (
        f"{found['callers']} callers of `awnet.AsyncClient` beside them, from before any kill to the end: "
        f"{listed(found['outcomes'])}; the longest call took {found['longest_ms']:.0f} ms."
    )


def of_scored(found: dict[str, Any]) -> list[str]:
    counts = {
        "rows": "rows",
        "ids_missing": "ids missing",
        "ids_more_than_once": "more than once",
        "ids_of_no_image": "of no image",
        "without_answer": "without an answer",
        "unlike_one_process": "unlike one process",
    }
    return [
        f"{found['images']} images of noise in {found['parts']} parts; scorers: {_by_node(found['scorers_by_node'])}. "
        f"Node 1 was killed by SIGKILL when {found['parts_when_killed']} parts were there, and no other came. Status "
        f"{found['status']} after {found['seconds']:.0f} s, {found['seconds_after_the_kill']:.0f} s after the kill: "
        f"`{found['said']}`",
        "",
        f"| {' | '.join(counts.values())} | in the order of the source |",
        f"|{'--:|' * len(counts)}---|",
        f"| {' | '.join(str(found[name]) for name in counts)} | {'yes' if found['in_order'] else 'no'} |",
    ]


def _by_node(found: dict[int, int]) -> str:
    return ", ".join(f"{count} on node {number}" for number, count in found.items())


def _phases(phases: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        f"| {name} | {phase['seconds']:.0f} | {listed(phase['outcomes'])} | {phase['outcomes'].get('wrong', 0)} | "
        f"{phase['requests_a_second']:.0f} | {phase['p50_ms']:.0f} | {phase['p99_ms']:.0f} |"
        for name, phase in phases.items()
    ]
    header = "| when | seconds | outcomes | wrong | answers a second | p50, ms | p99, ms |"
    return [header, "|---|--:|---|--:|--:|--:|--:|", *rows]


def listed(outcomes: dict[str, int]) -> str:
    """How many requests ended in which way."""
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())


SECTIONS = {"scale": of_scale, "node": of_node, "scored": of_scored}
