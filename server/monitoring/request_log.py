"""The request log: one JSON line a request on the logger `awnet.requests`, none for what programs ask for all the time:
health checks, scrapes, and the two admin calls that only read.

A line holds no image, no file name, no score and no address. The client stands under the salted hash that `clients`
makes, so that its lines can be found together while the process lives.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from ..core.engine import Model, Signals
from ..core.modes import Mode
from ..core.policy import Decision, Policy
from ..core.trace import Trace
from ..core.verdict import Judgement

LOGGER = "awnet.requests"
QUIET_ROUTES = frozenset(
    {
        "/metrics",
        "/v2/health/live",
        "/v2/health/ready",
        "/admin/models",
        "/admin/detection",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }
)


class Note(NamedTuple):
    """What happened to a traced request at a time, or from one to another where it has an end; on `time.monotonic`.

    Attributes:
        attributes: no image, address or key, as in a log line.
        error: slug, where it failed.
    """

    name: str
    at: float
    until: float | None
    attributes: Mapping[str, str | int | float]
    error: str | None = None


@dataclass(slots=True)
class Record:
    """What is told of one request, in a log line and in spans.

    Attributes:
        route: a template, never a path.
        status: of the response, as HTTP has it; 0 until it has begun.
        started: on `time.monotonic`; seconds: from request to response.
        reason: slug of the error, where there was one.
        refused: images by the slug of their error, where others of the request were answered.
        client: salted hash of the client's address.
        key: name of the caller's key, never the key.
        code: status of gRPC, by its name.
        trace: that it belongs to, where requests are traced; `notes` are taken where it is sampled.
    """

    request_id: str
    route: str
    method: str
    status: int = 0
    seconds: float = 0.0
    model: Model | None = None
    mode: Mode | None = None
    judgements: Sequence[Judgement] = ()
    signals: Signals | None = None
    policy: Policy = "flag"
    decisions: Sequence[Decision] = ()
    reason: str | None = None
    refused: Mapping[str, int] = field(default_factory=dict)
    client: str | None = None
    key: str | None = None
    started: float = 0.0
    code: str | None = None
    trace: Trace | None = None
    notes: list[Note] | None = None

    @property
    def quiet(self) -> bool:
        """Nobody wants to read of it: what programs ask for all the time, and got."""
        return self.route in QUIET_ROUTES and self.reason is None


class RequestLog:
    """Writes lines to `logger` at INFO; where that level is off, no line is built."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger(LOGGER)

    @property
    def wanted(self) -> bool:
        """Whether the logger takes lines."""
        return self._logger.isEnabledFor(logging.INFO)

    def write(self, record: Record) -> None:
        """One request that is over."""
        if not self.wanted or record.quiet:
            return
        line: dict[str, object] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "request_id": record.request_id,
            "route": record.route,
            "method": record.method,
            "status": record.status,
            "seconds": round(record.seconds, 6),
        }
        if record.trace is not None:
            line["trace_id"], line["span_id"] = record.trace.trace_id, record.trace.span_id
        if record.model is not None:
            line["model"], line["version"] = record.model.name, str(record.model.version)
            line["mode"] = record.mode
        if record.judgements:
            line["images"] = len(record.judgements)
            line["verdicts"] = dict(Counter(judged.verdict for judged in record.judgements))
            uncalibrated = Counter(judged.why for judged in record.judgements if judged.why is not None)
            if uncalibrated:
                line["uncalibrated"] = dict(uncalibrated)
        if record.policy != "flag":
            line["policy"] = record.policy
            line["decisions"] = dict(Counter(record.decisions))
        if record.signals is not None:
            stages = ("decode", "queue", "inference")
            line["stages"] = {name: round(getattr(record.signals, f"{name}_seconds"), 6) for name in stages}
            if record.signals.cached:
                line["cached"] = True
        if record.refused:
            line["refused"] = dict(record.refused)
        if record.reason is not None:
            line["reason"] = record.reason
        if record.client is not None:
            line["client"] = record.client
        if record.key is not None:
            line["key"] = record.key
        self._logger.info("%s", orjson.dumps(line).decode())


def configure(wanted: bool, logger: logging.Logger | None = None, handler: logging.Handler | None = None) -> RequestLog:
    """A log whose lines are JSON and nothing else: no time stamp or level of another format in front of them.

    Args:
        handler: takes the lines; default: one that writes them to standard error.
    """
    chosen = logger or logging.getLogger(LOGGER)
    handler = handler or logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    chosen.handlers = [handler]
    chosen.propagate = False
    chosen.setLevel(logging.INFO if wanted else logging.CRITICAL)
    return RequestLog(chosen)
