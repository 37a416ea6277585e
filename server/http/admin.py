"""The admin port: status, detection report, reload, rollback, promote, canary, shadow, and findings with their marks.

It belongs on a loopback or otherwise private address and asks for no password. Requests that a browser sends for a web
page (those with an `Origin`) are refused, and those for another host than this port is, so that no web site reaches it
through an operator's browser, not even one whose name has become this address (DNS rebinding).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from ..access.addresses import parse_address
from ..access.caller import Scope as KeyScope
from ..core.version import parse_version
from ..errors import READ, AWNetError, Forbidden, InvalidQuery, Misdirected, NotReady, StartupError, UnsupportedMedia
from ..findings.ocsf import MARKS
from ..findings.reading import Found
from ..monitoring.request import ObservedRequest
from ..ports.listening import is_loopback
from ..service.service import Service
from .exchange import Exchange
from .front import Front, Routes, routes_of

MAX_BODY_BYTES = 4 << 10
MAX_COMMENT = 1000  # characters
EXCHANGE = "awnet.exchange"  # in the scope

Handler = Callable[[Request], Awaitable[Response]]


def create_admin(service: Service) -> AdminFront:
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
        share = given["share"]
        ends = given["version"] is None
        known = isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1
        if not known and not (ends and share is None):
            raise InvalidQuery("'share' must be a number from 0 to 1")
        if ends:
            return _json(await service.operate("canary", None))
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
            if "origin" in request.headers:
                raise Forbidden("no web page is answered here")
            if request.method not in READ and not models.ready:
                raise NotReady("the models are being loaded")  # nothing can be changed yet
            return await handler(request)

        return answer

    routes = [
        Route("/admin/models", guarded(status), methods=["GET"]),
        Route("/admin/detection", guarded(detection), methods=["GET"]),
        Route("/admin/reload", guarded(reload), methods=["POST"]),
        Route("/admin/models/{name}/rollback", guarded(rollback), methods=["POST"]),
        Route("/admin/models/{name}/promote", guarded(promote), methods=["POST"]),
        Route("/admin/canary", guarded(canary), methods=["PUT"]),
        Route("/admin/shadow", guarded(shadow), methods=["PUT"]),
        *(Route(path, guarded(handler), methods=[method]) for path, method, handler in _of_findings(service)),
    ]
    service.metrics.expect(routes_of(routes))
    service.metrics.expect_rejections(Misdirected)
    return AdminFront(Routes(routes), service)


def _of_findings(service: Service) -> list[tuple[str, str, Handler]]:
    """Path, method and handler of what is about findings."""

    async def findings(request: Request) -> Response:
        most = request.query_params.get("most", "100")
        if not re.fullmatch(r"[1-9][0-9]{0,3}", most):
            raise InvalidQuery("'most' must be a number from 1 to 9999")
        return _json({"findings": [_finding(found) for found in await service.findings(int(most))]})

    async def evidence(request: Request) -> Response:
        identity = request.path_params["id"]
        made = await service.evidence(identity)
        headers = {"content-disposition": f'attachment; filename="evidence-{identity}.zip"'}
        return Response(made, media_type="application/zip", headers=headers)

    async def mark(request: Request) -> Response:
        given = await _fields(request, "mark", "comment")
        mark, comment = given["mark"], "" if given["comment"] is None else given["comment"]
        if not isinstance(mark, str) or mark not in MARKS or not isinstance(comment, str) or len(comment) > MAX_COMMENT:
            raise InvalidQuery(f"'mark' must be one of {', '.join(MARKS)}, 'comment' at most {MAX_COMMENT} characters")
        return _json(_finding(await service.mark_finding(request.path_params["id"], mark, comment)))

    return [
        ("/admin/findings", "GET", findings),
        ("/admin/findings/{id}/evidence", "GET", evidence),
        ("/admin/findings/{id}", "POST", mark),
    ]


class AdminFront(Front):
    """The routes of the admin port."""

    def __init__(self, routes: Routes, service: Service) -> None:
        super().__init__(routes, service)
        settings = service.settings
        self._hosts = {_plain(name) for name in ("localhost", settings.admin_host, *settings.admin_names)}

    def _needed(self, path: str) -> KeyScope:
        return "admin"

    async def _answer(
        self, scope: Scope, headers: Mapping[bytes, bytes], exchange: Exchange, request: ObservedRequest
    ) -> None:
        host, server = _plain(headers.get(b"host", b"").decode("latin-1")), scope.get("server")
        if host not in self._hosts and not is_loopback(host) and not (server and host == _plain(str(server[0]))):
            raise Misdirected("the admin port is asked under another name than it has (AWNET_ADMIN_HOSTS)")
        scope[EXCHANGE] = exchange
        await self._route(scope, exchange, request)

    def _status(self, error: AWNetError) -> int:
        # A version that cannot be served is no fault of the server here, but of what was asked for.
        return 409 if isinstance(error, StartupError) else super()._status(error)


def _plain(host: str) -> str:
    """The host of a `Host` header without its port, an address in one form, a name in lower case."""
    address = parse_address(host)
    if address is not None:
        return str(address)
    return host.rpartition(":")[0].lower().removesuffix(".") if ":" in host else host.lower().removesuffix(".")


async def _fields(request: Request, *names: str) -> dict[str, Any]:
    """The JSON object in the body, its fields by name, None where left out; the first one must be there.

    Raises:
        BodyTooLarge, UnsupportedMedia, InvalidQuery: no JSON object, or a field that is none of `names`.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMedia("the body must be application/json")
    exchange: Exchange = request.scope[EXCHANGE]
    declared = request.headers.get("content-length")
    body = await exchange.read(None if declared is None else declared.encode(), MAX_BODY_BYTES)
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        given = None
    if not isinstance(given, dict) or names[0] not in given or not set(given) <= set(names):
        raise InvalidQuery(f"the body must be a JSON object of {', '.join(names)}")
    return {name: given.get(name) for name in names}


def _finding(found: Found) -> dict[str, Any]:
    return {"id": found.id, "mark": found.mark, "event": found.event}


def _version(value: object) -> int:
    """A version as a number or its text. Raises InvalidQuery."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    version = parse_version(text)
    if version is None:
        raise InvalidQuery("'version' must be the number of a version")
    return version


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document, option=orjson.OPT_INDENT_2), media_type="application/json")
