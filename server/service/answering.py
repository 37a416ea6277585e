"""Answers one request: decodes its images, has a version run them, judges the scores, and tells those who count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from ..access.caller import Caller
from ..access.rates import QueueShares, Rates
from ..core.decoding import Decoding
from ..core.engine import Engine, Signals, Terms
from ..core.images import EncodedImage, ImageInput
from ..core.verdict import judge_image
from ..errors import AWNetError, EngineFault, QueueFull
from ..guard.fingerprint import Watched
from ..monitoring.detection import Monitor
from ..monitoring.engine_metrics import CacheResult
from ..monitoring.guarding import Guarding
from ..monitoring.metrics import Metrics
from ..monitoring.reporting import Reporting
from ..monitoring.request import CLIENT_GONE, CURRENT, UNKNOWN
from ..monitoring.verdict_history import VerdictHistory
from ..settings.settings import Settings
from ..versions.rollout import Lease
from .answer_cache import AnswerCache, Found
from .outcome import Outcome


class Answering:
    """What every request for predictions goes through, whatever front end it came to.

    Args:
        settings: prior, policies, and what of the queue one client may have.
        engine: whose queue it is.
        decoding: decodes what is not cheap.
        rates: of all clients.
        reporting: makes findings, if anything does.
        guarding: the query guard, if there is one.
        cache: keeps answers, if anything does.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        decoding: Decoding,
        rates: Rates,
        metrics: Metrics,
        monitor: Monitor,
        verdict_history: VerdictHistory,
        reporting: Reporting | None,
        guarding: Guarding | None,
        cache: AnswerCache | None = None,
    ) -> None:
        self._prior = settings.prior
        self._policies = settings.decides
        self._queue_capacity = settings.queue_capacity
        self._shares = QueueShares(settings.queue_capacity, settings.queue_share)
        self._engine = engine
        self._decoding = decoding
        self._rates = rates
        self._metrics = metrics
        self._monitor = monitor
        self._verdict_history = verdict_history
        self._reporting = reporting
        self._guarding = guarding
        self._cache = cache

    async def run(
        self, lease: Lease, images: Sequence[ImageInput], terms: Terms, caller: Caller, each: bool = False
    ) -> Outcome:
        """Answers, judgements and decisions; counts verdicts, decisions, scores and stages.

        Args:
            lease: the version that answers.
            images: of one request.
            terms: of the request.
            caller: who asks.
            each: an image that cannot be decoded costs the others nothing: `Outcome.refused` has it. Where no other is
                left, its error is raised.

        Raises:
            EngineFault: an output is not finite, which must never read as clean; or as `decoding.Decoding.prepare` and
                `engine.Runner.infer`.
            RateLimited, QueueShareTaken: its client asks too much.
            RepeatedQueries: the query guard refuses the answer.
        """
        request = CURRENT.get()
        client = request.client if request else UNKNOWN
        if request is not None and len(images) > 1:
            self._rates.charge(client, caller.rate, len(images) - 1, before=1)
        refused: dict[int, AWNetError] = {}
        apart = refused if each and len(images) > 1 else None
        files = [] if self._reporting is None else self._reporting.files(images)
        found = None if self._cache is None else await self._find(self._cache, lease, images, client)
        if found is not None and found.signals is not None:
            signals = found.signals
            if self._guarding is not None:
                images = self._guarding.watched(images, found.fingerprints)
        else:
            given = images
            with self._shares.hold(client, len(images), caller.queue_share):
                signals, images = await self._signals(lease, images, terms, client, apart)
        if not signals.finite():
            raise EngineFault("the model gave an answer that is not finite")
        if self._cache is not None and found is not None and not signals.cached:
            kept = [place for place in range(len(given)) if place not in refused]
            prints = [image.fingerprint for image in images if isinstance(image, Watched)]
            self._cache.keep([found.keys[n] for n in kept], signals, [given[n] for n in kept], prints)
        model = lease.model
        domains, prior = model.contract.domains, self._prior
        scores: list[float] = signals.p_type[:, 0].tolist()
        judgements = [
            judge_image(score, image.traits, domains, prior) for score, image in zip(scores, images, strict=True)
        ]
        policy = self._policies.of(model.name, caller.policy)
        decisions = self._policies.decide(policy, judgements)
        self._metrics.answered(model, lease.mode, judgements, policy, decisions, signals)
        self._verdict_history.add([judged.verdict for judged in judgements])
        outcome = Outcome(model, lease.mode, signals, judgements, policy, decisions, refused=refused)
        self._record(outcome)
        if self._reporting is not None:
            answered = [file for place, file in enumerate(files) if place not in refused]
            self._reporting.answered(
                *(request, model, lease.mode, judgements, policy, decisions, images, answered, signals.omega),
            )
        return outcome if self._guarding is None else await self._guarded(self._guarding, outcome, images, terms)

    async def _find(self, cache: AnswerCache, lease: Lease, images: Sequence[ImageInput], client: str) -> Found:
        """What the cache has; nothing while a shadow is compared, which sees every request or the shares are wrong."""
        found = await cache.find(lease.model, lease.mode, client, images, computed=lease.compared)
        result: CacheResult = "hit" if found.signals is not None else "bypassed" if lease.compared else "miss"
        self._metrics.engine.cached(result, len(images))
        return found

    async def _signals(
        self,
        lease: Lease,
        images: Sequence[ImageInput],
        terms: Terms,
        client: str,
        refused: dict[int, AWNetError] | None,
    ) -> tuple[Signals, Sequence[ImageInput]]:
        """The engine's answer, with how long decoding and waiting took before it, and the images that it is about.

        Args:
            client: whose share of the decoders it is.
            refused: gets the errors of images that cannot be decoded; None: the first one ends it all.
        """
        request = CURRENT.get()
        encoded = [image for image in images if isinstance(image, EncodedImage)]
        decoded = waited = 0.0
        if encoded:
            size = lease.model.contract.preprocessing.size
            waiting = self._engine.waiting()
            if waiting and waiting + len(images) > self._queue_capacity:
                raise QueueFull("too many images are waiting; try again shortly")  # before they are decoded
            started = time.monotonic()
            try:
                decoded, waited, admitted = await self._decoding.prepare(encoded, size, terms, client, refused)
            except (AWNetError, asyncio.CancelledError) as error:
                _note_failure("decode", started, error)
                raise
            if waited and request is not None and request.traced:
                request.note("decode", {"awnet.decode.seconds": decoded}, started)
            if admitted:
                terms = terms._replace(admitted=True)
            if refused:
                images = [image for place, image in enumerate(images) if place not in refused]
                if not images:
                    raise refused[min(refused)]
        if self._guarding is not None:
            images = self._guarding.watched(images)
        started = time.monotonic()
        try:
            signals = await lease.infer(images, terms)
        except (AWNetError, asyncio.CancelledError) as error:
            _note_failure("engine", started, error)
            raise
        if waited:
            signals = signals.behind(decoded, max(0.0, waited - decoded))
        return signals, images

    async def _guarded(
        self, guarding: Guarding, outcome: Outcome, images: Sequence[ImageInput], terms: Terms
    ) -> Outcome:
        """The answer once the query guard lets it go. Only now: the pixels of small images are had in the engine."""
        request = CURRENT.get()
        found = guarding.look(request, images)
        await guarding.hold(request, found, terms.deadline)
        return outcome._replace(repeats=found) if guarding.tells else outcome

    def _record(self, outcome: Outcome) -> None:
        judgements = outcome.judgements
        self._monitor.of(outcome.model).answered(judgements, outcome.signals.omega)
        request = CURRENT.get()
        if request is not None:
            request.record_judgements(outcome.model, outcome.mode, judgements, outcome.signals)
            request.record_decisions(outcome.policy, outcome.decisions)
            if outcome.refused:
                request.record_refusals(error.slug for error in outcome.refused.values())
            if request.client_address is not None:
                for judged in judgements:
                    if judged.verdict != "clean":
                        self._monitor.clients.flagged(request.client_address)


def _note_failure(stage: str, since: float, error: BaseException) -> None:
    """The stage that ended the request now, in its trace."""
    request = CURRENT.get()
    if request is not None:
        request.note(stage, {}, since, error.slug if isinstance(error, AWNetError) else CLIENT_GONE)
