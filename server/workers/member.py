"""The worker's side of the fleet: its link to the supervisor, and the messages over it.

A worker answers requests like a server of one process. What concerns the whole service goes through the supervisor:
metrics of all workers, admin calls to all of them, and the state that a worker takes over when it joins.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from ..errors import LinkLost, NotReady, StartupError
from ..monitoring.exposition import Counted, counted_by_all
from ..monitoring.snapshot import Snapshot, Total
from ..service.fleet import CarryOut
from ..service.service import Service
from .link import CALL_SECONDS, SNAPSHOT_EVERY_SECONDS, Link, error_of, received
from .load_table import LoadTable

log = logging.getLogger("awnet")


class Member:
    """This process as one of several workers: a `fleet.Fleet` whose other processes are behind the supervisor.

    Args:
        connected: socket to the supervisor.
        first: accept requests before the models are there, as a server of one process does: there is no other yet.
    """

    def __init__(self, connected: socket.socket, number: int, first: bool) -> None:
        self.number = number
        self.first = first
        self._connected = connected
        self._link = Link()
        self._snapshot: Callable[[], Snapshot] | None = None
        self._numbers = count()
        self._loaded = asyncio.Event()
        self._reporting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def attach(self, service: Service, accept: Callable[[], Awaitable[None]], leave: Callable[[], None]) -> None:
        """Open the link.

        Args:
            accept: begins to take requests; called when the models are as those of the other workers.
            leave: called where the supervisor is gone, once.
        """

        async def join(state: Any) -> None:
            if state is not None:
                await service.models.adopt(state)
            await accept()

        async def snapshot(body: Any) -> Any:
            return self._numbered()

        async def state(body: Any) -> Any:
            return service.models.state()

        async def operate(body: Any) -> Any:
            return await service.carry_out(body["do"], body["given"])

        async def reload(body: Any) -> None:
            await self._loaded.wait()
            service.reload_soon()

        async def others(body: Any) -> None:
            service.verdict_history.set_others({slot: counts for slot, counts in body})

        self._snapshot = service.snapshot
        await self._link.open(
            self._connected,
            {
                "join": join,
                "snapshot": snapshot,
                "state": state,
                "operate": operate,
                "reload": reload,
                "others": others,
            },
        )

        async def watch() -> None:
            await self._link.lost.wait()
            log.critical("the supervisor is gone: this worker leaves, too")
            leave()

        self._watching = asyncio.create_task(watch())

    def loaded(self) -> None:
        """The models have passed the self-test: ask to join, and send snapshots from now on."""
        self._loaded.set()
        self._reporting = asyncio.create_task(self._report())

    async def _report(self) -> None:
        self._link.notify("loaded")
        while True:
            self._link.notify("snapshot", self._numbered())
            await asyncio.sleep(SNAPSHOT_EVERY_SECONDS)

    def _numbered(self) -> dict[str, Any]:
        """A numbered snapshot of this worker's counts: messages may arrive in another order than they were sent."""
        assert self._snapshot is not None
        return replace(self._snapshot(), number=next(self._numbers)).to_json()

    async def stop(self) -> None:
        """Send the last snapshot and close the link."""
        for task in (self._reporting, self._watching):
            if task is not None:
                task.cancel()
        if self._snapshot is not None:
            with suppress(LinkLost):
                await self._link.ask("last", self._numbered())
        await self._link.close()

    async def counted(self, here: Counted) -> Counted:
        """The counts of all workers until now; this one is asked like the others. Raises LinkLost."""
        return counted_by_all(Total.from_json(await self._link.ask("totals")))

    async def operate(self, here: CarryOut, do: str, given: Sequence[Any]) -> dict[str, Any]:
        """Have all workers carry an operator's call out.

        Returns:
            What most of them answer, leases added up, and `workers`: whether each agrees, and what it says if not.

        Raises:
            AWNetError: as `Service.carry_out` where no worker could do it.
            StartupError: some could and some could not.
        """
        answers = await self._link.ask("operate", {"do": do, "given": given}, CALL_SECONDS)
        return _together(answers)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the supervisor gives to a worker.

    Attributes:
        settings: of the server, with this worker's share of threads, queue and Triton calls.
        sockets: listening, of all workers, by what the port is for.
        load_table: how many connections each worker has.
        rates: descriptor of the memory in which all workers have the clients' buckets.
        salt: of the clients' hashes, the same in all workers.
    """

    settings: dict[str, Any]
    member: Member
    sockets: Mapping[str, Sequence[socket.socket]]
    load_table: LoadTable
    rates: int
    salt: bytes


def receive_assignment(descriptor: int) -> Assignment:
    """The first message of the supervisor, over the socket of this number. Raises EOFError where it is gone."""
    connected = socket.socket(fileno=descriptor)
    given = received(connected)
    return Assignment(
        given["settings"],
        Member(connected, given["number"], given["first"]),
        {
            purpose: [socket.socket(fileno=number) for number in numbers]
            for purpose, numbers in given["sockets"].items()
        },
        LoadTable(given["load_table"], given["workers"], given["number"]),
        given["rates"],
        bytes.fromhex(given["salt"]),
    )


def _together(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One document of each worker's {"worker", "pid", and "result" or "problem": [slug, detail]}."""
    if not answers:
        raise NotReady("no worker serves at the moment")
    failed = [answer for answer in answers if "problem" in answer]
    if failed and len(failed) == len(answers):
        raise error_of(*failed[0]["problem"])
    if failed:
        problems = "; ".join(f"worker {answer['worker']}: {answer['problem'][1]}" for answer in failed)
        raise StartupError(
            f"{len(failed)} of {len(answers)} workers could not do it, the others have ({problems}); "
            "GET /admin/models says what each serves"
        )
    said = [json.dumps(_comparable(answer["result"]), sort_keys=True) for answer in answers]
    usual = Counter(said).most_common(1)[0][0]
    document: dict[str, Any] = dict(answers[said.index(usual)]["result"])
    document["models"] = [
        {
            **model,
            "versions": [
                {**version, "leases": _leases(answers, model["name"], version["version"])}
                for version in model["versions"]
            ],
        }
        for model in document["models"]
    ]
    document["closing"] = sum(answer["result"]["closing"] for answer in answers)
    if "changes" in document:
        changes = [change for answer in answers for change in answer["result"]["changes"]]
        document["changes"] = [change for place, change in enumerate(changes) if change not in changes[:place]]
    document["workers"] = [
        {"worker": answer["worker"], "pid": answer["pid"], "agrees": text == usual}
        | ({} if text == usual else {"says": answer["result"]})
        for answer, text in zip(answers, said, strict=True)
    ]
    return document


def _comparable(result: Mapping[str, Any]) -> dict[str, Any]:
    """A status without what differs between workers that agree."""
    models = [
        {**model, "versions": [{**version, "leases": 0} for version in model["versions"]]} for model in result["models"]
    ]
    return {**result, "models": models, "closing": 0, "changes": None}


def _leases(answers: Sequence[Mapping[str, Any]], name: str, version: str) -> int:
    return sum(
        int(entry["leases"])
        for answer in answers
        for model in answer["result"]["models"]
        if model["name"] == name
        for entry in model["versions"]
        if entry["version"] == version
    )
