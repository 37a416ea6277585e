"""The admin port: status, detection report, reload, rollback, promote, canary and shadow.

It belongs on a loopback or otherwise private address and asks for no password. Requests that a browser sends for a web
page (those with an `Origin`) are refused, so that no web site reaches it through an operator's browser.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.version import parse_version
from ..errors import (
    READ,
    AWNetError,
    BodyTooLarge,
    InvalidQuery,
    NotReady,
    UnsupportedMedia,
    problem,
    problem_document,
    status_of,
)
from ..monitoring.request import identify
from ..service import Service
from ..versions.models import Models
from .exchange import allowed

log = logging.getLogger("awnet")

MAX_BODY_BYTES = 4 << 10
REQUEST_ID = "awnet.request_id"  # in the scope

Handler = Callable[[Request], Awaitable[Response]]


def create_admin(service: Service) -> ASGIApp:
    """The application of the admin port; answers are JSON with a request id, errors are problem documents."""
    models = service.models

    async def status(request: Request) -> Response:
        return _json(await service.operate("status"))

    async def reload(request: Request) -> Response:
        return _json(await service.operate("reload"))

    async def rollback(request: Request) -> Response:
        return _json(await service.operate("rollback", request.path_params["name"]))

    async def promote(request: Request) -> Response:
        given = await _fields(request, "version")
        return _json(await service.operate("promote", request.path_params["name"], _version(given["version"])))

    async def canary(request: Request) -> Response:
        given = await _fields(request, "version", "share")
        if given["version"] is None:
            return _json(await service.operate("canary", None))
        share = given["share"]
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            raise InvalidQuery("'share' must be a number from 0 to 1")
        return _json(await service.operate("canary", _version(given["version"]), share))

    async def shadow(request: Request) -> Response:
        version = (await _fields(request, "version"))["version"]
        return _json(await service.operate("shadow", None if version is None else _version(version)))

    async def detection(request: Request) -> Response:
        report = await service.detection()
        address = request.query_params.get("address")
        return _json(report if address is None else report | {"client": service.monitor.clients.name(address)})

    def guarded(handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            try:
                if "origin" in request.headers:
                    return _refusal(request, 403, "forbidden", "Forbidden", "no web page is answered here")
                if request.method not in READ:
                    _serving(models)
                return await handler(request)
            except AWNetError as error:
                # A version that cannot be served is no fault of the server here, but of what was asked for.
                code = 409 if status_of(error) == 500 else status_of(error)
                document = problem(error, request.scope[REQUEST_ID]) | {"status": code}
                return Response(orjson.dumps(document), code, media_type="application/problem+json")
            except Exception:
                log.exception("request %s failed", request.scope[REQUEST_ID])
                what = "something went wrong here; the log has it under the request id"
                return _refusal(request, 500, "internal", "Internal error", what)

        return answer

    async def unmatched(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        slug, title = {404: ("not-found", "Not found"), 405: ("method-not-allowed", "Method not allowed")}.get(
            error.status_code, ("http-error", "HTTP error")
        )
        answer = _refusal(request, error.status_code, slug, title, str(error.detail))
        if error.status_code == 405:
            answer.headers["allow"] = ", ".join(allowed(error))
        return answer

    name = "/admin/models/{name}"
    app = Starlette(
        routes=[
            Route("/admin/models", guarded(status), methods=["GET"]),
            Route("/admin/detection", guarded(detection), methods=["GET"]),
            Route("/admin/reload", guarded(reload), methods=["POST"]),
            Route(f"{name}/rollback", guarded(rollback), methods=["POST"]),
            Route(f"{name}/promote", guarded(promote), methods=["POST"]),
            Route("/admin/canary", guarded(canary), methods=["PUT"]),
            Route("/admin/shadow", guarded(shadow), methods=["PUT"]),
        ],
        exception_handlers={HTTPException: unmatched},
    )

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = scope[REQUEST_ID] = identify(given)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await app(scope, receive, send_with_id)

    return named


def _serving(models: Models) -> None:
    """Raises NotReady before the models are there, when nothing can be changed yet."""
    if not models.ready:
        raise NotReady("the models are being loaded")


async def _fields(request: Request, *names: str) -> dict[str, Any]:
    """The JSON object in the body, its fields by name, None where left out.

    Raises:
        BodyTooLarge, UnsupportedMedia, InvalidQuery: no JSON object, or a field that is none of `names`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMedia("the body must be application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        given = None
    if not isinstance(given, dict) or "version" not in given or not set(given) <= set(names):
        raise InvalidQuery(f"the body must be a JSON object of {', '.join(names)}")
    return {name: given.get(name) for name in names}


def _version(value: object) -> int:
    """A version as a number or its text. Raises InvalidQuery."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    version = parse_version(text)
    if version is None:
        raise InvalidQuery("'version' must be the number of a version")
    return version


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document, option=orjson.OPT_INDENT_2), media_type="application/json")


def _refusal(request: Request, status: int, slug: str, title: str, detail: str) -> Response:
    document = problem_document(status, slug, title, detail, request.scope[REQUEST_ID])
    return Response(orjson.dumps(document), status, media_type="application/problem+json")
