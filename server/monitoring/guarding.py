"""Asks the query guard about each request, counts what it says, and logs its events.

An event is one structured warning on the logger `awnet.guard`: no image, no file name, no address.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Literal

import orjson

from ..core import clock
from ..core.images import ImageInput
from ..guard.fingerprint import Fingerprint, Watched
from ..guard.guard import Event, QueryGuard, Repeats
from ..settings.settings import Settings
from .clients import TopClients
from .findings_metrics import GuardMetrics
from .metrics import Metrics
from .request import KEY, UNKNOWN, ObservedRequest

Reaction = Literal["observe", "flag", "slow"]

log = logging.getLogger("awnet.guard")


class Guarding:
    """The query guard of one process, with its metrics and log.

    Args:
        reaction: `observe` tells nobody outside, `flag` the client, `slow` lets it wait as well.
        images, seconds, noise: see `QueryGuard`.
        clients: hashes addresses for the log.
        report: called with each event, too.
    """

    def __init__(
        self,
        reaction: Reaction,
        images: int,
        seconds: float,
        noise: float,
        metrics: GuardMetrics,
        clients: TopClients,
        report: Callable[[Event], None] | None = None,
    ) -> None:
        self._reaction = reaction
        self._guard = QueryGuard(images, seconds, noise, self._tell)
        self._metrics = metrics
        self._clients = clients
        self._report = report
        self._limit = images

    @classmethod
    def of(
        cls, settings: Settings, metrics: Metrics, clients: TopClients, report: Callable[[Event], None] | None
    ) -> Guarding | None:
        """What the settings ask for; None where that is nothing."""
        if settings.query_guard == "off":
            return None
        how = settings.query_guard_images, settings.query_guard_seconds, settings.query_guard_noise
        return cls(settings.query_guard, *how, metrics.guard, clients, report)

    @property
    def tells(self) -> bool:
        """Whether clients hear what it found."""
        return self._reaction != "observe"

    def watched(self, images: Sequence[ImageInput], known: Sequence[Fingerprint] | None = None) -> list[Watched]:
        """`images` for the engine; `look` afterwards.

        Args:
            known: their fingerprints, where they were made before.
        """
        made, prints = self._guard.fingerprints, known or repeat(None, len(images))
        return [Watched(image, made, one) for image, one in zip(images, prints, strict=True)]

    def look(self, request: ObservedRequest | None, images: Sequence[ImageInput]) -> list[Repeats]:
        """Count the images of a request that was answered, as `watched` made them."""
        prints = [image.fingerprint for image in images if isinstance(image, Watched)]
        request_id, client = (request.id, request.client) if request else ("", UNKNOWN)
        found = self._guard.look(client, prints, request_id, time.monotonic())
        self._metrics.looked(found)
        if request is not None and request.traced and any(repeats.similar > 1 for repeats in found):
            similar = sum(repeats.similar > 1 for repeats in found)
            repeated = sum(repeats.repeated for repeats in found)
            request.note("awnet.query_guard", {"awnet.images.similar": similar, "awnet.images.repeated": repeated})
        return found

    async def hold(self, request: ObservedRequest | None, found: Sequence[Repeats], deadline: float) -> None:
        """Wait as long as its client has to, holding nothing but the request. Raises RepeatedQueries."""
        if self._reaction == "slow":
            seconds = self._guard.delay(request.client if request else UNKNOWN, found, clock.now(), deadline)
            if seconds:
                started = time.monotonic()
                await asyncio.sleep(seconds)
                if request is not None:
                    request.note("query guard", {}, started)

    def _named(self, client: str | None) -> dict[str, str | None]:
        """A client as the request log names it; None is all together."""
        if client is None:
            return {"client": None}
        if client.startswith(KEY):
            return {"key": client.removeprefix(KEY)}
        return {"client": self._clients.name(client)}

    def _tell(self, event: Event) -> None:
        self._metrics.event("client" if event.client else "all")
        line = {
            "event": "query-guard",
            **self._named(event.client),
            "clients": event.clients,
            "images": event.images,
            "limit": self._limit,
            "seconds": event.seconds,
            "first_request_id": event.first_id,
            "last_request_id": event.last_id,
        }
        log.warning("%s", orjson.dumps(line).decode())
        if self._report is not None:
            self._report(event)
