"""Counts flagged images for each client: the top list, in bounded memory, under salted hashes of their addresses."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

from ..access.addresses import client_of

MAX_CLIENTS = 256
HALF_LIFE_SECONDS = 3600.0
TOP = 20  # clients in a report


@dataclass
class Client:
    """One client in the list. The true count lies between `flagged - max_overcount` and `flagged`."""

    name: str
    flagged: int
    max_overcount: int


class TopClients:
    """The clients with the most flagged images: space-saving over salted hashes, constant work and memory.

    Method: A. Metwally et al., "Efficient computation of frequent and top-k elements in data streams", 2005.

    A client with more than 1 / `max_clients` of all flagged images is certainly in the list. Counts halve every
    `half_life` seconds, so that former clients leave it.
    """

    def __init__(
        self, max_clients: int = MAX_CLIENTS, half_life: float = HALF_LIFE_SECONDS, salt: bytes | None = None
    ) -> None:
        self._max_clients = max_clients
        self._half_life = half_life
        self._salt = salt or secrets.token_bytes(16)  # workers of one service share theirs
        self._clients: dict[str, Client] = {}
        self._by_count: dict[int, dict[str, None]] = {}
        self._least = 0
        self._halve_at = time.monotonic() + half_life
        self.total = 0

    def name(self, address: str) -> str:
        """The name of an address's client in the list: a keyed hash that means nothing outside this process's life."""
        return hashlib.blake2b(client_of(address).encode(), key=self._salt, digest_size=8).hexdigest()

    def flagged(self, address: str, now: float | None = None) -> None:
        """One flagged image from this address. `now` is on `time.monotonic`."""
        if (time.monotonic() if now is None else now) >= self._halve_at:
            self._halve()
        self.total += 1
        name = self.name(address)
        client = self._clients.get(name)
        if client is not None:
            self._move(client, client.flagged + 1)
        elif len(self._clients) < self._max_clients:
            client = self._clients[name] = Client(name, 0, 0)
            self._least = 1
            self._move(client, 1)
        else:
            evicted = next(iter(self._by_count[self._least]))
            client = self._clients.pop(evicted)
            count = client.flagged
            self._clients[name] = replacement = Client(name, count, count)
            del self._by_count[count][evicted]
            self._by_count[count][name] = None
            self._move(replacement, count + 1)

    def top(self, count: int = TOP) -> list[Client]:
        """Most flagged first."""
        return sorted(self._clients.values(), key=lambda client: (-client.flagged, client.name))[:count]

    @property
    def largest_share(self) -> float:
        """Share of the flagged images that one client sent for certain; 0 before the first."""
        if not self.total:
            return 0.0
        return max(client.flagged - client.max_overcount for client in self._clients.values()) / self.total

    def __len__(self) -> int:
        return len(self._clients)

    def _move(self, client: Client, count: int) -> None:
        before = self._by_count.get(client.flagged)
        if before is not None:
            before.pop(client.name, None)
            if not before:
                del self._by_count[client.flagged]
                if self._least == client.flagged:
                    self._least = count  # counts grow by one, so the next bucket is this one
        client.flagged = count
        self._by_count.setdefault(count, {})[client.name] = None

    def _halve(self) -> None:
        self._halve_at = time.monotonic() + self._half_life
        kept = [Client(c.name, c.flagged // 2, c.max_overcount // 2) for c in self._clients.values() if c.flagged > 1]
        self.total //= 2
        self._clients = {client.name: client for client in kept}
        self._by_count = {}
        for client in kept:
            self._by_count.setdefault(client.flagged, {})[client.name] = None
        self._least = min(self._by_count, default=0)
