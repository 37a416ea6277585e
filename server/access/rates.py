"""How much one client may ask: requests a second, and images in the queue at a time.

Rates are token buckets as a virtual schedule (GCRA, the generic cell rate algorithm of ITU-T I.371): a bucket is one
number, the time at which it would be full again. So all of them lie in a table of fixed size, which the workers of a
service share without a lock: two that write one bucket at the same moment let one request too many through.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ..errors import QueueShareTaken, RateLimited
from ..settings.settings import Settings
from .caller import Rate

SETS, WAYS = 8192, 8
TABLE_BYTES = SETS * WAYS * 16  # a million; memory that no client has touched is not there
LONGEST_SECONDS = 86_400  # of Retry-After
_SLOWEST = 1e9  # seconds for a request
_UNBOUNDED = nullcontext()


def default_rate(settings: Settings) -> Rate | None:
    """That of clients that have none of their own; None: no limit."""
    if not settings.requests_per_second:
        return None
    return Rate.of(settings.requests_per_second, settings.request_burst)


def shared_memory() -> int:
    """The descriptor of memory for the buckets of several processes."""
    descriptor = os.memfd_create("awnet-rates")
    os.ftruncate(descriptor, TABLE_BYTES)
    return descriptor


class Rates:
    """The buckets of all clients, as many as the table has room for.

    A client has its place in a set of eight by a keyed hash, so nobody can choose whose it is. Where a set is full, the
    bucket that is full again, or will be first, makes room: it has least to tell. A flood of addresses can so
    forget a client's debt early; it can neither grow the table nor make anybody wait.

    Args:
        default: see `default_rate`.
        memory: descriptor of `shared_memory`, None for this process alone.
        salt: of the hash, the same in all processes that share memory.
        clock: seconds, monotonic, the same in all of them.
    """

    def __init__(
        self,
        default: Rate | None,
        memory: int | None = None,
        salt: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._default = default
        self._salt = salt or secrets.token_bytes(16)
        self._clock = clock
        table = memoryview(mmap.mmap(-1 if memory is None else memory, TABLE_BYTES))
        self._tags = table[: TABLE_BYTES // 2].cast("Q")
        self._full_at = table[TABLE_BYTES // 2 :].cast("d")

    def charge(self, client: str, own: Rate | None, requests: int = 1, before: int = 0) -> None:
        """Take so many requests from the client's bucket.

        More than the bucket can ever hold are let through once it is full, and paid off afterwards: a request of many
        images is never impossible, and costs the same as many requests.

        Args:
            client: a key or an address, see `ObservedRequest.client`.
            own: its own rate.
            requests: how many; each further image of a request counts as one.
            before: of the same request, charged already.

        Raises:
            RateLimited: there are fewer; says when the whole request would be let through.
        """
        rate = own or self._default
        if rate is None or requests <= 0:
            return
        each = min(1 / rate.requests_per_second, _SLOWEST)
        now, at = self._clock(), self._place(client)
        full_at = max(self._full_at[at], now)
        latest = now + rate.burst * each
        if full_at + min(requests, rate.burst - before) * each > latest + 1e-9:
            late = full_at + min(requests + before, rate.burst) * each - latest
            raise RateLimited(
                f"this client may send {rate.requests_per_second:g} requests a second, {rate.burst} at once; "
                "each further image counts as one",
                math.ceil(min(max(late, 0.0), LONGEST_SECONDS)) or 1,
            )
        self._full_at[at] = full_at + requests * each

    def _place(self, client: str) -> int:
        """Where the client's bucket is, a full one where it had none."""
        tag = int.from_bytes(hashlib.blake2b(client.encode(), key=self._salt, digest_size=8).digest(), "big") or 1
        first = tag % SETS * WAYS
        tags = self._tags[first : first + WAYS].tolist()
        if tag in tags:
            return int(first + tags.index(tag))
        times = self._full_at[first : first + WAYS].tolist()
        at = int(first + times.index(min(times)))
        self._full_at[at], self._tags[at] = 0.0, tag
        return at


class QueueShares:
    """How many of the images that wait or run are one client's.

    Args:
        capacity: images that may wait or run.
        share: of them, of one client that has no share of its own; 1 is all.
    """

    def __init__(self, capacity: int, share: float) -> None:
        self._capacity = capacity
        self._share = share
        self._held: Counter[str] = Counter()

    def hold(self, client: str, images: int, own: float | None = None) -> AbstractContextManager[None]:
        """The client's images, until they are answered; where it holds none, one request is always let through.

        Raises QueueShareTaken on entering.
        """
        share = self._share if own is None else own
        return _UNBOUNDED if share >= 1 else self._counted(client, images, int(share * self._capacity))

    @contextmanager
    def _counted(self, client: str, images: int, most: int) -> Iterator[None]:
        held = self._held[client]
        if held and held + images > most:
            raise QueueShareTaken(f"this client may have {max(most, 1)} images waiting or running, and has {held}")
        self._held[client] += images
        try:
            yield
        finally:
            self._held[client] -= images
            if not self._held[client]:
                del self._held[client]
