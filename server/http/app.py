"""HTTP for the engine: routes, request ids, errors. It translates and decides nothing.

`/predict` is answered by `Front`, a plain ASGI layer, because a FastAPI route with an upload costs as much as the
decoding of a small picture; everything else is an ordinary FastAPI route behind the same layer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable
from types import TracebackType
from typing import Any

import orjson
from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.images import Upload
from ..errors import (
    AWNetError,
    BodyTooLarge,
    LinkLost,
    NotAcceptable,
    NotFound,
    NotReady,
    UnsupportedMedia,
    problem,
    problem_document,
    status_of,
)
from ..monitoring.metrics import OTHER
from ..monitoring.request_log import CURRENT, Record, RequestLog
from ..oip import rest
from ..service import Service
from . import openapi as docs_page
from . import upload
from .page import INDEX, PREFIX, Page
from .schemas import document_predict, parse_query, results

log = logging.getLogger("awnet")

PREDICT, OIP, HEALTH = "/predict", "/v2", "/v2/health/"
JSON, PROBLEM_JSON = b"application/json", b"application/problem+json"
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 << 20
ATTENTION_SECONDS = 0.05  # a request that takes twice as long is given up once its caller has gone
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def create_app(service: Service) -> Front:
    """The application on top of `service`, which whoever runs it starts and stops."""
    settings = service.settings
    app = FastAPI(
        title="AW-Net server",
        description="Which class, and was the picture tampered with?",
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
    )

    @app.get("/v2/health/live", summary="The process answers.", tags=["health"])
    async def live() -> Response:
        return _json({"live": True})

    @app.get("/v2/health/ready", summary="The model gave its golden values, and the engine is up.", tags=["health"])
    async def ready() -> Response:
        return _json({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics", summary="Prometheus metrics.", tags=["observability"])
    async def exposition(request: Request) -> Response:
        try:
            text, content_type = await service.exposition(request.headers.get("accept", ""))
        except LinkLost as error:
            document = problem(error, request.scope["awnet.request_id"])
            later = {"retry-after": str(settings.retry_after_seconds)}
            return Response(orjson.dumps(document), status_of(error), later, media_type=PROBLEM_JSON.decode())
        return Response(text, headers={"content-type": content_type})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(docs_page.html(app.openapi()), headers=docs_page.HEADERS, media_type="text/html")

    @app.exception_handler(HTTPException)
    async def unmatched(request: Request, error: HTTPException) -> Response:
        status = error.status_code
        titles = {404: "Not found", 405: "Method not allowed"}
        slug = {404: "not-found", 405: "method-not-allowed"}.get(status, "http-error")
        detail = {404: "there is nothing at this path", 405: "the method is not answered at this path"}
        document = problem_document(
            status,
            slug,
            titles.get(status, "HTTP error"),
            detail.get(status, str(error.detail)),
            request.scope["awnet.request_id"],
        )
        return Response(orjson.dumps(document), status, headers=error.headers, media_type=PROBLEM_JSON.decode())

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version="1", description=app.description, routes=app.routes)
            app.openapi_schema = document_predict(schema)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return Front(app, service)


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


class Front:
    """Every request comes through here: it gets its id, is timed and counted, and a fault becomes a problem document.

    Args:
        app: what answers everything but /predict.
        service: see `Service`.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._log = RequestLog()
        settings = service.settings
        self._page = Page(service.models.loaded, settings.model, service.recent) if settings.page else None
        self._attention = _Attention()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        client = scope.get("client")
        record = Record(client[0] if client else None)
        CURRENT.set(record)  # the task is this request's own
        has_body = b"content-length" in headers or b"transfer-encoding" in headers
        exchange = _Exchange(receive, send, request_id, has_body, self._service.draining, self._attention)
        route = PREDICT
        try:
            path: str = scope["path"]
            if path == PREDICT:
                await self._predict(scope, headers, exchange, started)
            elif path.startswith(OIP) and path[3:4] in ("", "/") and not path.startswith(HEALTH):
                route = rest.route(path) or OTHER
                await self._open_inference(scope["method"], path, headers, exchange)
            elif self._page is not None and (path == INDEX or path.startswith(PREFIX)):
                reply = self._page.answer(scope["method"], path, headers)
                if reply is None:
                    raise NotFound("there is nothing at this path")
                route = INDEX if path == INDEX else f"{PREFIX}{{file}}"
                if reply[0] == 405:
                    refusal = _wrong_method("only GET and HEAD are answered here", exchange)
                    reply = (405, [*reply[1], (b"content-type", PROBLEM_JSON)], refusal)
                await exchange.respond(*reply)
            else:
                scope["awnet.request_id"] = request_id.decode()
                await self._app(scope, receive, exchange.forward)
                route = getattr(scope.get("route"), "path", OTHER)
        except _CallerGoneError:
            self._service.metrics.rejection("caller-gone")
            record.reason = "caller-gone"
        except AWNetError as error:
            self._service.metrics.rejection(error.slug)
            record.reason = error.slug
            if error.__cause__ is not None:
                log.debug("request %s: %s", request_id.decode(), error.detail, exc_info=error)
            await self._refuse(exchange, error)
        except Exception:
            log.exception("request %s failed", request_id.decode())
            if exchange.status:
                raise  # half an answer is out: only closing the connection tells the caller
            await self._refuse(exchange, AWNetError("something went wrong here; the log has it under the request id"))
        if exchange.status:
            seconds = time.perf_counter() - started
            told = request_id.decode()
            self._service.metrics.request(route, scope["method"], exchange.status, seconds, told)
            if self._log.wanted:
                self._log.write(
                    record,
                    request_id=told,
                    route=route,
                    method=scope["method"],
                    status=exchange.status,
                    seconds=seconds,
                    client=self._service.monitor.clients.name(record.sender) if record.sender else None,
                )

    async def _predict(self, scope: Scope, headers: dict[bytes, bytes], exchange: _Exchange, started: float) -> None:
        service, settings = self._service, self._service.settings
        if scope["method"] != "POST":
            refusal = _wrong_method("only POST is answered here", exchange)
            await exchange.answer(405, PROBLEM_JSON, refusal, [(b"allow", b"POST")])
            return
        if not _accepts_json(headers.get(b"accept")):
            raise NotAcceptable("the answer is application/json, which the Accept header does not allow")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedMedia("an encoded body (Content-Encoding) is not accepted")
        if not service.models.ready:
            raise NotReady("the model is not ready")  # before the body is taken in
        query = parse_query(scope["query_string"])

        body = await exchange.read(headers.get(b"content-length"), settings.max_body_bytes)
        if body is None:
            return  # the caller is gone
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        files = upload.pictures(content_type, body, settings.max_images)
        pictures = [Upload(file, service.limits, index) for index, file in enumerate(files)]
        del body, files
        terms = service.terms(query.timeout_seconds, query.priority)
        with service.lease(query.model, query.version) as lease:
            model = lease.model
            if query.top_k is not None:
                query.classes(len(model.contract.labels))  # refused before any work is done
            with exchange:
                outcome = await service.run(lease, pictures, terms)
        signals = outcome.signals
        decoded = [picture.decoded for picture in pictures if picture.decoded is not None]
        answers = results(model, signals, outcome.verdicts, decoded, query)
        timing = {
            "decode": round(1000 * signals.decode_seconds, 3),
            "queue": round(1000 * signals.queue_seconds, 3),
            "inference": round(1000 * signals.inference_seconds, 3),
            "total": round(1000 * (time.perf_counter() - started), 3),
        }
        answer = {
            "request_id": exchange.request_id.decode(),
            "model": {"name": model.name, "version": model.version, "sha256": model.sha256},
            "results": answers,
            "timing_ms": timing,
        }
        server_timing = ", ".join([f"{stage};dur={value}" for stage, value in timing.items()])
        await exchange.answer(200, JSON, orjson.dumps(answer), [(b"server-timing", server_timing.encode())])

    async def _open_inference(self, method: str, path: str, headers: dict[bytes, bytes], exchange: _Exchange) -> None:
        """The Open Inference Protocol, which has its own shape of errors."""
        settings = self._service.settings
        try:
            body = await exchange.read(headers.get(b"content-length"), settings.max_body_bytes)
        except AWNetError as error:
            self._service.metrics.rejection(error.slug)
            status, told, answer = rest.refusal(error)
        else:
            if body is None:
                return
            with exchange:
                status, told, answer = await rest.answer(self._service, method, path, headers, body)
        await exchange.respond(status, told, answer)

    async def _refuse(self, exchange: _Exchange, error: AWNetError) -> None:
        status = status_of(error)
        extra = []
        if status == 503:
            extra.append((b"retry-after", str(self._service.settings.retry_after_seconds).encode()))
        document = orjson.dumps(problem(error, exchange.request_id.decode()))
        await exchange.answer(status, PROBLEM_JSON, document, extra)


def _wrong_method(detail: str, exchange: _Exchange) -> bytes:
    """The body of a 405; which methods are answered is in its `Allow`."""
    told = exchange.request_id.decode()
    return orjson.dumps(problem_document(405, "method-not-allowed", "Method not allowed", detail, told))


class _CallerGoneError(Exception):
    """Nobody is there to be answered."""


class _Attention:
    """Has those listen for their caller who are still at work after a while: listening costs a task each.

    One timer looks at all of them, because setting one for each request costs more than the rest of this.
    """

    def __init__(self) -> None:
        self._new: dict[_Exchange, None] = {}
        self._old: dict[_Exchange, None] = {}
        self._armed = False

    def begin(self, exchange: _Exchange) -> None:
        self._new[exchange] = None
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_later(ATTENTION_SECONDS, self._look)

    def end(self, exchange: _Exchange) -> None:
        if self._new.pop(exchange, self) is self:
            self._old.pop(exchange, None)

    def _look(self) -> None:
        for exchange in self._old:
            exchange.listen()
        self._old, self._new = self._new, {}
        self._armed = bool(self._old)
        if self._armed:
            asyncio.get_running_loop().call_later(ATTENTION_SECONDS, self._look)


class _Exchange:
    """One request's body and answer. `status` is 0 until the answer has begun.

    Once the body has been read, `with exchange:` gives up what it awaits if the caller hangs up meanwhile, and then
    raises _CallerGoneError.
    """

    __slots__ = (
        "_attention",
        "_close",
        "_gone",
        "_listening",
        "_receive",
        "_send",
        "_task",
        "_unread",
        "request_id",
        "status",
    )

    def __init__(
        self, receive: Receive, send: Send, request_id: bytes, has_body: bool, close: bool, attention: _Attention
    ) -> None:
        self._receive = receive
        self._send = send
        self._close = close
        self._unread = has_body
        self._attention = attention
        self._listening: asyncio.Task[None] | None = None
        self._gone = False
        self.request_id = request_id
        self.status = 0

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._attention.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._attention.end(self)
        if self._listening is not None:
            self._listening.cancel()
            if self._gone and kind is asyncio.CancelledError and self._task is not None and self._task.uncancel() == 0:
                raise _CallerGoneError from None

    def listen(self) -> None:
        """Wait for the caller to hang up."""
        self._listening = asyncio.create_task(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    async def read(self, declared: bytes | None, limit: int) -> bytes | None:
        """The whole body, or None if the caller has left. Raises BodyTooLarge, before reading where that is known."""
        too_large = BodyTooLarge(f"the body is larger than {limit} bytes")
        if declared is not None and int(declared) > limit:
            raise too_large
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            chunks, size = [body], len(body)
            while message.get("more_body"):
                if size > limit:
                    raise too_large
                message = await self._receive()
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
            body = b"".join(chunks)
        if message["type"] == "http.disconnect":
            return None
        self._unread = False
        if len(body) > limit:
            raise too_large
        return body

    def answer(
        self, status: int, content_type: bytes, body: bytes, extra: list[tuple[bytes, bytes]]
    ) -> Awaitable[None]:
        """Send a whole answer of one content type."""
        return self.respond(status, [(b"content-type", content_type), *extra], body)

    async def respond(self, status: int, told: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer. Where the request's body was not read, let the caller finish sending it."""
        headers = [(b"x-request-id", self.request_id), *told]
        given = {name for name, _ in told}
        if b"cache-control" not in given:
            headers.append((b"cache-control", b"no-store"))
        if b"content-length" not in given and status != 304:
            headers.append((b"content-length", str(len(body)).encode()))
        if self._close or self._unread:
            headers.append((b"connection", b"close"))
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        if self._unread:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            await self._linger()
            body = b""
        await self._send({"type": "http.response.body", "body": body})

    async def _linger(self) -> None:
        # Closing on a caller that is still sending resets the connection, and it never sees the answer.
        dropped, more = 0, True
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while more and dropped < LINGER_BYTES:
                    message = await self._receive()
                    dropped += len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            pass

    async def forward(self, message: Message) -> None:
        """`send` for the other routes, with the request id added."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [(b"x-request-id", self.request_id)]
            if self._close:
                extra.append((b"connection", b"close"))
            message["headers"] = [*message.get("headers", []), *extra]
        await self._send(message)


def _request_id(headers: dict[bytes, bytes]) -> bytes:
    """The caller's id if it is fit to be repeated in a header and a log line, else a new one.

    New ones are no secret. `os.urandom` would release the interpreter lock in the middle of every request.
    """
    given = headers.get(b"x-request-id")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else b"%032x" % random.getrandbits(128)


def _accepts_json(accept: bytes | None) -> bool:
    return (
        accept is None
        or not accept.strip()
        or any(kind in accept for kind in (b"*/*", b"application/json", b"application/*"))
    )
