"""Many observations become few events: hours of virtual time, no threads."""

from __future__ import annotations

import hashlib
import random

import pytest

from server.findings.coalescing import Coalescer
from server.findings.finding import Finding, Image, Observation, Subject

WINDOW = 60.0


def image(score: float, data: bytes = b"file") -> Image:
    return Image("auto", "adversarial", score, 0.5, 0.01, "pristine", True, 0.9, "flag", "answered", data)


def seen(time: float, client: str = "a", score: float = 0.8, data: bytes = b"file") -> Observation:
    subject = Subject("image", client, None, "awnet", 4, "0" * 64)
    return Observation(subject, int(1000 * time), 1, f"r{time:g}", image(score, data))


def run(coalescer: Coalescer, observations: list[tuple[float, Observation]], until: float) -> list[Finding]:
    """Every event up to `until`, with a tick each second."""
    events, waiting = [], sorted(observations, key=lambda one: one[0])
    for second in range(int(until) + 1):
        while waiting and waiting[0][0] <= second:
            at, one = waiting.pop(0)
            events += coalescer.see(one, at)
        events += coalescer.tick(float(second), 1000 * second)
    return events


def test_the_first_image_is_told_at_once_the_others_once_a_window_and_a_quiet_window_closes() -> None:
    flood = [(t / 10, seen(t / 10)) for t in range(900)]  # 90 s, ten a second
    events = run(Coalescer(WINDOW), flood, 300)
    assert [(f.activity, f.count, f.new, f.time) for f in events] == [
        ("create", 1, 1, 0),
        ("update", 601, 600, 60_000),
        ("update", 900, 299, 120_000),
        ("close", 900, 0, 180_000),
    ]
    assert len({f.id for f in events}) == 1
    assert (events[-1].first_request_id, events[-1].last_request_id) == ("r0", "r89.9")


def test_an_image_after_the_end_is_another_finding() -> None:
    events = run(Coalescer(WINDOW), [(0, seen(0)), (200, seen(200))], 400)
    assert [f.activity for f in events] == ["create", "close", "create", "close"]
    assert len({f.id for f in events}) == 2


def test_clients_and_models_are_told_apart() -> None:
    coalescer = Coalescer(WINDOW)
    other_model = Observation(Subject("image", "a", None, "other", 1, "1" * 64), 0)
    for one in (seen(0, "a"), seen(0, "b"), other_model):
        (event,) = coalescer.see(one, 0.0)
        assert event.activity == "create" and event.subject == one.subject


def test_the_event_shows_the_image_with_the_highest_score_by_its_hash_alone() -> None:
    coalescer = Coalescer(WINDOW)
    coalescer.see(seen(0, score=0.8, data=b"first"), 0)
    coalescer.see(seen(1, score=0.99, data=b"worst"), 1)
    coalescer.see(seen(2, score=0.9, data=b"last"), 2)
    (event,) = coalescer.tick(WINDOW, 60_000)
    assert event.image is not None and event.image.data is None
    assert (event.image.score, event.image.sha256) == (0.99, hashlib.sha256(b"worst").hexdigest())


@pytest.mark.parametrize("clients", [1, 40, 5000])
def test_events_are_bounded_however_many_clients_attack(clients: int) -> None:
    """At most three a window and place, and one finding more for all who have none; every image is counted."""
    rng, most = random.Random(0), 16
    flood = [(t / 20, seen(t / 20, f"client {rng.randrange(clients)}")) for t in range(20 * 600)]
    coalescer = Coalescer(WINDOW, most)
    events = run(coalescer, flood, 1200)
    assert len(events) <= 3 * (most + 1) * 1200 / WINDOW
    assert sum(f.count for f in events if f.activity == "close") == len(flood) == sum(f.new for f in events)
    assert not len(coalescer)
    shared = [f for f in events if f.subject.client is None]
    assert bool(shared) == (clients > most)
    assert all(f.clients > most for f in shared if f.activity == "close" and f.count > 1000)


def test_what_was_not_told_is_told_when_the_process_ends() -> None:
    coalescer = Coalescer(WINDOW)
    coalescer.see(seen(0), 0)
    coalescer.see(seen(1), 1)
    (event,) = coalescer.end(2000)
    assert (event.activity, event.count, event.new) == ("close", 2, 1)
    assert coalescer.end(2000) == []


def test_an_event_has_the_bytes_of_its_image_once_where_they_are_held() -> None:
    """The first image at once, then the highest of each window; none where it is still the one of an earlier event."""
    given = [(0, 0.8, b"first"), (1, 0.95, b"highest"), (2, 0.9, b"other"), (70, 0.85, b"late"), (130, 0.99, b"last")]
    flood = [(float(at), seen(at, score=score, data=data)) for at, score, data in given]
    events = run(Coalescer(WINDOW, most_held=100), flood, 300)
    assert [(f.activity, f.image and f.image.data) for f in events] == [
        ("create", b"first"),
        ("update", b"highest"),
        ("update", None),
        ("update", b"last"),
        ("close", None),
    ]
    assert events[1].image is not None and events[1].image.sha256 == hashlib.sha256(b"highest").hexdigest()
    assert all(f.image is not None and f.image.data is None for f in run(Coalescer(WINDOW), flood, 300))


def test_held_bytes_are_bounded_and_what_found_no_room_is_said() -> None:
    dropped: list[int] = []
    coalescer = Coalescer(WINDOW, most_held=10, dropped=lambda: dropped.append(1))
    for client in "abc":
        coalescer.see(seen(0, client), 0.0)
        coalescer.see(seen(1, client, 0.9, b"more"), 1.0)
    coalescer.see(seen(2, "a", 0.95, b"4444"), 2.0)  # takes the place of its own
    assert len(dropped) == 1
    held = {f.subject.client: f.image.data for f in coalescer.tick(60.0, 60_000) if f.image is not None}
    assert held == {"a": b"4444", "b": b"more", "c": None}
    (finding,) = coalescer.see(seen(61, "d", 0.8, 10 * b"x"), 61.0)
    assert finding.image is not None and finding.image.data == 10 * b"x" and len(dropped) == 1
