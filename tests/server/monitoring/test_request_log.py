"""One JSON line a request, and nothing in it that must not be there."""

from __future__ import annotations

import io
import json
import logging

import numpy as np
import pytest

from server.core.contract import parse
from server.core.engine import Model, Signals
from server.core.verdict import Judgement
from server.http.app import NEEDED
from server.monitoring.request_log import QUIET_ROUTES, Record, RequestLog, configure
from server.oip.grpc_front import OPEN, SERVICE
from tests.server.tiny import contract_of, graph

EMPTY = np.zeros((0, 1), np.float32)


@pytest.fixture
def written(request: pytest.FixtureRequest) -> tuple[RequestLog, io.StringIO]:
    logger = logging.getLogger(f"tests.{request.node.name}")
    log = configure(True, logger)
    stream = io.StringIO()
    logger.handlers[0].stream = stream  # type: ignore[attr-defined]
    return log, stream


def test_a_line_says_what_was_asked_answered_and_how_long_it_took(written: tuple[RequestLog, io.StringIO]) -> None:
    """One line, JSON from its first byte, so that a collector needs no pattern."""
    log, stream = written
    model = Model("awnet", 1, "0" * 64, None)  # type: ignore[arg-type]
    record = Record("r1", "/predict", "POST", 200, 0.0041234567, model, "robust", client="9f3a")
    domain = parse(json.dumps(contract_of(graph()))).domains[0]
    record.judgements = [
        Judgement(0.1, "clean", domain, None, None),
        Judgement(0.9, "adversarial", domain, "resized", None),
        Judgement(0.1, "clean", domain, None, None),
    ]
    record.signals = Signals(EMPTY, EMPTY, EMPTY, 0.001, 0.0002, 0.002)
    log.write(record)
    [line] = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert fields == {
        "request_id": "r1",
        "route": "/predict",
        "method": "POST",
        "status": 200,
        "seconds": 0.004123,
        "model": "awnet",
        "version": "1",
        "mode": "robust",
        "images": 3,
        "verdicts": {"clean": 2, "adversarial": 1},
        "uncalibrated": {"resized": 1},
        "stages": {"decode": 0.001, "queue": 0.0002, "inference": 0.002},
        "client": "9f3a",
    }


def test_a_refused_request_names_its_reason(written: tuple[RequestLog, io.StringIO]) -> None:
    log, stream = written
    log.write(Record("r", "/predict", "POST", 422, reason="missing-image"))
    assert json.loads(stream.getvalue())["reason"] == "missing-image"


@pytest.mark.parametrize("route", sorted(QUIET_ROUTES))
def test_health_checks_and_scrapes_are_quiet(written: tuple[RequestLog, io.StringIO], route: str) -> None:
    """They come every few seconds, and while a server starts or leaves they are refused every few seconds."""
    log, stream = written
    for status in (200, 503):
        log.write(Record("r", route, "GET", status))
    assert stream.getvalue() == ""


def test_probes_of_every_front_end_are_quiet() -> None:
    """Who may be asked without a key is asked all the time."""
    calls = {name if name.startswith("/") else f"/{SERVICE}/{name}" for name in OPEN}
    assert calls | {route for route, scope in NEEDED.items() if scope is None} <= QUIET_ROUTES


def test_a_refusal_on_a_quiet_route_is_a_line(written: tuple[RequestLog, io.StringIO]) -> None:
    """A web page that reaches for the admin port is what somebody wants to read of."""
    log, stream = written
    log.write(Record("r", "/metrics", "POST", 405, reason="method-not-allowed"))
    assert json.loads(stream.getvalue())["reason"] == "method-not-allowed"


def test_a_newline_in_a_value_cannot_forge_a_line(written: tuple[RequestLog, io.StringIO]) -> None:
    log, stream = written
    log.write(Record('r"\n{"status":200}', "/predict", "POST", 400))
    assert len(stream.getvalue().splitlines()) == 1


def test_no_line_is_made_where_nobody_listens() -> None:
    """The log is off by default and must cost nothing then."""
    log = configure(False, logging.getLogger("tests.off"))
    assert not log.wanted
    log.write(Record(object(), "/", "GET", 200))  # type: ignore[arg-type]
