"""How fast new connections are taken: of one client and in all, so that setting them up never takes the whole loop.

A connection over TLS costs the event loop half a millisecond and more (`benchmarks/results/handshakes.md`), whether a
request follows or not. One that comes too soon waits for its turn before anything is done for it; where its turn is too
far away it is closed. So who opens one after the other is slowed and never refused. A virtual schedule (GCRA), as in
`access.rates`. Connections that came while the process stood still had their turns meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..access.addresses import TrustedProxies, client_of
from ..core.clock import stood_still

WAIT_SECONDS = 1.0  # for its turn, at most
BURST_SECONDS = 1.0  # that many at once, of what the rate allows
SWEEP_CLIENTS = 4096  # in the table when those that owe nothing are dropped


class Pace:
    """Of the new connections of one port.

    Args:
        rate: connections a second in all; 0 is no limit.
        rate_per_client: of them, of one IPv4 address or IPv6 /64; 0 is no limit.
        proxies: their connections are many clients', so that the rate of one is not theirs.
        on_refusal: told of each connection that is to be closed.
        clock: seconds, monotonic.
        stood_still: of these, how many the process stood still.
    """

    def __init__(
        self,
        rate: float,
        rate_per_client: float,
        proxies: TrustedProxies,
        on_refusal: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        stood_still: Callable[[], float] = stood_still,
    ) -> None:
        self._each = 1 / rate if rate else 0.0
        self._each_of_client = 1 / rate_per_client if rate_per_client else 0.0
        self._proxies = proxies
        self._on_refusal = on_refusal
        self._clock = clock
        self._stood_still, self._known = stood_still, stood_still()
        self._missed, self._missed_until = 0.0, 0.0  # seconds whose connections come until then
        self._full_at = 0.0  # when as many may come at once again
        self._full_at_of: dict[str, float] = {}

    def wait(self, address: str) -> float | None:
        """Seconds until a new connection's turn; None where it is to be closed, and then it does not count."""
        now, stood_still = self._clock(), self._stood_still()
        if stood_still > self._known:
            self._missed, self._missed_until = stood_still - self._known, now + WAIT_SECONDS
            self._known = stood_still
        begin = now - self._missed if now < self._missed_until else now
        all_of, one_of = max(self._full_at, begin), 0.0
        client = None
        if self._each_of_client and not (self._proxies and self._proxies.trusts(address)):
            client = client_of(address)
            one_of = max(self._full_at_of.get(client, begin), begin)
        wait = max(all_of, one_of) - now - BURST_SECONDS
        if wait > WAIT_SECONDS:
            self._on_refusal()
            return None
        if self._each:
            self._full_at = all_of + self._each
        if client is not None:
            self._full_at_of[client] = one_of + self._each_of_client
            if len(self._full_at_of) > SWEEP_CLIENTS:
                self._full_at_of = {of: full for of, full in self._full_at_of.items() if full > now}
        return max(0.0, wait)
