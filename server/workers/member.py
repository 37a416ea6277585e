"""One server of several processes, as one of them sees it: the link to the supervisor, and what is said over it.

A worker answers requests like a server of one process. What concerns the whole service goes through the supervisor:
metrics of all workers, an operator's call to all of them, and the state that a worker takes over when it joins.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from ..errors import AWNetError, LinkLost, NotReady, StartupError

if TYPE_CHECKING:
    from ..service import Service

log = logging.getLogger("awnet")

TOLD_EVERY_SECONDS = 1.0  # also the most that a killed worker's counters and detection lose
ANSWER_SECONDS = 5.0
CALL_SECONDS = 600.0  # an operator's call may open models
_LENGTH = 4  # bytes before each message that say how long it is

Handler = Callable[[Any], Awaitable[Any]]


class Link:
    """Questions and answers over a connected Unix socket; either side may ask, several at a time.

    Args:
        handlers: what answers each kind of question; they are given its body. A handler that raises an AWNetError has
            it raised again where the question came from.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self.lost = asyncio.Event()

    async def open(self, connected: socket.socket) -> None:
        """Take the socket over and listen."""
        connected.setblocking(False)
        reader, self._writer = await asyncio.open_unix_connection(sock=connected)
        self._begin(self._read(reader))

    async def ask(self, what: str, body: Any = None, seconds: float = ANSWER_SECONDS) -> Any:
        """The other side's answer. Raises LinkLost, or the error that its handler raised."""
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"ask": number, "what": what, "body": body})
            return await asyncio.wait_for(future, seconds)
        except TimeoutError:
            raise LinkLost(f"no answer within {seconds:g} s") from None
        finally:
            del self._asked[number]

    def tell(self, what: str, body: Any = None) -> None:
        """Something that needs no answer; nothing happens where the link is lost."""
        with suppress(LinkLost):
            self._send({"what": what, "body": body})

    async def close(self) -> None:
        """Let go of the socket."""
        self.lost.set()
        for task in tuple(self._tasks):
            task.cancel()
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._writer is None or self.lost.is_set():
            raise LinkLost("the other process is gone")
        self._writer.write(packed(message))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
                message = json.loads(await reader.readexactly(length))
                if "what" in message:
                    self._begin(self._answer(message))
                elif (future := self._asked.get(message["answer"])) is not None and not future.done():
                    if "problem" in message:
                        future.set_exception(_error(*message["problem"]))
                    else:
                        future.set_result(message["body"])
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.lost.set()
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(LinkLost("the other process is gone"))

    async def _answer(self, message: Mapping[str, Any]) -> None:
        try:
            told: dict[str, Any] = {"body": await self._handlers[message["what"]](message["body"])}
        except AWNetError as error:
            told = {"problem": [error.slug, error.detail]}
        except Exception:
            log.exception("%s failed", message["what"])
            told = {"problem": [AWNetError.slug, "something went wrong here; the log has it"]}
        if "ask" in message:
            with suppress(LinkLost):
                self._send({"answer": message["ask"], **told})

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def packed(message: Mapping[str, Any]) -> bytes:
    """A message as it goes over the link."""
    data = json.dumps(message).encode()
    return len(data).to_bytes(_LENGTH, "big") + data


def received(connected: socket.socket) -> Any:
    """The first message, waited for without an event loop. Raises EOFError."""

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = connected.recv(size - len(data))
            if not part:
                raise EOFError("the supervisor is gone")
            data += part
        return data

    return json.loads(exactly(int.from_bytes(exactly(_LENGTH), "big")))


def _error(slug: str, detail: str) -> AWNetError:
    kinds = [AWNetError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return next(kind for kind in kinds if kind.slug == slug)(detail)


class Member:
    """This process as one of several workers.

    Args:
        connected: socket to the supervisor.
        first: accept requests before the models are there, as a server of one process does: there is no other yet.
    """

    def __init__(self, connected: socket.socket, number: int, first: bool) -> None:
        self.number = number
        self.first = first
        self._connected = connected
        self._link: Link | None = None
        self._loaded = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def attach(self, service: Service, accept: Callable[[], Awaitable[None]], leave: Callable[[], None]) -> None:
        """Open the link.

        Args:
            accept: begins to take requests; called when the models are as those of the other workers.
            leave: called where the supervisor is gone, once.
        """

        async def join(course: Any) -> None:
            if course is not None:
                await service.models.adopt(course)
            await accept()

        async def snapshot(body: Any) -> Any:
            return _snapshot(service)

        async def course(body: Any) -> Any:
            return service.models.course()

        async def operate(body: Any) -> Any:
            return await service.carry_out(body["do"], body["given"])

        async def reload(body: Any) -> None:
            await self._loaded.wait()
            service.reload_soon()

        async def elsewhere(body: Any) -> None:
            service.recent.elsewhere = {slot: counts for slot, counts in body}

        self._link = link = Link(
            {
                "join": join,
                "snapshot": snapshot,
                "course": course,
                "operate": operate,
                "reload": reload,
                "elsewhere": elsewhere,
            }
        )
        await link.open(self._connected)

        async def watch() -> None:
            await link.lost.wait()
            log.critical("the supervisor is gone: this worker leaves, too")
            leave()

        self._watching = asyncio.create_task(watch())

    def loaded(self, service: Service) -> None:
        """The models are proven: ask to be let in, and tell from now on how things are."""
        self._loaded.set()
        self._telling = asyncio.create_task(self._tell(service))

    async def _tell(self, service: Service) -> None:
        assert self._link is not None
        self._link.tell("loaded")
        while True:
            self._link.tell("snapshot", _snapshot(service))
            await asyncio.sleep(TOLD_EVERY_SECONDS)

    async def stop(self, service: Service) -> None:
        """Tell the last counts and close the link."""
        for task in (self._telling, self._watching):
            if task is not None:
                task.cancel()
        if self._link is not None:
            with suppress(LinkLost):
                await self._link.ask("last", _snapshot(service))
            await self._link.close()

    async def everything(self) -> Any:
        """`Totals.document` of all workers as they are now. Raises LinkLost."""
        assert self._link is not None
        return await self._link.ask("everything")

    async def everywhere(self, do: str, given: Sequence[Any]) -> dict[str, Any]:
        """Have all workers carry an operator's call out.

        Returns:
            What most of them answer, leases added up, and `workers`: whether each agrees, and what it says if not.

        Raises:
            AWNetError: as `Service.carry_out` where no worker could do it.
            StartupError: some could and some could not.
        """
        assert self._link is not None
        answers = await self._link.ask("operate", {"do": do, "given": given}, CALL_SECONDS)
        return _together(answers)


def _snapshot(service: Service) -> dict[str, Any]:
    return service.metrics.snapshot() | {"course": service.models.course(), "recent": service.recent.told()}


def _together(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One document of each worker's {"worker", "pid", and "result" or "problem": [slug, detail]}."""
    if not answers:
        raise NotReady("no worker serves at the moment")
    failed = [answer for answer in answers if "problem" in answer]
    if failed and len(failed) == len(answers):
        raise _error(*failed[0]["problem"])
    if failed:
        told = "; ".join(f"worker {answer['worker']}: {answer['problem'][1]}" for answer in failed)
        raise StartupError(
            f"{len(failed)} of {len(answers)} workers could not do it, the others have ({told}); "
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
