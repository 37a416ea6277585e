"""Health checks of Triton servers: heartbeats, and the golden self-test of every open version at every address.

An address is tested at the start, after each lost connection, and every few seconds from then on; its breaker stays
open until it passes. `balancer` keeps the outcome, `engine` uses the same test to open a version.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping

from ...core import clock
from ...core.engine import Terms, self_test
from ...errors import AWNetError, ContractError, DeadlineExceeded, SelfTestFailed
from .balancer import Address, Balancer, Key
from .client import CallError, Ready, TritonClient
from .runner import At, Description, Host

HEARTBEAT_SECONDS = 0.2  # a stopped Triton is noticed within this and `silence_seconds`, whatever a request may take
PROBE_EVERY_SECONDS = 5.0  # how often an address proves its values again, and is asked for versions that it had not
QUIET_SECONDS = 2.0  # a busy Triton that misses a probe is believed for this long after its last sign of life
PROOF_SECONDS = 20.0  # longest wait for golden values

log = logging.getLogger("awnet.triton")


class Peer(Address):
    """A Triton and the one gRPC channel to it."""

    def __init__(self, url: str, client: TritonClient) -> None:
        super().__init__(url)
        self.client = client
        self.nudge = asyncio.Event()  # set to have the address looked at now
        self.reasons: dict[Ready | None, str] = {}  # what was logged last, so that it is logged once
        self._heard = self._answered = float("-inf")

    @property
    def heard(self) -> float:
        """When the last sign of life came, on `time.monotonic`."""
        return self._heard

    @property
    def answered(self) -> float:
        """When the last execution was answered, on `time.monotonic`."""
        return self._answered

    def lives(self) -> None:
        """A sign of life came."""
        self._heard = time.monotonic()

    def has_answered(self) -> None:
        """An execution was answered, which is a sign of life as well."""
        self._heard = self._answered = time.monotonic()


class HealthChecks:
    """Checks addresses, each with two tasks for the life of the engine: `tend` and `listen`.

    Args:
        balancer: opens and closes the breakers.
        host: executes the self-tests.
        open_versions: versions that an address has to pass with; follows every change.
        probe_seconds: how often a probe tries to close an open breaker.
        silence_seconds: the breaker opens where heartbeats are not answered for this long.
    """

    def __init__(
        self,
        balancer: Balancer,
        host: Host,
        open_versions: Mapping[Key, Description],
        probe_seconds: float,
        silence_seconds: float,
    ) -> None:
        self._balancer = balancer
        self._host = host
        self._open_versions = open_versions
        self._probe_seconds = probe_seconds
        self._silence_seconds = silence_seconds

    async def tend(self, peer: Peer) -> None:
        """Heartbeats and probes while the address is up, half-open probes while it is not; for ever."""
        probed, first = 0.0, True
        while True:
            if peer.state != "proving" and not first:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_SECONDS if peer.state == "up" else self._probe_seconds):
                        await peer.nudge.wait()
            first = False
            peer.nudge.clear()
            try:
                if peer.state == "up" and time.monotonic() - probed < PROBE_EVERY_SECONDS:
                    await self._heartbeat(peer)
                else:
                    await self._probe(peer)
                    probed = time.monotonic()
            except Exception as error:  # a fault of ours must not end the watch: the address is tried again
                log.exception("looking at %s failed in an unforeseen way", peer.url)
                self._balancer.take_out(peer, str(error))

    async def listen(self, peer: Peer) -> None:
        """Suspect the address whenever its connection changes; for ever."""
        await peer.client.on_connection_lost(lambda: self.lost(peer))

    def lost(self, peer: Peer) -> None:
        """The connection was lost: the address has to pass the self-test again before it serves."""
        self._balancer.suspect(peer)
        peer.nudge.set()

    async def _heartbeat(self, peer: Peer) -> None:
        """Ask for a sign of life; silence opens the breaker, long before a request's own deadline would."""
        started = time.monotonic()
        try:
            await peer.client.live(self._silence_seconds)
            peer.lives()
        except CallError as failed:
            if failed.meaning != "late":
                self._balancer.take_out(peer, str(failed))
            # An answer to a request is a sign of life as well; and where our own process stood still, so did its clock.
            elif peer.heard < started and time.monotonic() - started < 2 * self._silence_seconds:
                self._balancer.take_out(peer, f"silent for {self._silence_seconds} s")

    async def _probe(self, peer: Peer) -> None:
        """Test every open version at the address; its breaker closes for those that pass, or opens."""
        try:
            await peer.client.live(self._silence_seconds)
        except CallError as failed:
            busy = failed.meaning == "late" and peer.heard > time.monotonic() - QUIET_SECONDS
            if not (peer.state == "up" and busy):
                self._say(peer, None, str(failed))
                self._balancer.take_out(peer, str(failed))
            return
        epoch, asked, serves = peer.epoch, dict(self._open_versions), set[Key]()
        for key, described in asked.items():
            fault = await self.prove(peer, described)
            # While it is up, an answer that only came too late proves nothing against what it proved before.
            if fault is None or (isinstance(fault, DeadlineExceeded) and key in peer.serves):
                serves.add(key)
        serves |= peer.serves - asked.keys()  # opened meanwhile
        serves &= self._open_versions.keys()
        if peer.epoch != epoch:
            peer.nudge.set()  # the connection changed meanwhile: what was proven is void
        elif serves or not self._open_versions:
            peer.reasons.pop(None, None)
            self._balancer.bring_in(peer, serves)
        else:
            self._say(peer, None, "serves none of the open versions")
            self._balancer.take_out(peer, "it serves none of the open versions rightly")

    async def prove(self, peer: Peer, wanted: Description) -> AWNetError | None:
        """Whether `peer` has this very model and computes its golden values; None, or what is wrong."""
        ready = Ready(wanted.key.name, wanted.key.version)
        fault: AWNetError
        try:
            described = await peer.client.describe(ready)
            if described.key != wanted.key:
                raise ContractError(f"serves another model as {wanted.key}: SHA-256 {described.key.sha256}")
            await self_test(At(self._host, peer, wanted), Terms(clock.now() + PROOF_SECONDS))
        except SelfTestFailed as error:
            fault = error.__cause__ if isinstance(error.__cause__, DeadlineExceeded) else error
        except AWNetError as error:
            fault = error
        else:
            peer.reasons.pop(ready, None)
            return None
        self._say(peer, ready, fault.detail)
        return fault

    def _say(self, peer: Peer, ready: Ready | None, reason: str) -> None:
        """Log why an address or version is not used, once for each reason."""
        if peer.reasons.get(ready) != reason:
            peer.reasons[ready] = reason
            what = f" for {ready.name} version {ready.version}" if ready else ""
            log.warning("%s is not used%s: %s", peer.url, what, reason)
