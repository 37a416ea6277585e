"""The trace that a request belongs to, as W3C Trace Context has it, and the headers that hand it on."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


def new_span_id() -> str:
    """16 hexadecimal digits, not all 0; no secret."""
    return f"{random.getrandbits(64) or 1:016x}"


@dataclass(frozen=True, slots=True)
class Trace:
    """The span of one request in its trace. Ids are hexadecimal, in lower case.

    Attributes:
        trace_id: 32 digits.
        sampled: its spans are exported; log lines and headers carry the ids of any trace.
        parent_id: the caller's span, 16 digits; None where the trace begins here.
        state: the caller's `tracestate`, handed on as it came.
        span_id: 16 digits.
    """

    trace_id: str
    sampled: bool
    parent_id: str | None = None
    state: str = ""
    span_id: str = field(default_factory=new_span_id)

    def headers(self, span_id: str) -> dict[str, str]:
        """What a call made in the child span `span_id` carries."""
        found = {"traceparent": f"00-{self.trace_id}-{span_id}-{self.sampled:02x}"}
        return found | {"tracestate": self.state} if self.state else found
