"""The Open Inference Protocol v2 over gRPC: the service that `tritonclient.grpc` calls.

A translation of `protocol`, like `rest` for HTTP: protobuf to its tensors, the error tree to status codes. The
messages and the service's description come with tritonclient, which is imported only where this is switched on.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from ..errors import (
    AWNetError,
    BodyTooLarge,
    DeadlineExceeded,
    Forbidden,
    ImageRejected,
    NoMessage,
    NotFound,
    QueueFull,
    QueueShareTaken,
    RequestError,
    RequestTimeout,
    StartupError,
    TooManyCalls,
    TooSoon,
    Unauthorized,
    Unavailable,
    UnknownModel,
)
from ..monitoring.metrics import OTHER
from ..monitoring.request import ObservedRequest
from ..ports.tls import Certificates
from ..service.service import Service
from . import grpc_server, grpc_standard, protocol, wire
from .grpc_answers import ANSWERS, HEALTH_CHECK, HEALTH_WATCH, INFER, SERVED, SERVICE, InferCall, health
from .grpc_calls import Calls
from .grpc_messages import infer_request
from .grpc_probe import Probe

log = logging.getLogger("awnet")

REQUEST_ID = "x-request-id"  # in metadata, as the header of HTTP
RETRY_AFTER = "retry-after"  # seconds, in the trailing metadata
OK = grpc.StatusCode.OK.name
METHOD = "GRPC"  # the `method` label of these calls; their `code` is the HTTP status of the same outcome
MAX_DETAIL = 1000  # gRPC carries it in a header, and clients refuse headers of more than 8 kB

KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 60_000, 20_000
CLIENT_PING_MS = 10_000  # the least that a client may leave between its own
IDLE_MS = 600_000  # a connection without calls

CODES: dict[type[AWNetError], grpc.StatusCode] = {
    AWNetError: grpc.StatusCode.INTERNAL,
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthorized: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.UNIMPLEMENTED,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    ImageRejected: grpc.StatusCode.FAILED_PRECONDITION,
    BodyTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyCalls: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooSoon: grpc.StatusCode.RESOURCE_EXHAUSTED,
    QueueShareTaken: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RequestTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: AWNetError) -> grpc.StatusCode:
    """The gRPC status of `error`: the line of its nearest ancestor in `CODES`."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


class GrpcFront:
    """The gRPC server.

    Args:
        service: see `server.service`.
        host, port: where to listen; port 0 takes a free one.
        shared: other workers of this service listen there, too.
        certificates: with which it speaks TLS, if it does.
    """

    def __init__(
        self,
        service: Service,
        host: str,
        port: int,
        shared: bool = False,
        certificates: Certificates | None = None,
    ) -> None:
        self._service = service
        self._certificates = certificates
        self._shared = shared
        self._host = host
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._server: grpc_server.AnyServer | None = None
        self._probe: Probe | None = None
        self._probing: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen. Returns the port. Raises StartupError where the address cannot be had."""
        settings = self._service.settings
        calls = Calls(settings.grpc_max_calls, settings.max_held_bytes, settings.max_body_bytes)
        unknown = grpc.stream_stream_rpc_method_handler(partial(_unknown, self._service))
        self._server = grpc_server.server(
            _handlers(self._service, calls),
            unknown,
            [
                # Also the limit of what a compressed message unfolds to; a test sends one.
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                # Two servers on one port would silently share its calls; workers of one do so openly.
                ("grpc.so_reuseport", int(self._shared)),
                ("grpc.max_allowed_incoming_connections", settings.max_connections),
                ("grpc.max_concurrent_streams", settings.grpc_max_calls),
                ("grpc.max_metadata_size", settings.max_header_bytes),
                ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
                ("grpc.server_handshake_timeout_ms", round(1000 * settings.header_seconds)),
                # A client that is silent is asked whether it lives; one that asks that all the time is hung up on.
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                ("grpc.http2.min_ping_interval_without_data_ms", CLIENT_PING_MS),
                ("grpc.max_connection_idle_ms", IDLE_MS),
                # Or a fast client's windows grow to megabytes, and buffers of that size stay with the allocator.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.experimental.tcp_max_read_chunk_size", 64 << 10),
            ],
        )
        routes = (*(f"/{SERVICE}/{name}" for name in SERVED), HEALTH_CHECK, HEALTH_WATCH)
        self._service.metrics.expect((route, METHOD) for route in routes)
        try:
            if self._certificates is None:
                port = self._server.add_insecure_port(self._address)
            else:
                port = self._server.add_secure_port(self._address, grpc_server.credentials(self._certificates))
        except RuntimeError:
            port = 0
        if not port:
            raise StartupError(f"cannot listen on {self._address} for gRPC: the address is in use or not ours")
        await self._server.start()
        log.info("listening for gRPC on port %d", port)
        self._probe = Probe(self._host, port, self._certificates is not None)
        self._probing = asyncio.create_task(self._probe.run())
        return int(port)

    def trouble(self) -> str | None:
        """Why it takes no calls any more; None while it does, or has not begun."""
        if self._server is None or self._probe is None:
            return None
        return self._probe.failure if self._server.takes_calls else "its server has ended"

    async def stop(self, grace: float) -> None:
        """Take no more calls, answer those in flight for at most `grace` seconds, then cancel them."""
        if self._probing is not None:
            self._probing.cancel()
        if self._server is not None:
            await self._server.stop(grace)


async def _watch(service: Service, calls: Calls, watchers: Calls, messages: Any, context: Any) -> None:
    """One stream of a service's health: what it is, and each change of it, until the server drains.

    As the protocol has it, a service that is not there is SERVICE_UNKNOWN and no error. Watchers stay for long, so they
    are bounded beside the calls, and not among them.
    """
    with _observed(service, HEALTH_WATCH, context) as request:
        try:
            _admit(service, HEALTH_WATCH, request, context)
            with watchers.one(request.client):
                async with calls.message(request.client, context, service.settings.body_seconds) as body:
                    known = _read(grpc_standard.HealthCheckRequest, body, 0).service in ("", SERVICE)
                request.answered(200, OK)
                last = None
                while not service.draining or last is None:
                    last = await _tell(context, last, health(service) if known else grpc_standard.SERVICE_UNKNOWN)
                    await asyncio.sleep(WATCH_SECONDS)
                if known:
                    await _tell(context, last, grpc_standard.NOT_SERVING)
        except Exception as error:
            await _refuse(request, error, context)


async def _tell(context: Any, last: int | None, status: int) -> int:
    """Send `status` where it is not what was told; what is told now."""
    if status != last:
        await context.write(grpc_standard.HealthCheckResponse(status=status).SerializeToString())
    return status


WATCH_SECONDS = 0.25  # how soon a change is told
REFLECT = {f"/{name}/ServerReflectionInfo": name.rpartition(".")[0] for name in grpc_standard.REFLECTIONS}

# Calls that everybody may make; all others need the scope "predict".
OPEN = frozenset({"ServerLive", "ServerReady", HEALTH_CHECK, HEALTH_WATCH})
STANDARD = (HEALTH_CHECK, HEALTH_WATCH, *REFLECT)  # the calls of gRPC's own services
MAX_REFLECTED = 64  # questions on one stream


def _handlers(service: Service, calls: Calls) -> dict[str, Any]:
    """Handlers by path, of all methods in tritonclient's description of the service: those not in `SERVED` say so.

    All are handlers of streams, which is the same on the wire: so that a message is read here, within a time.
    They take and give bytes. With the generated servicer a message that is no protobuf would be INTERNAL with a
    trace in the log, for every client who cares to send one.
    """
    kinds: dict[str, Any] = {HEALTH_CHECK: grpc_standard.HealthCheckRequest}
    unserved: dict[str, str] = {}
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        if method.name in SERVED:
            kinds[method.name] = getattr(service_pb2, method.input_type.name)
        else:
            unserved[f"/{SERVICE}/{method.name}"] = method.name
    one, many = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    return {
        **{
            name if name == HEALTH_CHECK else f"/{SERVICE}/{name}": one(partial(_answer, service, calls, name, kind))
            for name, kind in kinds.items()
        },
        **{path: many(partial(_unserved, service, calls, name)) for path, name in unserved.items()},
        HEALTH_WATCH: many(partial(_watch, service, calls, calls.beside())),
        **{path: many(partial(_reflect, service, calls, path, package)) for path, package in REFLECT.items()},
    }


async def _reflect(service: Service, calls: Calls, path: str, package: str, messages: Any, context: Any) -> None:
    """One stream of questions about what is served here; it ends where the client is silent for long."""
    kind = grpc_standard.message_class(f"{package}.ServerReflectionRequest")
    with _observed(service, path, context) as request:
        try:
            _admit(service, path, request, context)
            with calls.one(request.client):
                for _ in range(MAX_REFLECTED):
                    try:
                        async with calls.message(request.client, context, service.settings.body_seconds) as body:
                            answer = grpc_standard.reflect(_read(kind, body, 0))
                    except (NoMessage, RequestTimeout):
                        break
                    await context.write(answer.SerializeToString())
            request.answered(200, OK)
        except Exception as error:
            await _refuse(request, error, context)


async def _answer(service: Service, calls: Calls, name: str, kind: Any, messages: Any, context: Any) -> bytes | None:
    """One call: counted and timed, its errors as a status. A disconnect of the client cancels it."""
    with _observed(service, name, context) as request:
        try:
            _admit(service, name, request, context)
            client = request.client
            with calls.one(client):
                async with calls.message(client, context, service.settings.body_seconds) as body:
                    values = protocol.most_values(service) if kind is INFER else 0
                    if len(body) > protocol.INLINE_BYTES or not wire.few(body, wire.INFER if values else wire.PLAIN):
                        message = await asyncio.to_thread(_read, kind, body, values)
                    else:
                        message = _read(kind, body, values)
                    response: bytes = (await ANSWERS[name](service, message, context)).SerializeToString()
            request.answered(200, OK)
            return response
        except Exception as error:
            body, message = b"", None  # a circle of frames would keep them until the next collection
            await _refuse(request, error, context)
    return None


def _read(kind: Any, body: bytes, values: int) -> Any:
    """The message of a call; a ModelInferRequest as `InferCall`. Raises RequestError, InvalidTensor.

    Args:
        values: that the images of a request can need.
    """
    infers, large = kind is INFER, len(body) > protocol.INLINE_BYTES
    wire.check(body, values, wire.INFER if infers else wire.PLAIN)
    try:
        message = kind.FromString(body)
    except DecodeError:
        raise RequestError(f"the message is no {kind.DESCRIPTOR.name}") from None
    return InferCall(message.id, infer_request(message, large)) if infers else message


async def _unserved(service: Service, calls: Calls, name: str, messages: Any, context: Any) -> None:
    """A call of the protocol that is not served: admitted, counted and bounded like one that is."""
    with _observed(service, name, context) as request:
        try:
            _admit(service, name, request, context)
            # A client whose first message of a stream meets a closed call sees its own failure to send, not the status.
            with calls.one(request.client), suppress(NoMessage):
                async with calls.message(request.client, context, service.settings.body_seconds):
                    pass
            raise NotFound("this extension of the protocol is not served here")
        except AWNetError as error:
            await _refuse(request, error, context)


async def _unknown(service: Service, messages: Any, context: Any) -> None:
    """A call of a method that nobody has heard of: admitted, counted and logged like a path of HTTP that is not there.

    Its message is not read.
    """
    with _observed(service, OTHER, context) as request:
        try:
            _admit(service, OTHER, request, context)
            raise NotFound("there is no such method here")
        except AWNetError as error:
            await _refuse(request, error, context)


def _admit(service: Service, name: str, request: ObservedRequest, context: Any) -> None:
    """Say who calls, before the message is read. Raises Unauthorized, Forbidden, RateLimited."""
    if name in OPEN:
        request.caller = service.access.anonymous
        return
    service.admit(request, "predict", _headers(context.invocation_metadata()))


def _observed(service: Service, name: str, context: Any) -> ObservedRequest:
    """The call, to be counted and logged. Its id goes back in the trailing metadata, as in a header over HTTP."""
    metadata, client = context.invocation_metadata() or (), _address(context.peer())
    given = next((value for key, value in metadata if key == REQUEST_ID), "")
    route = f"/{SERVICE}/{name}" if name in SERVED else name if name in (HEALTH_CHECK, HEALTH_WATCH) else OTHER
    if client is not None and service.proxies:
        client = service.proxies.client(client, _headers(metadata))
    request = service.requests.observe(METHOD, client, given, route, _headers(metadata))
    context.set_trailing_metadata(((REQUEST_ID, request.id),))
    return request


def _headers(metadata: Any) -> Iterator[tuple[bytes, bytes]]:
    """Metadata as the headers of HTTP."""
    return ((key.encode(), value.encode() if isinstance(value, str) else value) for key, value in metadata or ())


async def _refuse(request: ObservedRequest, error: Exception, context: Any) -> None:
    refusal = request.refused(error)
    traceback.clear_frames(error.__traceback__)  # they hold the message, and a circle holds them
    request.answered(protocol.status_of(refusal), code_of(refusal).name)
    if isinstance(refusal, TooSoon):
        later = (RETRY_AFTER, str(refusal.retry_after_seconds))
        context.set_trailing_metadata(((REQUEST_ID, request.id), later))
    await context.abort(code_of(refusal), refusal.detail[:MAX_DETAIL])


def _address(peer: str) -> str | None:
    """The address in gRPC's name of a peer, `ipv4:127.0.0.1:50000` or `ipv6:[::1]:50000`, as HTTP names that client."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else None
