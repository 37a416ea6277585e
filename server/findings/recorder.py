"""The thread that puts observations together and writes what they amount to: nobody who answers waits for a disk.

A finding whose first image was answered is in the journal some milliseconds later. Its counts are written once a
window: where the process is killed, what came since is not counted, and the next process that takes the chain closes
the finding and says so.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .coalescing import Coalescer
from .finding import Activity, Finding, Kind, Observation
from .journal import Journal
from .ocsf import document
from .quarantine import Quarantine
from .reading import left_open

TICK_SECONDS = 0.5
SYNC_SECONDS = 1.0
WAITING = 10_000  # observations that the thread has not taken yet
WAITING_BYTES = 64 << 20  # of images among them
HELD_BYTES = 32 << 20  # of images that are kept once their findings are told of
PENDING_BYTES = 4 << 20  # of lines that a full disk does not take
CLOSE_SECONDS = 5.0

log = logging.getLogger("awnet.findings")


class Recorder:
    """Observations in, events in the journal out.

    Args:
        journal: for this thread alone, once `start` was called.
        window: seconds, see `Coalescer`.
        counted: called for each event that is in the journal, or will be once a full disk takes it.
        lost: called with the number of observations, or of events, that there was no room for.
        quarantine: keeps the image of each event; started and stopped with this.
    """

    def __init__(
        self,
        journal: Journal,
        window: float,
        counted: Callable[[Kind, Activity], None] = lambda kind, activity: None,
        lost: Callable[[int], None] = lambda number: None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self._journal = journal
        self._quarantine = quarantine
        self._coalescer = (
            Coalescer(window, most_held=HELD_BYTES, dropped=quarantine.lost)
            if quarantine is not None and quarantine.keeps
            else Coalescer(window)
        )
        self._counted, self._lost = counted, lost
        self._queue: queue.SimpleQueue[tuple[float, Observation] | dict[str, Any] | None] = queue.SimpleQueue()
        self._written: list[dict[str, Any]] = []  # events of others, to be written as they are
        self._bytes = 0  # of images that wait; written by both sides under the lock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failing = False
        self._synced = time.monotonic()

    def start(self) -> None:
        """Begin to write."""
        if self._quarantine is not None:
            self._quarantine.start()
        self._thread = threading.Thread(target=self._run, name="findings", daemon=True)
        self._thread.start()

    def see(self, seen: Sequence[Observation]) -> None:
        """Take these; never waits."""
        now = time.monotonic()
        for one in seen:
            size = 0 if one.image is None or one.image.data is None else len(one.image.data)
            if self._queue.qsize() >= WAITING or self._bytes + size > WAITING_BYTES:
                self._lost(1)
                continue
            if size:
                with self._lock:
                    self._bytes += size
            self._queue.put((now, one))

    def write(self, event: dict[str, Any]) -> None:
        """Write an event that is made already."""
        self._queue.put(event)

    def stop(self) -> None:
        """Close what is open and write it; the last call. Blocks for some seconds at most."""
        if self._thread is None:
            self._journal.close()
            return
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)
        self._thread = None
        if self._quarantine is not None:
            self._quarantine.stop()

    def _run(self) -> None:
        try:
            left = list(left_open(self._journal.folder))
        except (OSError, KeyError, TypeError):  # lines that were made anew, with hashes, and are no events of ours
            log.exception("findings that were open in %s cannot be read, and are not closed", self._journal.folder)
            left = []
        self._write(left)
        for folder in self._journal.broken:
            log.error("the end of %s was changed; another chain goes on, `awnet verify-log` says where", folder)
        ticks = time.monotonic() + TICK_SECONDS
        while True:
            found, ends = self._wait(ticks)
            now = time.monotonic()
            if now >= ticks:
                ticks = now + TICK_SECONDS
                found += self._coalescer.tick(now, _utc())
            if ends:
                found += self._coalescer.end(_utc())
            taken = self._write([*(document(one) for one in found), *self._written])
            self._written.clear()
            for one in found if taken else ():
                self._counted(one.subject.kind, one.activity)
                if self._quarantine is not None and one.image is not None and one.image.data is not None:
                    self._quarantine.keep(str(one.image.sha256), one.image.data)
            if ends:
                self._journal.close()
                return

    def _wait(self, until: float) -> tuple[list[Finding], bool]:
        """What comes until then, or as soon as anything does, and whether it is the end."""
        found: list[Finding] = []
        try:
            first = self._queue.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return found, False
        for given in (first, *(self._queue.get() for _ in range(self._queue.qsize()))):  # nobody else takes any
            if given is None:
                return found, True
            if isinstance(given, dict):
                self._written.append(given)
                continue
            found += self._take(*given)
        return found, False

    def _take(self, at: float, seen: Observation) -> list[Finding]:
        findings = self._coalescer.see(seen, at)
        if seen.image is not None and seen.image.data is not None:
            with self._lock:
                self._bytes -= len(seen.image.data)
        return findings

    def _write(self, documents: list[dict[str, Any]]) -> bool:
        """Whether the journal has them, if only in memory until a full disk takes them."""
        taken = self._journal.pending_bytes <= PENDING_BYTES
        if not taken and documents:
            self._lost(len(documents))
            documents = []
        try:
            self._journal.append(documents)
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._synced = time.monotonic()
                self._journal.sync()
        except OSError as error:
            if not self._failing:
                log.critical("findings cannot be written to %s: %s", self._journal.folder, error.strerror)
            self._failing = True
            return taken
        if self._failing:
            log.warning("findings are written again to %s", self._journal.folder)
            self._failing = False
        return taken


def _utc() -> int:
    return time.time_ns() // 1_000_000
