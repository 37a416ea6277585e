"""A client tries again what may be different later, within its deadline, and no more often than its budget has left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

import awnet
from awnet.client.retries import Budget, retry_after
from tests.client.fake import CUT, Fake, Reply, answer, fake, problem, result
from tests.waiting import until

QUICK = awnet.Retries(first_seconds=0.001)


@contextmanager
def client_of(server: Fake, **options: Any) -> Iterator[awnet.Client]:
    with awnet.Client(server.url, **{"retries": QUICK, **options}) as client:
        yield client


@pytest.mark.parametrize(
    "trouble",
    [
        problem(503, "queue-full", "0"),
        problem(429, "rate-limited", "0"),
        CUT,
        Reply(503, b"<html>busy"),
        Reply(500, b"Internal Server Error"),
        Reply(502, b"<html>Bad Gateway"),
    ],
)
def test_what_may_be_different_later_is_tried_again(trouble: Reply | str) -> None:
    """503, 429 and a connection that is cut; a balancer's own 503 as well, and a proxy whose server has died."""
    with fake(trouble, trouble, answer(result())) as server, client_of(server) as client:
        assert client.predict(b"x").label == "ship"
    assert len(server.asked) == 3
    assert len({asked.body for asked in server.asked}) == 1


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (problem(400, "bad-request"), awnet.RequestError),
        (problem(401, "unauthorized"), awnet.AccessError),
        (problem(404, "unknown-model"), awnet.NotServedError),
        (problem(422, "undecodable-image", image=0), awnet.ImageError),
        (problem(422, "image-rejected", image=0), awnet.RejectedError),
        (problem(500, "internal"), awnet.ServerError),
        (problem(504, "deadline-exceeded"), awnet.DeadlineError),
        (Reply(504, b"<html>"), awnet.UnavailableError),
        (Reply(302, b"", {"location": "http://127.0.0.1:1/"}), awnet.AnswerError),
        (Reply(200, b"<html>"), awnet.AnswerError),
        (Reply(200, {"results": []}), awnet.AnswerError),
        (Reply(200, b"[" * 100_000), awnet.AnswerError),
    ],
)
def test_anything_else_is_raised_at_once(trouble: Reply, kind: type[awnet.Error]) -> None:
    """As the class that says who can do something about it."""
    with fake(trouble) as server, client_of(server) as client, pytest.raises(awnet.Error) as raised:
        client.predict(b"x")
    assert type(raised.value) is kind
    assert len(server.asked) == 1


def test_the_last_refusal_is_raised_after_the_last_attempt() -> None:
    """With what the server said of it."""
    refused = pytest.raises(awnet.UnavailableError)
    with fake(problem(503, "queue-full", "0")) as server, client_of(server) as client, refused as raised:
        client.predict(b"x")
    assert (raised.value.slug, raised.value.status, raised.value.request_id) == ("queue-full", 503, "r")
    assert raised.value.retry_after_seconds == 0
    assert len(server.asked) == QUICK.attempts


def test_a_refused_connection_is_a_transport_error() -> None:
    """After all attempts; readiness is false and raises nothing."""
    with fake(CUT) as server:
        pass  # nobody listens at its address any more
    with client_of(server) as client:
        assert client.ready() is False
        with pytest.raises(awnet.TransportError, match=r"127\.0\.0\.1"):
            client.predict(b"x")


def test_retry_after_is_waited_for() -> None:
    """The server knows better than any backoff."""
    with fake(problem(503, "queue-full", "1"), answer(result())) as server, client_of(server) as client:
        client.predict(b"x")
    [wait] = [later.at - earlier.at for earlier, later in pairwise(server.asked)]
    assert 1 <= wait < 5


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    """The refusal is raised while the caller still has time to do something else."""
    started = time.monotonic()
    refused = pytest.raises(awnet.UnavailableError)
    with fake(problem(503, "not-ready", "30")) as server, client_of(server) as client, refused:
        client.predict(b"x", timeout=20)
    assert time.monotonic() - started < 10
    assert len(server.asked) == 1


def test_a_call_never_takes_longer_than_its_timeout() -> None:
    """Neither one slow answer nor several attempts; the server is told how long it has."""
    with fake(CUT, Reply(seconds=2)) as server, client_of(server) as client:
        started = time.monotonic()
        with pytest.raises(awnet.DeadlineError) as raised:
            client.predict(b"x", timeout=0.3)
        assert time.monotonic() - started < 1.5
    assert isinstance(raised.value.__cause__, awnet.TransportError)
    assert isinstance(raised.value, TimeoutError)
    first, second = (int(asked.path.partition("timeout_ms=")[2]) for asked in server.asked)
    assert 0 < second <= first <= 300


def test_an_outage_costs_a_client_its_budget_and_no_more() -> None:
    """Twenty calls make twenty requests and three retries, where each might have made three."""
    retries = awnet.Retries(first_seconds=0, budget=3)
    with fake(problem(503, "queue-full", "0")) as server, client_of(server, retries=retries) as client:
        for _ in range(20):
            with pytest.raises(awnet.UnavailableError):
                client.predict(b"x")
    assert len(server.asked) == 23


def test_success_earns_retries_again() -> None:
    """A share of what succeeds, and never more than the budget."""
    budget = Budget(awnet.Retries(budget=2, per_success=0.25))
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(4):
        budget.succeeded()
    assert [budget.take() for _ in range(2)] == [True, False]
    for _ in range(100):
        budget.succeeded()
    assert [budget.take() for _ in range(3)] == [True, True, False]


def test_waits_grow_and_are_random() -> None:
    """From 0 to a bound that doubles, so that clients which failed together do not come back together."""
    retries = awnet.Retries(first_seconds=1, longest_seconds=5)
    assert [retries.wait(tried, None, lambda low, high: high) for tried in (1, 2, 3, 1000)] == [2, 4, 5, 5]
    assert [retries.wait(tried, 7, lambda low, high: low) for tried in (1, 3)] == [7, 7]
    assert len({retries.wait(3, None) for _ in range(10)}) > 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("3", 3),
        (" 0 ", 0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0),
        ("soon", None),
        ("-1", None),
        ("9" * 40, None),
        ("\u0663", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    """Anything else says nothing."""
    assert retry_after(header, now=lambda: 60.0) == seconds


def test_an_async_call_that_is_cancelled_stops_trying() -> None:
    """Also in the middle of a wait."""

    async def cancelled() -> None:
        async with awnet.AsyncClient(server.url) as client:
            call = asyncio.create_task(client.predict(b"x", timeout=30))
            await until(lambda: bool(server.asked))
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    with fake(problem(503, "not-ready", "5")) as server:
        asyncio.run(cancelled())
    assert len(server.asked) == 1
