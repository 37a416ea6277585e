"""The front of both ports, public and admin: observes requests and turns every error into an answer of one form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..access.caller import Scope as KeyScope
from ..errors import (
    AWNetError,
    MethodNotAllowed,
    NotFound,
    TooManyConnectionsOfClient,
    headers_of,
    problem,
    status_of,
)
from ..monitoring.metrics import OTHER
from ..monitoring.request import ObservedRequest
from ..oip.rest import Reply
from ..service.service import Service
from .cors import Cors
from .exchange import ClientGoneError, DisconnectWatcher, Exchange

PROBLEM_JSON = b"application/problem+json"


class Front(ABC):
    """The outermost ASGI layer: observes every request and answers every error as a problem document.

    HEAD is answered wherever GET is: it is routed as GET, and `Exchange` leaves the body out.

    Args:
        routes: raise their errors, `HTTPException` of the router among them.
        service: see `Service`.
        cors: which web pages may read answers; None: none of another origin.

    Attributes:
        proxies: those that may name a request's client.
    """

    def __init__(self, routes: Starlette, service: Service, cors: Cors | None = None) -> None:
        self._routes = routes
        self._cors = cors
        self._service = service
        self.proxies = service.proxies
        self._watcher = DisconnectWatcher()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        headers, method, peer = dict(scope["headers"]), scope["method"], scope.get("client")
        client = self.proxies.client(peer[0], scope["headers"]) if peer else None
        given_id = headers.get(b"x-request-id", b"").decode("latin-1")
        preflight = None
        if self._cors is not None:
            send = self._cors.sending(send, headers.get(b"origin"))
            preflight = self._cors.preflight(method, headers)
        with self._service.requests.observe(method, client, given_id, headers=scope["headers"]) as request:
            exchange = Exchange(
                receive, send, request, self._watcher, headers, head=method == "HEAD", close=self._service.draining
            )
            asked = {**scope, "method": "GET"} if method == "HEAD" else scope
            try:
                if preflight is None:
                    self._admit(scope, request)
                    await self._answer(asked, headers, exchange, request)
                else:  # a browser sends no key with it
                    await exchange.respond(200, preflight, b"")
            except ClientGoneError:
                pass
            except Exception as error:
                refusal = request.refused(_named(error))
                if request.route == OTHER:
                    request.routed(self._template(asked))
                if request.status:
                    raise  # half a response is out: only closing the connection shows the client that it failed
                error.__traceback__ = None  # its frames hold the body, and this frame would hold them in a circle
                await exchange.respond(*self._refusal(scope["path"], refusal, request.id))

    def turn_away(self, error: AWNetError, client_address: str) -> Reply:
        """Count and log a request that is answered with `error` before it is known what it asks for; its answer."""
        with self._service.requests.observe(OTHER, client_address) as request:
            status, headers, body = self._refusal("", request.refused(error), request.id)
            request.answered(status)
            return status, [(b"x-request-id", request.id.encode()), *headers, (b"cache-control", b"no-store")], body

    def refused_connection(self) -> None:
        """Count a connection that was closed before anything was done for it."""
        self._service.metrics.rejection(TooManyConnectionsOfClient.slug)

    def _admit(self, scope: Scope, request: ObservedRequest) -> None:
        """Say who asks, before anything of the body is read. Raises Unauthorized, Forbidden, RateLimited."""
        needed = self._needed(scope["path"])
        if needed is None:
            request.caller = self._service.access.anonymous  # whatever key is sent: probes do not fail for an old one
        else:
            self._service.admit(request, needed, scope["headers"], scope["query_string"])

    @abstractmethod
    def _needed(self, path: str) -> KeyScope | None:
        """The scope that a caller needs for whatever is answered at `path`; None where everybody may ask."""

    @abstractmethod
    async def _answer(
        self, scope: Scope, headers: Mapping[bytes, bytes], exchange: Exchange, request: ObservedRequest
    ) -> None:
        """Answer one request, or raise the error to answer with."""

    def _template(self, scope: Scope) -> str:
        """The route that a request is for which was refused before it was routed; OTHER where there is none."""
        if not scope["path"].endswith("\n"):
            for route in self._routes.routes:
                if route.matches(scope)[0] is not Match.NONE:
                    return str(getattr(route, "path", OTHER))
        return OTHER

    async def _route(self, scope: Scope, exchange: Exchange, request: ObservedRequest) -> None:
        """Let `routes` answer; the request belongs to the template that they find.

        The router's patterns end in `$`, which fits before a line end, too: `/metrics\\n` would be found as `/metrics`,
        and need another scope than that.
        """
        if scope["path"].endswith("\n"):
            raise NotFound("there is nothing at this path")
        try:
            await self._routes(scope, exchange.receive, exchange.forward)
        finally:
            request.routed(getattr(scope.get("route"), "path", OTHER))

    def _refusal(self, path: str, error: AWNetError, request_id: str) -> Reply:
        """The problem document that answers `error` at `path`."""
        status = self._status(error)
        headers = headers_of(error, status, self._service.settings.retry_after_seconds)
        return status, [(b"content-type", PROBLEM_JSON), *headers], orjson.dumps(problem(error, request_id, status))

    def _status(self, error: AWNetError) -> int:
        return status_of(error)


class Routes(Starlette):
    """Starlette without its own answers to errors: they come out as exceptions."""

    def __init__(self, routes: list[Route]) -> None:
        super().__init__(routes=routes)

    def build_middleware_stack(self) -> ASGIApp:
        return self.router


def routes_of(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Template and method of each, without HEAD, which is answered wherever GET is."""
    for route in routes:
        if isinstance(route, Route):
            yield from ((route.path, method) for method in sorted((route.methods or set()) - {"HEAD"}))


def _named(error: Exception) -> Exception:
    """What a router refuses, as the error tree names it."""
    if isinstance(error, HTTPException) and error.status_code == 404:
        return NotFound("there is nothing at this path")
    if isinstance(error, HTTPException) and error.status_code == 405:
        # The router's set has no order, and HEAD is answered wherever GET is.
        given = (error.headers or {}).get("Allow", "").split(", ")
        return MethodNotAllowed(
            "the method is not answered at this path", sorted({*given, "HEAD"} if "GET" in given else given)
        )
    return error
