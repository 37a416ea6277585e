"""Who sent a request, and what that lets them ask and learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from ..core.answers import Answers
from ..core.modes import Mode
from ..core.policy import Policy
from ..errors import Forbidden, Unauthorized

Scope = Literal["predict", "signals", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class Rate(NamedTuple):
    """A token bucket: so many requests a second in the long run, and `burst` at once."""

    requests_per_second: float
    burst: int

    @classmethod
    def of(cls, requests_per_second: float, burst: int | None) -> Rate:
        """Where no `burst` is given, as many as in a second."""
        return cls(requests_per_second, burst or max(1, round(requests_per_second)))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the key; None without one.
        scopes: what may be asked.
        answers: how much of the scores is told.
        mode: operating mode of requests that name none; None: that of the settings.
        policy: None: that of the model or of the settings.
        rate: of requests; None: that of the settings.
        queue_share: share of the queue; None: that of the settings.
    """

    name: str | None = None
    scopes: frozenset[Scope] = frozenset()
    answers: Answers = "verdict"
    mode: Mode | None = None
    policy: Policy | None = None
    rate: Rate | None = None
    queue_share: float | None = None

    @property
    def sees_signals(self) -> bool:
        """Whether logits, P_type and omega are told: that takes a scope, and answers that keep nothing back."""
        return "signals" in self.scopes and self.answers == "exact"

    def require_signals(self) -> None:
        """Raises Unauthorized, Forbidden where `sees_signals` is false."""
        self.require("signals")
        if not self.sees_signals:
            raise Forbidden(f"signals are not told to this caller, whose answers are {self.answers!r}")

    def require(self, scope: Scope) -> None:
        """Raises Unauthorized where nobody may without a key, Forbidden where this key may not."""
        if scope not in self.scopes:
            if self.name is None:
                raise Unauthorized(f"this needs a key with the scope {scope!r}: send 'Authorization: Bearer KEY'")
            raise Forbidden(f"this key lacks the scope {scope!r}")


# Where there are no keys.
ANYBODY = Caller(scopes=frozenset(SCOPES), answers="exact")
# Of a request before it is known who asks: least of everything.
NOBODY = Caller()
