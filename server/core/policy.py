"""Policies: what becomes of an image that the detector flags, or does not speak for.

`flag` answers every image, and the verdict is told. `abstain` gives no class, `reject` gives no answer to images at or
above a verdict (`Policies.at`). `observe` decides as those two do, and answers all the same: its decisions are only
counted.

The detector is unsure of an image where no threshold speaks for it (it is not calibrated), or where no score can exceed
the threshold. Then its verdict decides nothing: `closed` treats the image as flagged, `open` as not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .verdict import Judgement  # brings numpy, which a supervisor that reads settings does without

Policy = Literal["flag", "abstain", "reject", "observe"]
POLICIES: tuple[Policy, ...] = ("flag", "abstain", "reject", "observe")
Unsure = Literal["open", "closed"]
At = Literal["suspicious", "adversarial"]
Decision = Literal["answered", "answered-unsure", "withheld", "withheld-unsure"]
WITHHELD: frozenset[Decision] = frozenset({"withheld", "withheld-unsure"})
# What each policy may decide, for counters that begin at 0.
DECISIONS: dict[Policy, tuple[Decision, ...]] = {
    "flag": ("answered",),
    **dict.fromkeys(POLICIES[1:], ("answered", "answered-unsure", "withheld", "withheld-unsure")),
}
APPLIED: frozenset[Policy] = frozenset({"abstain", "reject"})


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of one server.

    Attributes:
        default: of models that have none of their own.
        of_models: model -> policy.
        at: the least verdict that is withheld.
        unsure: what is done with images that the detector is unsure of.
    """

    default: Policy = "flag"
    of_models: Mapping[str, Policy] = field(default_factory=dict)
    at: At = "adversarial"
    unsure: Unsure = "closed"

    def of(self, model: str, of_caller: Policy | None = None) -> Policy:
        """The policy of a request to `model`: that of its caller, else the model's, else the default."""
        return of_caller or self.of_models.get(model, self.default)

    def decide(self, policy: Policy, judgements: Sequence[Judgement]) -> list[Decision]:
        """What `policy` makes of each image."""
        if policy == "flag":
            return ["answered"] * len(judgements)
        return [self._decision(judged) for judged in judgements]

    def _decision(self, judged: Judgement) -> Decision:
        # A score is at most 1, and has to be above its threshold to be flagged.
        if not judged.calibrated or getattr(judged.applied.thresholds, self.at).score >= 1:
            return "withheld-unsure" if self.unsure == "closed" else "answered-unsure"
        flagged = judged.verdict == "adversarial" or (self.at == "suspicious" and judged.verdict == "suspicious")
        return "withheld" if flagged else "answered"


def reason(judged: Judgement, decision: Decision) -> str:
    """Why an image is withheld, as the end of a sentence."""
    if decision == "withheld":
        return f"its verdict is {judged.verdict}"
    return f"no threshold speaks for it ({judged.why or 'none can be exceeded'})"
