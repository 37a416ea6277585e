"""Observes one request: id, timing, counters and log line, in the same way for every front end.

with requests.observe(method, client_address, given_id) as request:
    ...
    request.answered(200)
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol

from ..access.addresses import client_of
from ..access.caller import NOBODY, Caller
from ..core.engine import Model, Signals
from ..core.modes import Mode
from ..core.policy import Decision, Policy
from ..core.trace import Trace
from ..core.verdict import Judgement
from ..errors import AWNetError
from ..findings.delivery import Delivery
from .clients import TopClients
from .exposition import Counted
from .metrics import OTHER, Metrics
from .request_log import Note, Record, RequestLog

log = logging.getLogger("awnet")

CLIENT_GONE, CLIENT_GONE_STATUS = "client-gone", 499  # the client disconnected before the response
KEY = "key "  # before the name of one; no address begins so
UNKNOWN = "none"  # requests with neither key nor address are all of one client
Headers = Iterable[tuple[bytes, bytes]]  # names in lower case; metadata of gRPC are some, too
_ID = re.compile(r"(?!awnet_[A-Za-z0-9_-]{43}$)[A-Za-z0-9._-]{1,64}")  # and no API key: ids are logged


class ObservedRequest:
    """One request; each layer adds what it knows. Counted and logged once, when the `with` ends.

    Attributes:
        id: the client's own where it is fit for a header and a log line, else a new one.
        client_address: only its salted hash is ever written.
        caller: who asks; a front end sets it before it reads the body, and until then it is `NOBODY`.
        trace: that it belongs to, where requests are traced.
    """

    __slots__ = ("_record", "_requests", "_token", "caller", "client_address", "id", "trace")

    def __init__(
        self,
        requests: Requests,
        method: str,
        client_address: str | None,
        given_id: str,
        route: str,
        trace: Trace | None = None,
    ) -> None:
        self._requests = requests
        self.id = identify(given_id)
        self.client_address = client_address
        self.caller: Caller = NOBODY
        self.trace = trace
        self._record = Record(self.id, route, method, started=time.monotonic(), trace=trace)

    def __enter__(self) -> ObservedRequest:
        self._token = CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        CURRENT.reset(self._token)
        record = self._record
        record.seconds, record.key = self.seconds, self.caller.name
        if not record.status:
            # The client left, or the server ends and has waited long enough for this one.
            record.status, record.reason = CLIENT_GONE_STATUS, CLIENT_GONE
            self._requests.metrics.rejection(CLIENT_GONE)
        self._requests.ended(record, self.client_address)

    @property
    def client(self) -> str:
        """Who is counted as one client: a key, or an address where there is none."""
        if self.caller.name is not None:
            return KEY + self.caller.name
        return client_of(self.client_address) if self.client_address else UNKNOWN

    @property
    def status(self) -> int:
        """Of the answer, as HTTP has it; 0 until one has begun."""
        return self._record.status

    @property
    def seconds(self) -> float:
        """Since it came in."""
        return time.monotonic() - self._record.started

    @property
    def route(self) -> str:
        """The template it belongs to; OTHER while that is not known."""
        return self._record.route

    def routed(self, route: str) -> None:
        """It belongs to `route`, a template and never a path."""
        self._record.route = route

    @property
    def traced(self) -> bool:
        """Whether somebody wants its notes."""
        return self.trace is not None and self.trace.sampled

    def note(
        self,
        name: str,
        attributes: Mapping[str, str | int | float],
        since: float | None = None,
        error: str | None = None,
    ) -> None:
        """Something happens now, or ends that began `since`; see `Note`. Forgotten where the request is not traced."""
        if not self.traced:
            return
        if self._record.notes is None:
            self._record.notes = []
        now = time.monotonic()
        at, until = (now, None) if since is None else (since, now)
        self._record.notes.append(Note(name, at, until, attributes, error))

    def record_judgements(self, model: Model, mode: Mode, judgements: Sequence[Judgement], signals: Signals) -> None:
        """`model` answered its images in `mode`."""
        record = self._record
        record.model, record.mode, record.judgements, record.signals = model, mode, judgements, signals

    def record_decisions(self, policy: Policy, decisions: Sequence[Decision]) -> None:
        """What `policy` made of its images."""
        self._record.policy, self._record.decisions = policy, decisions
        if policy != "flag" and self.traced:
            self.note("awnet.policy", {"awnet.policy": policy, **_counts("awnet.decision", decisions)})

    def record_refusals(self, slugs: Iterable[str]) -> None:
        """Some of its images could not be decoded, for these reasons, and others were answered."""
        self._record.refused = refused = Counter(slugs)
        for slug in refused:
            self._requests.metrics.rejection(slug)
        if refused and self.traced:
            self.note("awnet.images.refused", {f"awnet.refused.{slug}": count for slug, count in refused.items()})

    def answered(self, status: int, code: str | None = None) -> None:
        """An answer has begun, with this status; `code` is that of gRPC, by its name."""
        self._record.status, self._record.code = status, code

    def refused(self, error: Exception) -> AWNetError:
        """The request is answered with an error.

        Returns:
            The error to answer with: `error`, or for an unforeseen one, an error without internal details.
        """
        if not isinstance(error, AWNetError):
            log.error("request %s failed", self.id, exc_info=error)
            error = AWNetError("something went wrong here; the log has it under the request id")
        elif error.__cause__ is not None:
            log.debug("request %s: %s", self.id, error.detail, exc_info=error)
        self._record.reason = error.slug
        self._requests.metrics.rejection(error.slug)
        return error


# A front end sets it, `service` adds to it, so that no layer between them has to hand it on.
CURRENT: ContextVar[ObservedRequest | None] = ContextVar("awnet_request", default=None)


class Tracing(Protocol):
    """Decides which requests are traced, and takes what is known of those."""

    def begin(self, headers: Headers) -> Trace:
        """The trace of a request with these headers, new where they name none."""

    def ended(self, record: Record) -> None:
        """A request whose trace is sampled is over; nobody else needs `record` any more."""


class Telemetry(Tracing, Protocol):
    """Sends what it takes elsewhere, and has a life of its own; nothing here ever waits for where that is."""

    def start(self, counts: Callable[[], Awaitable[Counted]]) -> None:
        """On a running event loop. `counts` are those of all processes of the service, and raises LinkLost."""

    def receivers(self) -> Sequence[Delivery]:
        """Those that findings go to."""

    async def stop(self, seconds: float) -> None:
        """Send what is there, for so long at most."""


class Requests:
    """Counts and logs requests.

    Args:
        clients: hashes addresses for the log.
        tracing: None: no request is traced.
    """

    def __init__(
        self, metrics: Metrics, clients: TopClients, log: RequestLog | None = None, tracing: Tracing | None = None
    ) -> None:
        self.metrics = metrics
        self._clients = clients
        self._log = log or RequestLog()
        self._tracing = tracing

    def observe(
        self,
        method: str,
        client_address: str | None,
        given_id: str = "",
        route: str = OTHER,
        headers: Headers = (),
    ) -> ObservedRequest:
        """A request that comes in now, for a `with`.

        Args:
            method: of HTTP in upper case; GRPC for a call of gRPC.
            client_address: address, never written.
            given_id: what the client calls it.
            route: a template, if it is known already.
            headers: may name the caller's trace; read only where requests are traced.
        """
        trace = None if self._tracing is None else self._tracing.begin(headers)
        return ObservedRequest(self, method, client_address, given_id, route, trace)

    def ended(self, record: Record, client_address: str | None) -> None:
        """Count and log one request."""
        trace = record.trace
        self.metrics.request(record.route, record.method, record.status, record.seconds, record.request_id, trace)
        if self._log.wanted:
            record.client = self._clients.name(client_address) if client_address else None
            self._log.write(record)
        if self._tracing is not None and trace is not None and trace.sampled and not record.quiet:
            self._tracing.ended(record)


def _counts(prefix: str, values: Iterable[str]) -> dict[str, int]:
    return {f"{prefix}.{value}": count for value, count in Counter(values).items()}


def identify(given: str = "") -> str:
    """`given` if it is fit to be an id, else a new one.

    New ones are no secret. `os.urandom` would release the interpreter lock in the middle of every request.
    """
    return given if given and _ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
