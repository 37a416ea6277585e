"""Many observations to few events: a finding is told of at once, then once a window while it goes on, then closed.

However many images an attacker sends, from however many addresses, the events are bounded: at most `MOST_OPEN` findings
are open at a time, each tells no more than three times a window, and a place is free again after a quiet window only.
Observations of a client for whom there is no place go into one finding of their kind and model that names no client.
Time is given, never asked for.
"""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .finding import MOST_SCORES, Activity, Finding, Image, Observation, Subject

MOST_OPEN = 256
MOST_COUNTED = 4096  # clients that a finding without one tells apart


@dataclass(slots=True)
class _Open:
    """A finding that goes on."""

    id: str
    first_time: int
    first_request_id: str | None
    window_ends: float
    last_time: int = 0
    last_request_id: str | None = None
    detail: str = ""
    count: int = 0
    reported: int = 0
    image: Image | None = None
    scores: list[float] = field(default_factory=list)  # a heap
    clients: set[tuple[str | None, str | None]] = field(default_factory=set)


class Coalescer:
    """The open findings of one process.

    Args:
        window: seconds, over 0.
        most: findings that are open at a time, those without a client aside.
        most_held: bytes of images that are held until their findings are told of again; 0 holds none. An event has the
            data of its image where no earlier one had it.
        dropped: called for each image that there was no room for.
    """

    def __init__(
        self, window: float, most: int = MOST_OPEN, most_held: int = 0, dropped: Callable[[], None] = lambda: None
    ) -> None:
        self._window = window
        self._most = most
        self._most_held, self._dropped = most_held, dropped
        self._held = 0
        self._open: dict[Subject, _Open] = {}

    def __len__(self) -> int:
        """Open findings."""
        return len(self._open)

    def see(self, seen: Observation, now: float) -> list[Finding]:
        """One observation, at `now` of a clock that never goes back; the first of a finding is told at once."""
        subject = seen.subject
        found = self._open.get(subject)
        if found is None and len(self._open) >= self._most:
            subject = subject._replace(client=None, key=None)
            found = self._open.get(subject)
        begins = found is None
        if found is None:
            found = self._open[subject] = _Open(uuid.uuid4().hex, seen.time, seen.request_id, now + self._window)
        found.last_time, found.last_request_id, found.detail = seen.time, seen.request_id, seen.detail
        found.count += seen.count
        if subject.client is None and subject.key is None and len(found.clients) < MOST_COUNTED:
            found.clients.add((seen.subject.client, seen.subject.key))
        if seen.image is not None:
            (heapq.heappush if len(found.scores) < MOST_SCORES else heapq.heappushpop)(found.scores, seen.image.score)
        if seen.image is not None and (found.image is None or seen.image.score > found.image.score):
            self._hold(found, seen.image, at_once=begins)
        return [self._tell(subject, found, "create", seen.time)] if begins else []

    def tick(self, now: float, time: int) -> list[Finding]:
        """What has to be told of windows that have ended by `now`; `time` is the same in UTC, milliseconds."""
        findings = []
        for subject, found in list(self._open.items()):
            if now < found.window_ends:
                continue
            found.window_ends = now + self._window
            if found.count > found.reported:
                findings.append(self._tell(subject, found, "update", time))
            else:
                findings.append(self._tell(subject, found, "close", time))
                del self._open[subject]
        return findings

    def end(self, time: int) -> list[Finding]:
        """The process ends: every open finding is closed, with what was not told yet."""
        findings = [self._tell(subject, found, "close", time) for subject, found in self._open.items()]
        self._open.clear()
        return findings

    def _hold(self, found: _Open, image: Image, at_once: bool) -> None:
        """This is the image with the highest score of `found` now; it is told of `at_once`, or held until then."""
        self._let_go(found)
        found.image = image.settled()
        if self._most_held and image.data is not None:
            if not at_once and self._held + len(image.data) > self._most_held:
                self._dropped()
                return
            found.image = replace(found.image, data=image.data)
            self._held += len(image.data)

    def _let_go(self, found: _Open) -> None:
        if found.image is not None and found.image.data is not None:
            self._held -= len(found.image.data)
            found.image = replace(found.image, data=None)

    def _tell(self, subject: Subject, found: _Open, activity: Activity, time: int) -> Finding:
        new, found.reported = found.count - found.reported, found.count
        image = found.image
        self._let_go(found)
        return Finding(
            *(found.id, subject, activity, time, found.first_time, found.last_time, found.count, new),
            *(found.first_request_id, found.last_request_id, image, found.detail, max(1, len(found.clients))),
            tuple(sorted(found.scores)),
        )
