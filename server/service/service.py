"""The core behind every front end: who may ask, which version answers, and the life of the process.

`/predict` and the Open Inference Protocol, over HTTP and gRPC, all go through `lease` and `run`, so that canary,
shadow, verdicts and metrics are the same for each of them. `answering` answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any

from ..access.access import Access, KeysRead
from ..access.addresses import TrustedProxies
from ..access.caller import Caller, Scope
from ..access.rates import Rates, default_rate
from ..core import clock
from ..core.cpu_limits import usable_cores
from ..core.decode_pool import DecodePool
from ..core.decoding import Decoding
from ..core.engine import Engine, Model, Priority, Terms
from ..core.images import ImageInput, Limits
from ..core.modes import Mode
from ..core.verdict import Verdict
from ..errors import (
    AWNetError,
    Forbidden,
    NotReady,
    QueueShareTaken,
    RateLimited,
    Unauthorized,
    UnknownFinding,
    UnknownMode,
    UnknownModel,
)
from ..findings.ocsf import Mark
from ..findings.reading import Found
from ..monitoring.detection import Monitor
from ..monitoring.detection_metrics import report
from ..monitoring.exposition import Counted, exposition, snapshot
from ..monitoring.golden_probe import GoldenProbes
from ..monitoring.guarding import Guarding
from ..monitoring.metrics import Metrics
from ..monitoring.reporting import Reporting
from ..monitoring.request import CURRENT, ObservedRequest, Requests, Telemetry
from ..monitoring.snapshot import Snapshot
from ..monitoring.verdict_history import VerdictHistory
from ..ports.listening import PortWatch, is_loopback
from ..settings.settings import Settings
from ..versions.events import Broadcast
from ..versions.models import Models
from ..versions.rollout import Lease
from .answer_cache import AnswerCache
from .answering import Answering
from .fleet import Fleet, SingleProcess
from .outcome import Outcome

log = logging.getLogger("awnet")

# Memory of a process that decodes: its libraries and code tables, and several copies of the largest image.
DECODER_BYTES, DECODER_BYTES_PER_PIXEL = 1 << 30, 16


class Service:
    """The models behind all front ends, their monitoring, and the life of the process.

    Args:
        engine: not started; `start` and `stop` start and close it.
        metrics: those that the engine reports its batches to.
        monitor: watches verdicts, scores and omega; `metrics` exports it.
        fleet: the processes behind this port; default: this one alone.
        rates: shared with them; default: those of this process alone.
        telemetry: sends spans, metrics and log lines elsewhere, if anything does; started and stopped here.

    Raises:
        StartupError: see `Access`; or findings cannot be written.

    Attributes:
        access: who asks; front ends set the `caller` of each request by it.
        models: the open versions and their roles.
        ports: those of this process, on which readiness hangs.
        proxies: those that may name a request's client.
        requests: counts and logs each request of the front ends.
        verdict_history: verdicts of the last minutes, for the page.
        failure: the error that ends the process, if any.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        metrics: Metrics,
        monitor: Monitor,
        fleet: Fleet | None = None,
        rates: Rates | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self.monitor = monitor
        self._policies = settings.decides
        self.access = Access(settings, self._keys_read)
        if self.access.by_keys:
            metrics.expect_keys()
        if self.access.by_keys or settings.requests_per_second:
            metrics.expect_rejections(RateLimited)
        if self.access.by_keys or settings.queue_share < 1:
            metrics.expect_rejections(QueueShareTaken)
        self.proxies = TrustedProxies(settings.trusted_networks, settings.forwarded_header)
        self._rates = rates or Rates(default_rate(settings))
        self._telemetry = telemetry
        self.requests = Requests(metrics, monitor.clients, tracing=telemetry)
        self.ports = PortWatch()
        self.limits = Limits(settings.max_pixels, settings.min_side)
        self.decoding = _decoding(settings, engine, metrics)
        self.models = Models(
            engine,
            default=settings.model,
            others=settings.further_models,
            pinned=settings.pinned,
            kept=settings.versions_kept,
            canary=settings.canary_split,
            shadow=settings.shadow_version,
            events=Broadcast(metrics, metrics.rollout, monitor),
            capacity=settings.queue_capacity,
            mode=settings.mode,
        )
        self.verdict_history = VerdictHistory()
        self._reporting = Reporting.of(settings, metrics, monitor, telemetry.receivers() if telemetry else ())
        repeated = None if self._reporting is None else self._reporting.repeated
        self._cache = cache = AnswerCache.of(settings)
        if cache is not None:
            metrics.engine.follow_answers(cache.__len__, lambda: cache.held_bytes)
        self._answering = Answering(
            *(settings, engine, self.decoding, self._rates, metrics, monitor, self.verdict_history, self._reporting),
            *(Guarding.of(settings, metrics, monitor.clients, repeated), cache),
        )
        self._draining_since: float | None = None
        self.failure: AWNetError | None = None
        self._fleet = fleet or SingleProcess()
        self._polling: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._clock: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._again = False
        metrics.engine.follow_decoding(self.decoding.pool)
        self._expect_decisions()
        metrics.engine.follow(
            lambda: self.models.ready and engine.up(), lambda: engine.waiting() + self.decoding.pool.waiting
        )

    @property
    def draining(self) -> bool:
        """Readiness is off, requests are still answered."""
        return self._draining_since is not None

    @property
    def ready(self) -> bool:
        """Readiness: the models have passed the self-test, the engine is up, ports listen, nothing is draining."""
        return self.models.ready and self.engine.up() and not self.draining and not self.ports.troubled

    async def start(self) -> None:
        """Open and prove the models, then be ready; a failure is logged and kept as `failure`."""
        begun = time.perf_counter()
        self._clock = asyncio.create_task(clock.keep())
        self.access.watch()
        if self._reporting is not None:
            self._reporting.start()
        if self._telemetry is not None:
            self._telemetry.start(self._counts)
        try:
            await self.models.start()
        except AWNetError as error:
            self.fail(error)
            return
        except Exception as error:
            log.critical("the model could not be loaded", exc_info=True)
            self.failure = AWNetError(str(error))
            return
        model = self.models.latest()
        log.info(
            "ready: %s version %d, sha256 %s, golden self-test passed, %.0f ms",
            model.name,
            model.version,
            model.sha256[:12],
            1000 * (time.perf_counter() - begun),
        )
        self._fleet.loaded()
        every = self.settings.golden_probe_seconds
        if every and not self.draining:
            probes = GoldenProbes(self.monitor, self._open, self.limits, every, self._missed)
            self._probing = asyncio.create_task(probes.run())
        if self.settings.poll_seconds and not self.draining:
            self._polling = asyncio.create_task(self.models.poll(self.settings.poll_seconds))

    def fail(self, error: AWNetError) -> None:
        """Log `error` and keep it as `failure`."""
        log.critical("%s: %s", error.title, error.detail)
        self.failure = error

    def drain(self) -> None:
        """Turn readiness off, so that load balancers stop sending; requests are still answered."""
        if self._draining_since is None:
            self._draining_since = time.monotonic()

    def reload_soon(self) -> None:
        """Look for new versions and keys, on the event loop's thread; asked for while one looks, it looks once more."""
        self.access.check_soon()
        if self._reloading is not None and not self._reloading.done():
            self._again = True
        elif not self.draining:
            self._reloading = asyncio.create_task(self._reload())

    async def stop(self) -> None:
        """Close everything; requests in flight are answered first. No front end may send any more."""
        self.drain()
        self.access.close()
        for task in (self._polling, self._reloading, self._probing):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._telemetry is not None:
            settings, since = self.settings, self._draining_since or time.monotonic()
            await self._telemetry.stop(settings.drain_seconds + settings.shutdown_seconds + since - time.monotonic())
        await self._fleet.stop()  # before the counts of closed versions go
        await self.decoding.pool.close()
        if self._reporting is not None:
            await self._reporting.stop()
        await self.models.close()
        if self._clock is not None:
            self._clock.cancel()

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics of the whole service for a scrape, and their content type. Raises LinkLost.

        Request ids are other callers': they go out as exemplars to whoever has a key for metrics, and where nobody has
        keys, while only this machine is listened to.
        """
        settings = self.settings
        host = settings.host if settings.metrics_port is None else settings.metrics_host
        private = self.caller.name is not None if self.access.by_keys else is_loopback(host)
        return exposition((await self._counts()).families, accept, private)

    async def detection(self) -> dict[str, object]:
        """The detection report of the whole service, for the admin port. Raises LinkLost."""
        return report(await self._counts())

    async def findings(self, most: int) -> list[Found]:
        """The newest findings. Raises UnknownFinding where there are none ever."""
        return await asyncio.to_thread(self._reports().findings, most)

    async def evidence(self, identity: str) -> bytes:
        """What there is of a finding, as a ZIP. Raises UnknownFinding.

        Images are given to holders of a key alone: without keys, whoever reaches the port would get them.
        """
        models = [model for versions in self.models.loaded().values() for model in versions.values()]
        return await asyncio.to_thread(self._reports().evidence, identity, models, self.caller.name is not None)

    async def mark_finding(self, identity: str, mark: Mark, comment: str) -> Found:
        """Mark a finding. Raises UnknownFinding."""
        return await asyncio.to_thread(self._reports().mark, identity, mark, comment)

    def _reports(self) -> Reporting:
        if self._reporting is None:
            raise UnknownFinding("there are no findings here: AWNET_FINDINGS_DIR names no folder")
        return self._reporting

    async def operate(self, do: str, *given: Any) -> dict[str, Any]:
        """Carry an admin call out in every process; see `carry_out`."""
        return await self._fleet.operate(self.carry_out, do, given)

    def snapshot(self) -> Snapshot:
        """What this process has counted and what it serves, for the other processes."""
        metrics, history = self.metrics, self.verdict_history.state()
        return snapshot(metrics.registry, metrics.modes, self.monitor, self.models.state(), history)

    async def carry_out(self, do: str, given: Sequence[Any] = ()) -> dict[str, Any]:
        """An admin call in this process: the method of `Models`, its answer and what it raises."""
        models = self.models
        if do == "status":
            return models.status()
        if do == "reload":
            return await models.reload() | models.status()
        calls: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "rollback": models.rollback,
            "promote": models.promote,
            "canary": models.set_canary,
            "shadow": models.set_shadow,
        }
        return await calls[do](*given)

    @property
    def caller(self) -> Caller:
        """Who asks now; outside of a request, a caller without a key."""
        request = CURRENT.get()
        return self.access.anonymous if request is None else request.caller

    def admit(
        self, request: ObservedRequest, needed: Scope, headers: Iterable[tuple[bytes, bytes]], query: bytes = b""
    ) -> None:
        """Say who sent `request`, and charge its client for it; nothing of the body has been read.

        Args:
            needed: scope of what is asked.
            headers, query: see `Access.identify`.

        Raises:
            Unauthorized, Forbidden: it may not ask; charged all the same, to the address where nobody knows the key.
            RateLimited: it asks too often. Metrics and admin calls of those who may ask have no rate.
        """
        try:
            request.caller = self.access.identify(headers, query)
            request.caller.require(needed)
        except (Unauthorized, Forbidden):
            self._rates.charge(request.client, request.caller.rate)
            raise
        if needed in ("predict", "signals"):
            self._rates.charge(request.client, request.caller.rate)

    @property
    def default_mode(self) -> Mode:
        """The operating mode of requests of this caller that name none."""
        return self.caller.mode or self.settings.mode

    def lease(self, name: str | None = None, version: int | None = None, mode: str | None = None) -> Lease:
        """The version that answers, for a `with`, in `mode` or by default in that of the caller or the settings.

        Raises UnknownModel, UnknownMode, NotReady.
        """
        return self.models.lease(name, version, self.default_mode if mode is None else mode)

    def terms(self, timeout_seconds: float | None = None, priority: Priority = "normal") -> Terms:
        """Deadline and priority of a request that begins now; its deadline is never later than the setting allows."""
        longest = self.settings.timeout_seconds
        seconds = longest if timeout_seconds is None else min(timeout_seconds, longest)
        request = CURRENT.get()
        return Terms(clock.now() + seconds, priority, trace=request.trace if request else None)

    def run(
        self, lease: Lease, images: Sequence[ImageInput], terms: Terms, each: bool = False
    ) -> Coroutine[Any, Any, Outcome]:
        """The answer of `lease` to a request of this caller, to be awaited; see `Answering.run`."""
        return self._answering.run(lease, images, terms, self.caller, each)

    def _keys_read(self, result: KeysRead) -> None:
        self.metrics.keys_read(result)
        self._expect_decisions()

    def _expect_decisions(self) -> None:
        for name in (self.settings.model, *self.settings.further_models):
            self.metrics.expect_decisions(name, {self._policies.of(name), *self.access.policies})

    async def _counts(self) -> Counted:
        """What all processes have counted. Raises LinkLost."""
        clients = self.monitor.clients
        return await self._fleet.counted(Counted(self.metrics.registry, clients.top(), clients.total))

    def _open(self, turn: int) -> Iterator[Lease]:
        """Every open version, for the golden probes, each of its modes in turn."""
        for name, versions in self.models.loaded().items():
            for version, model in versions.items():
                modes = model.contract.modes
                try:
                    lease = self.models.lease(name, version, modes[turn % len(modes)])
                except (UnknownModel, UnknownMode, NotReady):
                    continue  # closed in between
                yield lease

    def _missed(self, model: Model, mode: Mode, expected: Verdict) -> None:
        """A golden image was answered wrongly: nor is what the engine said before to be believed."""
        if self._cache is not None:
            self._cache.clear()
        if self._reporting is not None:
            self._reporting.missed(model, mode, expected)

    async def _reload(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            try:
                await self.models.reload()
            except Exception:
                log.exception("the reload failed")


def _decoding(settings: Settings, engine: Engine, metrics: Metrics) -> Decoding:
    pool = DecodePool(
        workers=settings.decode_workers or settings.threads or usable_cores(),
        seconds=settings.decode_seconds,
        room=settings.decode_queue_pixels,
        capacity=settings.queue_capacity,
        max_bytes=DECODER_BYTES + DECODER_BYTES_PER_PIXEL * settings.max_pixels,
        elsewhere=engine.waiting,
        on_end=metrics.engine.decoder_ended,
    )
    return Decoding(pool, settings.max_request_pixels, engine.waiting)
