"""The Triton engine: runs models in NVIDIA Triton servers over gRPC.

Contract and hash of a version come from the parameters of Triton's model configuration, and its tensors are compared
with the contract; nothing of that is configured here. Every address passes the golden self-test before it gets a
request. Triton alone loads and unloads models. `client` speaks gRPC, `balancer` chooses addresses, `health` probes
them, `runner` serves requests; this module opens versions and classifies failed executions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core import clock
from ...core.cpu_limits import usable_cores
from ...core.engine import Leisure, Model, Outputs
from ...core.modes import Mode
from ...errors import (
    AWNetError,
    ContractError,
    DeadlineExceeded,
    EngineFault,
    EngineUnavailable,
    ModelNotFound,
    QueueFull,
    SelfTestFailed,
    StartupError,
)
from .balancer import Address, Balancer, Key
from .client import CallError, Ready, TritonClient
from .health import HealthChecks, Peer
from .runner import NOTHING, Decoders, Description, RemoteRunner

STUCK_SECONDS = 1.0  # an execution that was given up after less than this says nothing about Triton

log = logging.getLogger("awnet.triton")


def parse_metadata(text: str) -> dict[str, str]:
    """`key=value,key=value` as gRPC metadata. Raises StartupError; the message holds no value."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key or not key.isascii() or key != key.lower() or key.endswith("-bin"):
            raise StartupError("metadata for Triton is key=value,key=value with lower-case keys")
        found[key.strip()] = value.strip()
    return found


class TritonEngine:
    """Serves the models of one or several Triton servers, the least loaded healthy one first.

    Args:
        urls: `host:port` of each Triton's gRPC service.
        tls: speak TLS; `ca` is a PEM file of the authority to trust, the system's where None.
        metadata: sent with every call.
        in_flight: most images at each Triton; further ones wait here.
        failures: consecutive failures that open the breaker of a Triton.
        probe_seconds: how often a probe tries to close an open breaker.
        silence_seconds: the breaker opens where heartbeats are not answered for this long.
        decode_threads: images decoded at the same time; 0 takes `cpu_limits.usable_cores()`.
        capacity: images that may be accepted and unanswered.
        on_state: called with (url, up) whenever a breaker opens or closes.
        patience_seconds: `start` waits this long for the first Triton.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        tls: bool = False,
        ca: Path | None = None,
        metadata: Mapping[str, str] | None = None,
        in_flight: int = 64,
        failures: int = 3,
        probe_seconds: float = 1.0,
        silence_seconds: float = 0.6,
        decode_threads: int = 0,
        capacity: int = 256,
        on_state: Callable[[str, bool], None] = lambda url, up: None,
        patience_seconds: float = 10.0,
    ) -> None:
        if not urls or any("://" in url or ":" not in url for url in urls) or len(set(urls)) < len(urls):
            raise StartupError("Triton's addresses are different host:port pairs, without a scheme")
        if ca is not None and not tls:
            raise StartupError("an authority for Triton's certificate is named, and TLS to Triton is off")
        self._ca = ca
        self._capacity = capacity
        self._on_state = on_state
        self._patience_seconds = patience_seconds
        self._runners: dict[Key, list[RemoteRunner]] = {}
        self._descriptions: dict[Key, Description] = {}  # of what is open
        self._arrivals = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._pending = 0
        self._fingerprint: object = None
        self._someone_came = asyncio.Event()
        self._peers = [Peer(url, TritonClient(url, tls=tls, ca=ca, metadata=metadata or {})) for url in urls]
        self.balancer = Balancer(self._peers, room=in_flight, failures=failures, on_state=self._state_changed)
        self.decoders = Decoders(decode_threads or usable_cores())
        self._health = HealthChecks(self.balancer, self, self._descriptions, probe_seconds, silence_seconds)

    async def start(self) -> None:
        """Connect, and wait for the first Triton that answers. Raises StartupError."""
        if self._ca is not None and not self._ca.is_file():
            raise StartupError(f"there is no certificate {self._ca}")
        for peer in self._peers:
            self._on_state(peer.url, False)
            self._tasks += [asyncio.create_task(check(peer)) for check in (self._health.tend, self._health.listen)]
        try:
            async with asyncio.timeout(self._patience_seconds):
                await self._someone_came.wait()
        except TimeoutError:
            why = "; ".join(f"{peer.url}: {peer.reasons.get(None, 'no answer')}" for peer in self._peers)
            await self.close()
            raise StartupError(f"no Triton answers ({why}); make triton starts one here") from None

    async def catalogue(self) -> Mapping[str, tuple[int, ...]]:
        """Versions that every Triton within reach has ready and whose contract and hash its configuration names."""
        described = await self._described()
        if described is None:
            raise StartupError("no Triton answers")
        found: dict[str, list[int]] = {}
        for ready, sha256 in described:
            if sha256:
                found.setdefault(ready.name, []).append(ready.version)
        return {name: tuple(versions) for name, versions in found.items()}

    async def fingerprint(self) -> object:
        """(name, version, hash, how often a Triton came in so far) of what is ready, or was when one answered last.

        A version that was refused may be right in the process that came in since.
        """
        described = await self._described()
        if described is not None:
            self._fingerprint = tuple((*ready, sha256, self._arrivals) for ready, sha256 in described)
        return self._fingerprint

    async def open(self, name: str, version: int, leisure: Leisure | None = None) -> RemoteRunner:
        """Read and check one version at every Triton within reach, and have each prove the golden values.

        Raises:
            ModelNotFound: no Triton has it ready.
            ContractError: it is not described, or its tensors are not those of its contract.
            SelfTestFailed: every Triton that has it answers with wrong values.
            EngineUnavailable, DeadlineExceeded: no Triton answers; nothing is known against the version.
        """
        wanted, peers = Ready(name, version), self._reachable()
        if not peers:
            raise EngineUnavailable("no Triton answers")

        async def look(peer: Peer) -> Description | AWNetError:
            try:
                return await peer.client.describe(wanted)
            except AWNetError as error:
                return error

        answers = await asyncio.gather(*map(look, peers))
        found = next((answer for answer in answers if isinstance(answer, Description)), None)
        if found is None:
            raise _gravest([answer for answer in answers if isinstance(answer, AWNetError)])
        proofs = await asyncio.gather(*(self._health.prove(peer, found) for peer in peers))
        if None not in proofs:
            raise _gravest([proof for proof in proofs if proof is not None])
        runner = RemoteRunner(self, found)
        self._descriptions[found.key] = found
        self._runners.setdefault(found.key, []).append(runner)
        for peer, proof in zip(peers, proofs, strict=True):
            if proof is None and peer.state == "up":
                self.balancer.bring_in(peer, {*peer.serves, runner.key})
            elif peer.state == "proving":
                peer.nudge.set()
        return runner

    def waiting(self) -> int:
        return self._pending

    def up(self) -> bool:
        return self.balancer.up()

    async def close(self) -> None:
        """Stop sending, then close the channels: a Triton that ends waits for those to close."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(*(peer.client.close() for peer in self._peers))
        self.decoders.close()

    # For runners.

    def admit(self, images: int, anyway: bool = False) -> None:
        """Count a request in; raises QueueFull, unless it is let in `anyway`."""
        # A request larger than the whole queue is let in when nothing else is, or it could never be answered.
        if self._pending and not anyway and self._pending + images > self._capacity:
            raise QueueFull(f"{self._pending} images are waiting; try again shortly")
        self._pending += images

    def dismiss(self, images: int) -> None:
        self._pending -= images

    def forget(self, runner: RemoteRunner) -> None:
        """The runner is closed; without another on the same model, addresses are no longer tested with that."""
        others = self._runners.get(runner.key, [])
        if runner in others:
            others.remove(runner)
        if not others:
            self._runners.pop(runner.key, None)
            self._descriptions.pop(runner.key, None)
            for peer in self._peers:
                peer.serves.discard(runner.key)

    async def call(
        self,
        address: Address,
        key: Key,
        model: Model,
        mode: Mode,
        images: NDArray[np.uint8],
        seconds: float,
        metadata: Mapping[str, str] = NOTHING,
    ) -> Outputs:
        """Execute at one Triton, and draw conclusions about it from how that ends."""
        assert isinstance(address, Peer)
        peer, started, begun = address, time.monotonic(), clock.now()
        task = asyncio.ensure_future(peer.client.infer(model, mode, images, seconds, metadata))
        peer.calls.add(task)
        try:
            outputs = await task
        except CallError as failed:
            raise self._interpret_failure(peer, key, failed, started, begun) from None
        except EngineFault as fault:
            self.balancer.failed(peer, fault.detail)
            raise
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():  # the deadline, or the client left
                self._gave_up(peer, started, begun)
                raise
            # Not us: the breaker opened under this call. Perhaps it was executed, so it is not sent elsewhere.
            raise EngineFault("the engine fell silent during this request") from None
        finally:
            peer.calls.discard(task)
        peer.has_answered()
        self.balancer.succeeded(peer)
        return outputs

    def _interpret_failure(self, peer: Peer, key: Key, failed: CallError, started: float, begun: float) -> AWNetError:
        """What a failed execution means for the address, and the error that means it to the client."""
        if failed.meaning == "late":
            self._gave_up(peer, started, begun)
            return DeadlineExceeded("the engine did not answer in time")
        if failed.meaning == "absent":
            self.balancer.withdraw(peer, key)
            return EngineUnavailable("the engine does not have this model ready")
        if failed.meaning in ("unreachable", "stopping", "busy"):
            if failed.meaning != "busy":
                self.balancer.take_out(peer, str(failed))
            return EngineUnavailable("the engine takes no requests")
        if failed.meaning == "broken":
            self._health.lost(peer)
        else:
            self.balancer.failed(peer, str(failed))
        log.warning("%s failed on %s: %s", peer.url, key, failed)
        return EngineFault("the model failed on this request")

    def _gave_up(self, peer: Peer, started: float, begun: float) -> None:
        """An execution was given up: a failure of the address, unless it answered another one meanwhile.

        Args:
            started, begun: when, on `time.monotonic` and on `clock.now`: a process that stands still hears nothing.
        """
        if clock.now() - begun >= STUCK_SECONDS and peer.answered < started:
            self.balancer.failed(peer, "no answer in time")

    def _state_changed(self, url: str, up: bool) -> None:
        if up:
            self._arrivals += 1
            self._someone_came.set()
        self._on_state(url, up)

    # Asking about models.

    def _reachable(self) -> list[Peer]:
        return [peer for peer in self._peers if peer.state != "down"]

    async def _described(self) -> list[tuple[Ready, str]] | None:
        """What every Triton within reach has ready, with its hash ('' where it is no AW-Net); None if none answers."""

        async def ready(peer: Peer) -> set[Ready] | None:
            with contextlib.suppress(CallError):
                return await peer.client.ready()
            return None

        answers = await asyncio.gather(*map(ready, self._reachable()))
        found = [answer for answer in answers if answer is not None]
        if not found:
            return None
        return [(version, await self._hash(version)) for version in sorted(set.intersection(*found))]

    async def _hash(self, ready: Ready) -> str:
        for peer in self._reachable():  # the first that answers is believed, as in `open`
            with contextlib.suppress(CallError):
                return await peer.client.sha256(ready)
        return ""


def _gravest(errors: Sequence[AWNetError]) -> AWNetError:
    """What is known against a version comes before what may pass."""
    for kind in (ContractError, SelfTestFailed, ModelNotFound):
        for error in errors:
            if isinstance(error, kind):
                return error
    return errors[0]
