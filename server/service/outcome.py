"""What the service makes of one request, which each front end turns into its own answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from ..core.engine import Model, Signals
from ..core.modes import Mode
from ..core.policy import APPLIED, WITHHELD, Decision, Policy, reason
from ..core.verdict import Judgement
from ..errors import AWNetError
from ..guard.guard import Repeats


class Outcome(NamedTuple):
    """The engine's answer in `mode`, one judgement and one decision an image, in their order.

    Attributes:
        decisions: those of `policy`; a front end carries out what `withheld` says.
        repeats: what the query guard says of each image, where clients are to hear it.
        refused: by their place in the request, images that could not be decoded; everything else leaves them out.
    """

    model: Model
    mode: Mode
    signals: Signals
    judgements: list[Judgement]
    policy: Policy
    decisions: list[Decision]
    repeats: Sequence[Repeats] | None = None
    refused: Mapping[int, AWNetError] = MappingProxyType({})

    def withheld(self, policy: Policy) -> list[int]:
        """The images that `policy` withholds from the client: none where the request has another policy."""
        if policy != self.policy or policy not in APPLIED:
            return []
        return [n for n, decision in enumerate(self.decisions) if decision in WITHHELD]

    def reasons(self, withheld: Sequence[int]) -> str:
        """Why these images are withheld, as the end of a sentence."""
        return "; ".join(dict.fromkeys(reason(self.judgements[n], self.decisions[n]) for n in withheld))
