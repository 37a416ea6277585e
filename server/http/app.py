"""The HTTP application: routes requests to their handlers and turns every error into an answer of one form.

`/predict` is answered by `PublicFront`, a plain ASGI layer, because a FastAPI route with an upload costs as much as the
decoding of a small image; health, metrics and the documents are ordinary FastAPI routes behind the same layer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request as HTTPRequest
from starlette.types import ASGIApp, Scope

from .. import __version__
from ..access.caller import Scope as KeyScope
from ..core.images import EncodedImage
from ..errors import (
    READ,
    AWNetError,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    NotReady,
    UnsupportedMedia,
)
from ..monitoring.metrics import OTHER
from ..monitoring.request import ObservedRequest
from ..oip import rest
from ..service.service import Service
from . import page, upload
from .caching import matches, tag_of
from .cors import Cors
from .description import described
from .disclosure import check
from .exchange import Exchange
from .front import Front, routes_of
from .metrics_port import METRICS, scrape
from .predict import document
from .query import parse_model_query, parse_query

PREDICT, OIP, HEALTH = "/predict", "/v2", "/v2/health/"
PAGE_FILE = f"{page.PREFIX}{{file}}"
JSON = b"application/json"

# What a caller needs at a path, None where everybody may ask; "predict" at any other, also where there is nothing: so
# that strangers do not learn which models and versions there are. The page's own files are open, see `page.Page`.
NEEDED: Mapping[str, KeyScope | None] = {
    "/v2/health/live": None,
    "/v2/health/ready": None,
    "/metrics": "metrics",
}

MAX_RANGES = 64  # of an Accept header; browsers send eight
INLINE_RESULTS = 16  # more results, or more than one with all signals, are written on another thread

_JSON_RANGES = (JSON, b"application/*", b"*/*")
_NO_WEIGHT = re.compile(rb"q\s*=\s*0(\.0{0,3})?")


def create_app(service: Service) -> PublicFront:
    """The application on top of `service`; starting and stopping that is up to the caller."""
    app = _Routes(
        model=service.settings.model,
        by_keys=service.access.by_keys,
        title="AW-Net server",
        description="Which class, and was the image tampered with?",
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
    )

    @app.get("/v2/health/live", operation_id="live", summary="The process answers.", tags=["health"])
    async def live() -> Response:
        return _json({"live": True})

    @app.get(
        "/v2/health/ready",
        operation_id="ready",
        summary="The model gave its golden values, and the engine is up.",
        tags=["health"],
    )
    async def ready() -> Response:
        return _json({"ready": service.ready}, 200 if service.ready else 503)

    if service.settings.metrics_port is None:

        @app.get(METRICS, operation_id="metrics", summary="Prometheus metrics.", tags=["observability"])
        async def exposition(request: HTTPRequest) -> Response:
            return await scrape(service, request)

    @app.get(
        "/model",
        operation_id="model",
        summary="A model's modes, domains, thresholds and audited figures.",
        tags=["model"],
    )
    async def model(request: HTTPRequest) -> Response:
        name, version = parse_model_query(request.scope["query_string"])
        settings = service.settings
        told = orjson.dumps(described(service.models.find(name, version), settings.prior, service.default_mode))
        tag = tag_of(told)
        # It changes with a reload; a key may have another default mode, so no cache between gives it to others.
        headers = {"cache-control": "private, no-cache", "etag": tag.decode()}
        if matches(request.headers.get("if-none-match", "").encode("latin-1"), tag):
            return Response(status_code=304, headers=headers)
        return Response(told, headers=headers, media_type="application/json")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        from . import openapi

        return Response(openapi.html(app.openapi()), headers=openapi.HEADERS, media_type="text/html")

    service.metrics.expect([(PREDICT, "POST"), *rest.ROUTES, *routes_of(app.routes)])
    if service.settings.page:
        service.metrics.expect([(page.INDEX, "GET"), (PAGE_FILE, "GET")])
    return PublicFront(app, service)


def needed(path: str) -> KeyScope | None:
    """The scope that a path needs, the page's own files aside."""
    return NEEDED.get(path, "predict")


class _Routes(FastAPI):
    """FastAPI without its error handlers: errors reach `Front` as exceptions, which answers all in one form."""

    def __init__(self, *, model: str, by_keys: bool, **options: Any) -> None:
        super().__init__(**options)
        self._by_keys = by_keys
        self._model = model

    def build_middleware_stack(self) -> ASGIApp:
        return AsyncExitStackMiddleware(self.router)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            from . import openapi  # shapes of every answer, for whoever asks: not many do

            schema = get_openapi(
                title=self.title, version=__version__, description=self.description, routes=self.routes
            )
            self.openapi_schema = openapi.complete(schema, self._model)
            if self._by_keys:
                openapi.secured(self.openapi_schema, needed)
        return self.openapi_schema


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


class PublicFront(Front):
    """`/predict`, the Open Inference Protocol and the page by hand; `routes` have everything else."""

    def __init__(self, routes: FastAPI, service: Service) -> None:
        settings = service.settings
        super().__init__(routes, service, Cors(settings.origins) if settings.origins else None)
        self._page = (
            page.Page(
                service.models.loaded,
                settings.model,
                service.verdict_history,
                mode=settings.mode,
                by_keys=service.access.by_keys,
                max_body_bytes=settings.max_body_bytes,
            )
            if settings.page
            else None
        )

    def _needed(self, path: str) -> KeyScope | None:
        if self._page is not None and path in self._page.files:
            return None
        return needed(path)

    def _template(self, scope: Scope) -> str:
        path = scope["path"]
        if path == PREDICT:
            return PREDICT
        if _is_oip(path):
            return rest.route(path) or OTHER
        if self._page is not None and path in (page.MODELS, page.RECENT):
            return PAGE_FILE
        return super()._template(scope)

    async def _answer(
        self, scope: Scope, headers: Mapping[bytes, bytes], exchange: Exchange, request: ObservedRequest
    ) -> None:
        path, method = scope["path"], scope["method"]
        if path == PREDICT:
            request.routed(PREDICT)
            await self._predict(scope, headers, exchange, request)
        elif _is_oip(path):
            request.routed(rest.route(path) or OTHER)
            body = await exchange.read(headers.get(b"content-length"), self._service.settings.max_body_bytes)
            with exchange:
                reply = await rest.answer(self._service, method, path, headers, body)
            await exchange.respond(*reply)
        elif self._page is not None and _is_page(path):
            found = self._page.answer(path, headers, request.caller)
            if found is None:
                raise NotFound("there is nothing at this path")
            request.routed(path if path == page.INDEX else PAGE_FILE)
            if method != "GET":
                raise MethodNotAllowed("only GET and HEAD are answered here", READ)
            await exchange.respond(*found)
        else:
            await self._route(scope, exchange, request)

    async def _predict(
        self, scope: Scope, headers: Mapping[bytes, bytes], exchange: Exchange, request: ObservedRequest
    ) -> None:
        service, settings = self._service, self._service.settings
        if scope["method"] != "POST":
            raise MethodNotAllowed("only POST is answered here", ["POST"])
        if not _accepts_json(headers.get(b"accept")):
            raise NotAcceptable("the answer is application/json, which the Accept header does not allow")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedMedia("an encoded body (Content-Encoding) is not accepted")
        if not service.models.ready:
            raise NotReady("the model is not ready")  # before the body is taken in
        query = parse_query(scope["query_string"])
        check(query, request.caller)

        body = await exchange.read(headers.get(b"content-length"), settings.max_body_bytes)
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        files = await upload.uploads(content_type, body, settings.max_images)
        names = [file.name for file in files]
        images = [EncodedImage(file.data, service.limits, index) for index, file in enumerate(files)]
        del body, files
        terms = service.terms(query.timeout_seconds, query.priority)
        with service.lease(query.model, query.version, query.mode) as lease:
            if query.top_k is not None:
                query.classes(len(lease.model.contract.labels))  # refused before any work is done
            with exchange:
                outcome = await service.run(lease, images, terms, each=True)
        given = (request, query, images, names, outcome, settings.prior)
        if len(images) > (1 if query.signals == "all" else INLINE_RESULTS):
            extra, answer = await asyncio.to_thread(_written, *given)
        else:
            extra, answer = _written(*given)
        await exchange.respond(200, extra, answer)

    def _refusal(self, path: str, error: AWNetError, request_id: str) -> rest.Reply:
        if _is_oip(path):
            return rest.refusal(error, self._service.settings.retry_after_seconds)
        status, headers, body = super()._refusal(path, error, request_id)
        return status, headers + page.HEADERS if self._page is not None and _is_page(path) else headers, body


def _written(*given: Any) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an answer of /predict; see `predict.document`."""
    answer = document(*given)
    timing = ", ".join([f"{stage};dur={value}" for stage, value in answer["timing_ms"].items()])
    return [(b"content-type", JSON), (b"server-timing", timing.encode())], orjson.dumps(answer)


def _is_oip(path: str) -> bool:
    """Whether the Open Inference Protocol answers; health is a route of FastAPI's, which documents it."""
    return path.startswith(OIP) and path[3:4] in ("", "/") and not path.startswith(HEALTH)


def _is_page(path: str) -> bool:
    return path == page.INDEX or path.startswith(page.PREFIX)


def _accepts_json(accept: bytes | None) -> bool:
    """Whether an `Accept` header allows JSON: its most specific range that fits decides (RFC 9110, 12.5.1)."""
    if accept is None or accept == b"*/*" or not accept.strip():
        return True
    weights: dict[bytes, bool] = {}
    for given in accept.lower().split(b",", MAX_RANGES)[:MAX_RANGES]:
        media, *parameters = (part.strip() for part in given.split(b";"))
        weights[media] = not any(_NO_WEIGHT.fullmatch(parameter) for parameter in parameters)
    return next((weights[media] for media in _JSON_RANGES if media in weights), False)
