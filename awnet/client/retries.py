"""When a request is tried again: how often, how long after, and how much more load that may make.

Retries of many clients are what keeps an overloaded server down, so each client has a budget beside the limit of a
single call: an outage costs it a handful of retries, and then no more than a share of what succeeds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class Retries:
    """How a client tries again where the server answers 429 or 503, or where the connection fails.

    Attributes:
        attempts: tries of one call at most; 1 tries never again.
        first_seconds, longest_seconds: the wait before try n is random, from 0 to `first_seconds` * 2^n and never more
            than `longest_seconds`. A `Retry-After` of the server comes on top, and is never cut.
        budget: retries that a client may make without a success.
        per_success: what a success adds to what is left of it.
    """

    attempts: int = 4
    first_seconds: float = 0.1
    longest_seconds: float = 5.0
    budget: float = 10.0
    per_success: float = 0.1

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.first_seconds, self.longest_seconds, self.budget, self.per_success) < 0:
            raise ValueError("a client tries at least once, and nothing of its retries is negative")

    def wait(self, tried: int, after: float | None, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """Seconds to wait after `tried` tries, of which the last was told to wait `after` seconds."""
        most = min(self.longest_seconds, self.first_seconds * 2 ** min(tried, 30))
        return (after or 0.0) + uniform(0.0, most)


class Budget:
    """What is left of a client's retries; used by one event loop."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._left = retries.budget

    def take(self) -> bool:
        """Whether one more retry may be made."""
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._left = min(self._retries.budget, self._left + self._retries.per_success)


def retry_after(header: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a `Retry-After` header asks for; None where there is none, or it is none."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now())
    except (ValueError, OverflowError):
        return None
