"""Whoever puts items never waits; memory is bounded, and whatever does not arrive is counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from server.telemetry.sender import Sender
from tests.waiting import PATIENCE_SECONDS, eventually


def made(send: Callable[[Sequence[int]], bool], counts: Counter[str], capacity: int = 4, batch: int = 2) -> Sender[int]:
    return Sender(
        "test",
        send,
        lambda result, items: counts.update({result: items}),
        capacity=capacity,
        batch=batch,
        every_seconds=0.01,
    )


def test_items_arrive_in_their_order_and_are_counted() -> None:
    counts, sent = Counter[str](), list[int]()
    sender = made(lambda items: sent.extend(items) or True, counts, capacity=100)
    for n in range(10):
        sender.put(n)
    assert sender.close(PATIENCE_SECONDS) == 0
    assert sent == list(range(10)) and counts["sent"] == 10


def test_where_sending_hangs_nobody_waits_and_what_does_not_fit_is_dropped() -> None:
    """A batch is under way, four wait, and the rest is gone; the end does not wait for ever either."""
    counts, entered, gate = Counter[str](), threading.Event(), threading.Event()

    def send(items: Sequence[int]) -> bool:
        entered.set()
        return gate.wait(PATIENCE_SECONDS)

    sender = made(send, counts)
    sender.put(0)
    assert entered.wait(PATIENCE_SECONDS)
    begun = time.monotonic()
    for n in range(10_000):
        sender.put(n)
    assert time.monotonic() - begun < 1
    assert counts["dropped"] == 10_000 - 4
    assert sender.close(0.05) == 5
    assert counts["dropped"] == 10_000
    sender.put(1)
    assert counts["dropped"] == 10_001  # it is closed
    gate.set()


def test_what_fails_is_counted_and_the_next_is_sent(caplog: object) -> None:
    """A refusal and an error that nobody foresaw are the same to others."""
    counts, tries = Counter[str](), list[int]()

    def send(items: Sequence[int]) -> bool:
        tries.append(len(items))
        if len(tries) == 1:
            raise RuntimeError("unforeseen")
        return len(tries) > 2

    sender = made(send, counts, batch=1)
    for n in range(3):
        sender.put(n)
        eventually(lambda n=n: len(tries) == n + 1)
    sender.close(PATIENCE_SECONDS)
    assert counts == {"failed": 2, "sent": 1, "dropped": 0}
