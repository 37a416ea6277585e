"""Counts like images of each client and of all, tells of clients who repeat themselves, and slows those down.

Attacks on answers (Square, boundary attacks and their kind) ask about hundreds of images that hardly differ. The
evidence of a client is its own: nothing that others send adds to it or drives it out. Of all clients together only the
operator hears, so that no answer says what others asked.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..errors import RepeatedQueries
from .fingerprint import Fingerprint, Fingerprints
from .window import Exemplar, Window

Who = Literal["client", "all"]
WHO: tuple[Who, ...] = ("client", "all")

MAX_CLIENTS = 512
SUSPECTS = 384  # of them that have evidence against them; others are forgotten first
EVIDENCE = 8  # like images
CLIENT_EXEMPLARS = 128
ALL_EXEMPLARS = 1024
ALL_SHARE = 128  # of one client
ALL_LIMIT = 4  # times that of a client
FIRST_SECONDS, MOST_SECONDS = 0.25, 60.0  # between two repeated queries that are answered
DOUBLED_EVERY = 16  # repeated queries


class Repeats(NamedTuple):
    """What the guard says of one image: how many different images like it its client sent, and whether too many."""

    similar: int
    repeated: bool


class Event(NamedTuple):
    """Somebody passed the limit; `client` is None where it is all together.

    Attributes:
        images: different ones that are alike.
        clients: that sent them, about.
        seconds: in which they came, or twice as long.
        first_id, last_id: of the requests with the first and the last of them.
    """

    client: str | None
    images: int
    clients: int
    seconds: float
    first_id: str
    last_id: str


@dataclass(slots=True)
class _Client:
    """One client's images; `free` is when its next repeated query may be answered."""

    number: int
    window: Window
    most: int = 0
    free: float = -math.inf


class QueryGuard:
    """The guard of one process.

    Args:
        images: a client may send so many different ones that are alike.
        seconds: in so long.
        noise: levels, root mean square, that two images may be apart and yet count as one.
        tell: called once for each event.
    """

    def __init__(
        self, images: int, seconds: float, noise: float, tell: Callable[[Event], None] = lambda event: None
    ) -> None:
        self._images = images
        self._seconds = seconds
        self._noise = noise
        self._tell = tell
        self.fingerprints = Fingerprints()
        self._all = self._window(ALL_EXEMPLARS, ALL_SHARE, sketches=False)
        self._clients: OrderedDict[str, _Client] = OrderedDict()  # those without evidence, the last seen at the end
        self._suspects: OrderedDict[str, _Client] = OrderedDict()

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._clients) + len(self._suspects)

    def look(self, client: str, images: Sequence[Fingerprint], request_id: str, now: float) -> list[Repeats]:
        """Count the images of one request.

        Args:
            client: whose they are.
            images: made by `fingerprints` of what the model sees.
            now: seconds that never go back.
        """
        one = self._known(client)
        found = []
        for image in images:
            own = one.window.add(image, one.number, request_id, now)
            of_all = self._all.add(image, one.number, request_id, now)
            count = own.count
            one.most = max(one.most, count)
            if count > self._images and not own.told:
                self._report(own, client)
            if of_all.count > ALL_LIMIT * self._images and not of_all.told and of_all.askers.bit_count() > 1:
                self._report(of_all, None)
            found.append(Repeats(count, count > self._images))
        if one.most >= EVIDENCE and client in self._clients:
            self._suspect(client)
        return found

    def delay(self, client: str, found: Sequence[Repeats], now: float, deadline: float) -> float:
        """Seconds after which the answer to this request may leave.

        Answers to a client's repeated queries leave one after the other, at intervals that grow with their number;
        those to its other images never wait.

        Raises RepeatedQueries where that would be past `deadline`.
        """
        intervals = [self._interval(repeats.similar) for repeats in found if repeats.repeated]
        if not intervals:
            return 0.0
        one = self._known(client)
        leaves = max(one.free, now) + sum(intervals[:-1])
        if leaves > deadline:
            raise RepeatedQueries(
                "this client has asked about nearly the same image too often; others are answered",
                retry_after_seconds=math.ceil(max(1.0, one.free - now)),
            )
        one.free = leaves + intervals[-1]
        return leaves - now

    def _interval(self, similar: int) -> float:
        doublings = (similar - self._images) / DOUBLED_EVERY
        return float(min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(doublings, 30)))

    def _known(self, client: str) -> _Client:
        """What is remembered of `client`."""
        group = self._suspects if client in self._suspects else self._clients
        one = group.get(client)
        if one is None:
            number = self.fingerprints.number(client.encode())
            one = group[client] = _Client(number, self._window(CLIENT_EXEMPLARS))
            if len(self) > MAX_CLIENTS:
                self._clients.popitem(last=False)
        group.move_to_end(client)
        return one

    def _window(self, exemplars: int, share: int | None = None, sketches: bool = True) -> Window:
        return Window(exemplars, self._seconds, self._noise, self.fingerprints, share, sketches)

    def _suspect(self, client: str) -> None:
        """There is evidence against `client`."""
        self._suspects[client] = self._clients.pop(client)
        if len(self._suspects) > SUSPECTS:
            self._suspects.popitem(last=False)

    def _report(self, exemplar: Exemplar, client: str | None) -> None:
        exemplar.told = True
        askers = exemplar.askers.bit_count()
        self._tell(Event(client, exemplar.count, askers, self._seconds, exemplar.first_id, exemplar.last_id))
