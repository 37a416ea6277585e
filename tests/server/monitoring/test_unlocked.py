"""What one thread counts without locks is what the client library counts."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from server.monitoring.unlocked import UnlockedCounter, UnlockedHistogram

BOUNDS = (0.1, 0.5, 1.0)


@pytest.mark.parametrize("unlocked", [False, True])
def test_both_ways_of_counting_lead_to_the_same_exposition(unlocked: bool) -> None:
    """On a bound, between two, over all of them; the library's own `observe` beside it, for an exemplar."""
    registry = CollectorRegistry()
    counter = Counter("things", "", ["kind"], registry=registry).labels("a")
    histogram = Histogram("sizes", "", ["kind"], buckets=BOUNDS, registry=registry).labels("a")
    count, sizes = (UnlockedCounter(counter), UnlockedHistogram(histogram)) if unlocked else (counter, histogram)
    count.inc()
    count.inc(3)
    for size in (0.0, 0.1, 0.3, 0.5, 0.50001, 1.0, 7.0, math.inf):
        sizes.observe(size)
    (sizes.series if unlocked else histogram).observe(0.2, {"request_id": "r"})  # type: ignore[union-attr]
    text = generate_latest(registry).decode()
    assert 'things_total{kind="a"} 4.0\n' in text
    rows = {
        le: f'sizes_bucket{{kind="a",le="{le}"}} {n}\n'
        for le, n in zip((*BOUNDS, "+Inf"), (2.0, 5.0, 7.0, 9.0), strict=True)
    }
    assert all(row in text for row in rows.values())
    assert 'sizes_sum{kind="a"} +Inf\n' in text
