"""Which trace a request belongs to: W3C Trace Context to the letter, and who decides what is sampled."""

from __future__ import annotations

import re

import pytest

from server.telemetry.tracing import Sampler

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{ID}-{SPAN}-01".encode()


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True)])
def test_a_caller_in_a_trace_decides(ratio: float, flags: str, sampled: bool) -> None:
    """Its trace goes on, sampled as it is, whatever the ratio."""
    trace = Sampler(ratio, True).begin([(b"traceparent", f"00-{ID}-{SPAN}-{flags}".encode())])
    assert (trace.trace_id, trace.parent_id, trace.sampled) == (ID, SPAN, sampled)
    assert re.fullmatch("[0-9a-f]{16}", trace.span_id) and trace.span_id != SPAN


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_where_callers_do_not_decide_the_ratio_does(ratio: float) -> None:
    """The trace goes on all the same."""
    for flags in ("00", "01"):
        trace = Sampler(ratio, False).begin([(b"traceparent", f"00-{ID}-{SPAN}-{flags}".encode())])
        assert (trace.trace_id, trace.sampled) == (ID, bool(ratio))


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"nonsense",
        GOOD[:-1],
        GOOD + b"-more",
        GOOD + b" ",
        GOOD + b"\n",
        GOOD.upper(),
        b"ff" + GOOD[2:],
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{ID}-{'0' * 16}-01".encode(),
        GOOD.replace(b"-", b"_"),
        b"\xff" * 55,
    ],
)
def test_a_traceparent_that_is_none_is_passed_over(bad: bytes) -> None:
    """A trace begins here, without what its tracestate says."""
    trace = Sampler(1.0, True).begin([(b"traceparent", bad), (b"tracestate", b"a=b")])
    assert trace.trace_id != ID and trace.parent_id is None and trace.state == ""
    assert trace.sampled


def test_two_traceparents_are_none() -> None:
    trace = Sampler(1.0, True).begin([(b"traceparent", GOOD), (b"traceparent", GOOD)])
    assert trace.trace_id != ID


def test_a_later_version_may_say_more() -> None:
    trace = Sampler(0.0, True).begin([(b"traceparent", b"01" + GOOD[2:] + b"-more")])
    assert (trace.trace_id, trace.sampled) == (ID, True)


def test_tracestate_goes_on_as_it_came() -> None:
    """Several headers are one list; what no header may hold, or is long, is left out, and the trace goes on."""
    parent = (b"traceparent", GOOD)
    trace = Sampler(1.0, True).begin([parent, (b"tracestate", b"a=1,b=2"), (b"tracestate", b"c=3")])
    assert trace.headers("1" * 16) == {"traceparent": f"00-{ID}-{'1' * 16}-01", "tracestate": "a=1,b=2,c=3"}
    for bad in (b"a=" + b"1" * 511, b"a=\xff", b"a=1\r\nx: y", b"a=1,\tb=2"):
        trace = Sampler(1.0, True).begin([parent, (b"tracestate", bad)])
        assert trace.headers("1" * 16) == {"traceparent": f"00-{ID}-{'1' * 16}-01"}


def test_a_share_of_the_others_is_sampled() -> None:
    """Within five standard deviations of 1%."""
    sampler = Sampler(0.01, True)
    found = sum(sampler.begin([]).sampled for _ in range(20_000))
    assert 130 <= found <= 270
