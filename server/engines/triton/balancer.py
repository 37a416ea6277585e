"""Load balancing over an engine's addresses: the least loaded one that is up and has room gets the next images.

Each address has a circuit breaker. It opens (`take_out`) after consecutive failures, or at once where the connection
is refused; `health` closes it again (`bring_in`) after a successful probe. All bookkeeping is done on the event loop's
thread and needs no lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

from ...core.engine import PRIORITIES, Priority
from ...errors import EngineUnavailable

State = Literal["up", "proving", "down"]

log = logging.getLogger("awnet.triton")


class Key(NamedTuple):
    """One version of one model; another file under the same version is another key."""

    name: str
    version: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


class Address:
    """One server that executes requests.

    Attributes:
        state: 'up' takes requests. 'down' is an open circuit breaker. 'proving' follows a lost connection, until a
            probe
            has shown which process answers there now: requests wait for the outcome.
        serves: versions that passed the golden self-test over the present connection.
        load: images in flight there.
        epoch: changes whenever an answer may come from another process than the one that was tested.
        settled: set where `state` is not 'proving'.
        calls: tasks that wait for an answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.state: State = "down"
        self.serves: set[Key] = set()
        self.load = 0
        self.failures = 0
        self.epoch = 0
        self.used = 0
        self.settled = asyncio.Event()
        self.settled.set()
        self.calls: set[asyncio.Task[Any]] = set()


class _Waiter(NamedTuple):
    key: Key
    images: int
    tried: Collection[Address]
    future: asyncio.Future[Address]


class Balancer:
    """Hands addresses out. Made and used on the thread of a running event loop.

    Args:
        addresses: all of them, down at first.
        room: most images at one address.
        failures: consecutive failures that open the breaker of an address.
        on_state: called with (url, up) whenever a breaker opens or closes.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        room: int,
        failures: int,
        on_state: Callable[[str, bool], None] = lambda url, up: None,
    ) -> None:
        self.addresses = tuple(addresses)
        self._room = room
        self._failures = failures
        self._on_state = on_state
        self._waiting: dict[Priority, deque[_Waiter]] = {priority: deque() for priority in PRIORITIES}
        self._turn = 0

    def up(self) -> bool:
        """Whether an address takes requests, or is being probed for it."""
        return any(address.state != "down" for address in self.addresses)

    async def acquire(
        self, key: Key, images: int, priority: Priority = "normal", tried: Collection[Address] = ()
    ) -> Address:
        """An address with room for `images`, waiting for one in order of arrival; to be given back by `release`.

        Raises EngineUnavailable where no address outside `tried` serves `key`.
        """
        future: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
        self._waiting[priority].append(_Waiter(key, images, tried, future))
        self._hand_out()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result(), images)  # handed over in the moment of giving up
            else:
                self._hand_out()  # the one behind may fit where this one did not
            raise

    def release(self, address: Address, images: int) -> None:
        address.load -= images
        self._hand_out()

    def succeeded(self, address: Address) -> None:
        address.failures = 0

    def failed(self, address: Address, why: str) -> None:
        """Count a failure; enough in a row take the address out."""
        address.failures += 1
        if address.failures >= self._failures:
            self.take_out(address, f"{address.failures} failures in a row, the last: {why}")

    def take_out(self, address: Address, why: str) -> None:
        """Open the breaker: nothing is sent there, and what waits for an answer from there stops waiting."""
        if address.state == "down":
            return
        log.warning("%s is taken out: %s", address.url, why)
        self._change(address, "down")
        for call in tuple(address.calls):
            call.cancel()
        self._on_state(address.url, False)

    def suspect(self, address: Address) -> None:
        """The connection was lost: hold requests back until it is known who answers there now."""
        if address.state == "up":
            self._change(address, "proving")

    def bring_in(self, address: Address, serves: Collection[Key]) -> None:
        """Close the breaker of an address where `serves` was proven."""
        known = address.state != "down"
        address.failures = 0
        address.state, address.serves = "up", set(serves)
        address.settled.set()
        if not known:
            log.info("%s is up", address.url)
            self._on_state(address.url, True)
        self._hand_out()

    def withdraw(self, address: Address, key: Key) -> None:
        """`key` is not served there any more."""
        address.serves.discard(key)
        self._hand_out()

    def _change(self, address: Address, state: State) -> None:
        address.state = state
        address.serves.clear()
        address.epoch += 1
        if state == "proving":
            address.settled.clear()
        else:
            address.settled.set()
        self._hand_out()

    def _hand_out(self) -> None:
        """Give addresses to those who wait, in order.

        What one waits for is not given to those behind it, or a request that needs much room would wait for ever.
        """
        blocked: set[Address] = set()
        usable = sum(address.state != "down" for address in self.addresses)
        for priority in PRIORITIES:
            queue, kept = self._waiting[priority], []
            while queue and (len(blocked) < usable or not usable):
                waiter = queue.popleft()
                if waiter.future.done():
                    continue
                able = [address for address in self.addresses if self._may_serve(address, waiter)]
                if not able:
                    waiter.future.set_exception(EngineUnavailable("no engine that serves this model answers"))
                    continue
                free = [address for address in able if address not in blocked and self._has_room(address, waiter)]
                if not free:
                    blocked.update(able)
                    kept.append(waiter)
                    continue
                address = min(free, key=lambda a: (a.load, a.used))
                self._turn += 1
                address.used = self._turn
                address.load += waiter.images
                waiter.future.set_result(address)
            queue.extendleft(reversed(kept))

    def _has_room(self, address: Address, waiter: _Waiter) -> bool:
        # More than the whole room is let in where nothing else is, or it could never be answered.
        return address.state == "up" and (not address.load or address.load + waiter.images <= self._room)

    @staticmethod
    def _may_serve(address: Address, waiter: _Waiter) -> bool:
        if address in waiter.tried:
            return False
        return address.state == "proving" or (address.state == "up" and waiter.key in address.serves)
