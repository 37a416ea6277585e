"""The calls of whoever operates the server, on a port of their own: reload, rollback, promote, canary, shadow.

It is meant for a loopback or otherwise private address and asks for no password. What a browser sends for some page is
refused, so that no web site can reach it through an operator's browser.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import (
    AWNetError,
    BodyTooLarge,
    InvalidQuery,
    NotReady,
    UnsupportedMedia,
    problem,
    problem_document,
    status_of,
)
from ..service import Service
from ..versions.models import Models

LARGEST_BODY = 4 << 10

Handler = Callable[[Request], Awaitable[Response]]


def create_admin(service: Service) -> Starlette:
    """The application of the admin port; every answer is JSON, every error a problem document."""
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
                    return _refusal(403, "forbidden", "Forbidden", "no web page is answered here")
                if request.method != "GET":
                    _serving(models)
                return await handler(request)
            except AWNetError as error:
                # A version that cannot be served is no fault of the server here, but of what was asked for.
                code = 409 if status_of(error) == 500 else status_of(error)
                document = problem(error, _request_id()) | {"status": code}
                return Response(orjson.dumps(document), code, media_type="application/problem+json")

        return answer

    async def unmatched(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        slug, title = {404: ("not-found", "Not found"), 405: ("method-not-allowed", "Method not allowed")}.get(
            error.status_code, ("http-error", "HTTP error")
        )
        answer = _refusal(error.status_code, slug, title, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    async def failed(request: Request, error: Exception) -> Response:
        return _refusal(500, "internal", "Internal error", "something went wrong here; the log has it")

    name = "/admin/models/{name}"
    return Starlette(
        routes=[
            Route("/admin/models", guarded(status), methods=["GET"]),
            Route("/admin/detection", guarded(detection), methods=["GET"]),
            Route("/admin/reload", guarded(reload), methods=["POST"]),
            Route(f"{name}/rollback", guarded(rollback), methods=["POST"]),
            Route(f"{name}/promote", guarded(promote), methods=["POST"]),
            Route("/admin/canary", guarded(canary), methods=["PUT"]),
            Route("/admin/shadow", guarded(shadow), methods=["PUT"]),
        ],
        exception_handlers={HTTPException: unmatched, Exception: failed},
    )


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
        if len(body) > LARGEST_BODY:
            raise BodyTooLarge(f"the body is larger than {LARGEST_BODY} bytes")
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
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0):
        raise InvalidQuery("'version' must be the number of a version")
    return int(text)


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document, option=orjson.OPT_INDENT_2), media_type="application/json")


def _refusal(status: int, slug: str, title: str, detail: str) -> Response:
    document = problem_document(status, slug, title, detail, _request_id())
    return Response(orjson.dumps(document), status, media_type="application/problem+json")


def _request_id() -> str:
    return f"{random.getrandbits(128):032x}"
