"""The port for metrics alone, where the public one does not show them."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from ..access.caller import Scope as KeyScope
from ..monitoring.request import ObservedRequest
from ..service.service import Service
from .exchange import Exchange
from .front import Front, Routes, routes_of

METRICS = "/metrics"


def create_metrics(service: Service) -> MetricsFront:
    """The application of that port."""

    async def metrics(request: Request) -> Response:
        return await scrape(service, request)

    routes = [Route(METRICS, metrics, methods=["GET"])]
    service.metrics.expect(routes_of(routes))
    return MetricsFront(Routes(routes), service)


class MetricsFront(Front):
    """The routes of the port for metrics."""

    def _needed(self, path: str) -> KeyScope:
        return "metrics"

    async def _answer(
        self, scope: Scope, headers: Mapping[bytes, bytes], exchange: Exchange, request: ObservedRequest
    ) -> None:
        await self._route(scope, exchange, request)


async def scrape(service: Service, request: Request) -> Response:
    """What Prometheus scrapes. Raises LinkLost."""
    text, content_type = await service.exposition(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})
