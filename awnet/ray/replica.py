"""A replica on Ray Serve: the server's application behind Ray's proxy, in the place of the server's own sockets.

Ray's proxy takes connections, and hands each request to a replica as ASGI; engine, contract, decoding, verdicts,
policies and answers are those of `python -m server`, by the same `AWNET_*` settings.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Mapping
from typing import Any, cast

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from server.errors import StartupError
from server.http.app import create_app
from server.http.metrics_port import create_metrics
from server.model_sources.startup import fetch
from server.ports.listening import listen
from server.process.parts import make_service
from server.process.process import begin_logging
from server.process.servers import PortBeside
from server.service.service import Service
from server.settings.options import settings_of

from .routing import EvenRouter
from .settings import replica_settings

NAME = "awnet"
METRICS_PORTS = 64  # that the replicas of one node may have: the first that is free, from AWNET_METRICS_PORT on
REQUEST_ID = b"x-request-id"
TARGET_REQUESTS = 16  # under way in each replica, that autoscaling aims at: a batch runs, and the next one fills
# Load that lasts starts replicas, which take their seconds to begin; quiet has to last longer before any of them ends.
UPSCALE_SECONDS, DOWNSCALE_SECONDS = 5.0, 300.0


class NotReadyError(RuntimeError):
    """The replica is to be replaced: its model cannot be served."""


class Replica:
    """One replica, on the event loop of Ray's worker process.

    Args:
        given: settings, by name; others are those of `AWNET_*` variables where the replica runs.

    Raises:
        SettingsError, StartupError: Ray says so where the application is deployed, and gives it up after three times.
    """

    async def __init__(self, given: Mapping[str, Any] | None = None) -> None:  # type: ignore[misc] # Ray awaits it
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        settings = replica_settings(settings_of(given or {}), int(cores))
        begin_logging(settings)
        settings = await fetch(settings)
        self._service = make_service(settings)
        self._metrics: asyncio.Task[None] | None = None
        await self._service.start()
        if self._service.failure is not None:
            raise NotReadyError(f"{self._service.failure.title}: {self._service.failure.detail}")
        if settings.metrics_port is not None:
            self._metrics_port = metrics_port(self._service)
            self._metrics = asyncio.create_task(self._metrics_port.serve())
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> Application:
        """Ray asks for it after the constructor."""
        return Application(self._service)

    async def check_health(self) -> None:
        """Ray asks every few seconds, and replaces a replica that raises three times. Raises NotReadyError."""
        if not self._service.ready:
            raise NotReadyError("readiness is off: the log of this replica says why")

    async def __del__(self) -> None:
        """Ray awaits it once the last request has been answered; none come any more."""
        if self._metrics is not None:
            self._metrics_port.should_exit = True
            await asyncio.wait([self._metrics])
        await self._service.stop()


class Application:
    """The application of the public port, as ASGI.

    Ray's proxy adds the request's id to each answer, and to a request that has none: where that is the server's id,
    too, it is left out here.
    """

    def __init__(self, service: Service) -> None:
        self._front = create_app(service)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        given = next((value for name, value in scope.get("headers", ()) if name == REQUEST_ID), None)

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair != (REQUEST_ID, given)]
            await send(message)

        await self._front(scope, receive, sending)


def metrics_port(service: Service) -> PortBeside:
    """The port of this replica's metrics, listening: the first that is free. Raises StartupError."""
    settings = service.settings
    first = settings.metrics_port or 0
    for port in range(first, first + METRICS_PORTS):
        try:
            sockets = listen(settings.metrics_host, port, "--metrics-port")
        except StartupError:
            if port == first + METRICS_PORTS - 1:
                raise
            continue
        return PortBeside(create_metrics(service), sockets, settings)
    raise AssertionError  # the loop returns or raises


def autoscaling(least: int, most: int) -> AutoscalingConfig:
    """Between so many replicas, by requests under way."""
    return AutoscalingConfig(
        min_replicas=least,
        initial_replicas=least,
        max_replicas=most,
        target_ongoing_requests=TARGET_REQUESTS,
        upscale_delay_s=UPSCALE_SECONDS,
        downscale_delay_s=DOWNSCALE_SECONDS,
    )


def routing() -> RequestRouterConfig:
    """Who chooses a replica. Ray's HAProxy, where it is switched on, takes the least busy itself, and no router."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        return RequestRouterConfig()
    return RequestRouterConfig(request_router_class=cast(Any, EvenRouter))


deployment = serve.deployment(
    name=NAME,
    ray_actor_options={"num_cpus": 1},
    # As many requests wait in a replica as fill its batches; what is more waits in Ray's proxy, and then gets a 503.
    max_ongoing_requests=64,
    max_queued_requests=512,
    autoscaling_config=autoscaling(1, 4),
    request_router_config=routing(),
    health_check_period_s=2,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=1,
    graceful_shutdown_timeout_s=30,
    logging_config={"enable_access_log": False},  # AWNET_REQUEST_LOG writes one that says more
)(serve.ingress()(Replica))
app = deployment.bind()
