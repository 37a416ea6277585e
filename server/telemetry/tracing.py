"""Which trace a request belongs to, by W3C Trace Context, and whether it is sampled."""

from __future__ import annotations

import random
import re

from ..core.trace import Trace
from ..monitoring.request import Headers

# https://www.w3.org/TR/trace-context/: a later version may go on behind the flags, and begins in the same way.
_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(rb"[ -~]{1,512}")  # no tab, which metadata of gRPC may not hold: such a call to Triton would fail
SAMPLED = 0x01


class Sampler:
    """Begins the traces of requests.

    Args:
        ratio: share of requests to sample, from 0 to 1.
        follow: a request whose caller is in a trace is sampled as that is; else it has its chance like any other, so
            that no caller decides what is sent from here.
    """

    def __init__(self, ratio: float, follow: bool) -> None:
        self._below = round(ratio * (1 << 32))  # of 32 random bits
        self._follow = follow

    def begin(self, headers: Headers) -> Trace:
        """The trace of a request with these headers; a `traceparent` that is none, or not alone, is passed over."""
        parents, states = [], []
        for name, value in headers:
            if name == b"traceparent":
                parents.append(value)
            elif name == b"tracestate":
                states.append(value)
        found = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
        if found is None or (found[1] == b"00" and found[5]):
            return Trace(f"{random.getrandbits(128) or 1:032x}", self._draw())
        sampled = bool(int(found[4], 16) & SAMPLED) if self._follow else self._draw()
        state = b",".join(states)
        kept = state.decode() if _STATE.fullmatch(state) else ""
        return Trace(found[2].decode(), sampled, found[3].decode(), kept)

    def _draw(self) -> bool:
        return random.getrandbits(32) < self._below
