"""Takes the lines of a journal to receivers, each at least once and in the order of its chain.

The journal is the spool: a cursor beside each chain says how far a receiver has it, and moves after the receiver has
taken the lines. So a receiver that is down delays nobody and loses nothing that the journal still keeps, and after a
`kill -9` at most the lines of one call are sent again; each has an id, `metadata.uid`, to tell by.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import orjson

from .chain import chains, hold, read_line, segments

POLL_SECONDS = 0.5
BATCH_BYTES = 256 << 10
SEND_SECONDS = 10.0  # for one call, after which it has failed
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 60.0
LAST_SECONDS = 2.0  # for what is left when the process ends

Result = Literal["sent", "failed", "lost"]

log = logging.getLogger("awnet.findings")


class DeliveryError(Exception):
    """A receiver has not taken the lines; they are sent again.

    Attributes:
        pause_seconds: to wait before, if the receiver said so.
    """

    def __init__(self, message: str, pause_seconds: float | None = None) -> None:
        super().__init__(message)
        self.pause_seconds = pause_seconds


class Delivery(Protocol):
    """A receiver. `name` is that of its cursors, and a label of metrics."""

    @property
    def name(self) -> str: ...

    async def send(self, lines: Sequence[bytes]) -> None:
        """Have the receiver take these, JSON without ends of lines. Raises DeliveryError, OSError."""

    async def close(self) -> None:
        """The last call."""


class Cursor(NamedTuple):
    """How far a receiver has a chain: the next byte of a segment, and the number of the last line before."""

    segment: str = ""
    offset: int = 0
    sequence: int = 0


class Batch(NamedTuple):
    """Lines to send, where they end, and how many before them are no longer kept."""

    lines: list[bytes]
    end: Cursor
    lost: int


def next_batch(folder: Path, cursor: Cursor, max_bytes: int = BATCH_BYTES) -> Batch:
    """What follows in a chain: lines that are whole, one at least if there is one. Raises OSError."""
    lost = 0
    for path in segments(folder):
        if path.name < cursor.segment:
            continue
        offset = cursor.offset if path.name == cursor.segment else 0
        first = int(path.stem)
        if offset == 0 and first > cursor.sequence + 1:
            lost = first - cursor.sequence - 1
            cursor = cursor._replace(sequence=first - 1)
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(max_bytes)
            if data and b"\n" not in data:
                data += file.readline()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            continue
        lines, sequence = [], cursor.sequence
        for raw in whole.split(b"\n")[:-1]:
            line = read_line(raw)
            if line is not None:  # what is left of a torn one is for nobody
                lines.append(raw)
                sequence = line.link.sequence
        return Batch(lines, Cursor(path.name, offset + len(whole), sequence), lost)
    return Batch([], cursor, lost)


class Deliveries:
    """Sends every chain of a journal's folder that is this process's, or nobody's, to every receiver.

    Args:
        folder: of the journal.
        own: the chain that this process writes.
        receivers: each is served on its own: one that is down delays no other.
        counted: called with the receiver's name, the result and a number of lines.
    """

    def __init__(
        self,
        folder: Path,
        own: Path,
        receivers: Sequence[Delivery],
        counted: Callable[[str, Result, int], None] = lambda to, result, number: None,
    ) -> None:
        self._folder, self._own, self._receivers, self._counted = folder, own, receivers, counted
        self._tasks: list[asyncio.Task[None]] = []
        self._down: set[str] = set()
        self._ending = asyncio.Event()

    def start(self) -> None:
        """Begin to send, on the running loop."""
        self._tasks = [asyncio.create_task(self._serve(receiver)) for receiver in self._receivers]

    async def stop(self) -> None:
        """Send what is left where that takes no time, and end."""
        self._ending.set()  # what is under way is not sent twice
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=LAST_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.wait(self._tasks)
        for receiver in self._receivers:
            if self._tasks and receiver.name not in self._down:
                with contextlib.suppress(DeliveryError, OSError, TimeoutError):
                    async with asyncio.timeout(LAST_SECONDS):
                        while await self._round(receiver):
                            pass
            with contextlib.suppress(DeliveryError, OSError):
                await receiver.close()

    def waiting(self) -> dict[str, int]:
        """Receiver -> lines of this process's chain that it does not have."""
        paths = segments(self._own)
        return {receiver.name: _behind(paths, _read(self._own, receiver.name)) for receiver in self._receivers}

    async def _serve(self, receiver: Delivery) -> None:
        failures = 0
        while not self._ending.is_set():
            try:
                sent = await self._round(receiver)
                if failures:
                    log.warning("%s takes findings again", receiver.name)
                failures = 0
                self._down.discard(receiver.name)
                if not sent:
                    await self._pause(POLL_SECONDS)
            except (DeliveryError, OSError, TimeoutError) as error:
                if not failures:
                    log.error("%s does not take findings, they wait: %s", receiver.name, error or type(error).__name__)
                self._down.add(receiver.name)
                asked = error.pause_seconds if isinstance(error, DeliveryError) else None
                longest = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures, 10))
                failures += 1
                await self._pause(asked if asked is not None else longest * random.uniform(0.5, 1))  # noqa: S311
            except Exception:
                log.exception("delivery to %s failed in an unforeseen way; it goes on", receiver.name)
                await self._pause(MAX_PAUSE_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """So long, or until the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    async def _round(self, receiver: Delivery) -> bool:
        """One batch of each chain; whether there was any. Raises DeliveryError, OSError, TimeoutError."""
        sent = False
        for folder in await asyncio.to_thread(chains, self._folder):
            with _held(folder, self._own) as ours:
                if ours:
                    sent |= await self._batch(receiver, folder)
        return sent

    async def _batch(self, receiver: Delivery, folder: Path) -> bool:
        cursor = await asyncio.to_thread(_read, folder, receiver.name)
        batch = await asyncio.to_thread(next_batch, folder, cursor)
        if batch.end == cursor:
            return False
        if batch.lines:
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await receiver.send(batch.lines)
            except (DeliveryError, OSError, TimeoutError):
                self._counted(receiver.name, "failed", len(batch.lines))
                raise
            self._counted(receiver.name, "sent", len(batch.lines))
        await asyncio.to_thread(_keep, folder, receiver.name, batch.end)
        if batch.lost:  # once, however often the lines behind them were tried
            self._counted(receiver.name, "lost", batch.lost)
            log.error("%d findings were no longer kept before %s took them", batch.lost, receiver.name)
        return True


@contextmanager
def _held(folder: Path, own: Path) -> Iterator[bool]:
    """Whether nobody else writes or sends this chain, for as long as this lasts."""
    if folder == own:
        yield True
        return
    lock = hold(folder)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _read(folder: Path, name: str) -> Cursor:
    """The cursor of a receiver; the beginning where there is none that can be read."""
    try:
        return Cursor(**orjson.loads((folder / f"cursor-{name}").read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError):
        return Cursor()


def _keep(folder: Path, name: str, cursor: Cursor) -> None:
    path = folder / f"cursor-{name}"
    partial = path.with_suffix(".partial")
    with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, 0o640)) as file:
        file.write(orjson.dumps(cursor._asdict()))
    partial.replace(path)


def _behind(paths: Sequence[Path], cursor: Cursor) -> int:
    if not paths:
        return 0
    last = paths[-1]
    begin = cursor.offset if last.name == cursor.segment else 0
    with contextlib.suppress(FileNotFoundError), last.open("rb") as file:
        file.seek(begin)
        seen = max(cursor.sequence, int(last.stem) - 1) if begin else int(last.stem) - 1
        return seen + file.read().count(b"\n") - cursor.sequence
    return 0
