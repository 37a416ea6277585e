"""How many images each group of parts gets, so that the audit fits its budget; pure arithmetic on expected costs.

An attack is never made weaker to save time: steps, restarts and queries stay, only images are fewer. What would have
too few to say anything is left out, and the report names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a group of parts costs.

    Attributes:
        name: of the group.
        seconds: expected, an image.
        wanted: images where time is no matter.
        least: fewer say too little; a group that cannot have them is left out.
    """

    name: str
    seconds: float
    wanted: int
    least: int


@dataclass(frozen=True)
class Plan:
    """Images and expected seconds of each group that is run, and the names of those that are not."""

    images: dict[str, int]
    seconds: dict[str, float]
    left_out: list[str]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def document(self) -> dict[str, Any]:
        return asdict(self)


def plan(costs: Sequence[Cost], budget: float) -> Plan:
    """The largest common share of all wanted images that fits `budget` seconds, no group under its least.

    Where even the least does not fit, groups are left out from the last one on: `costs` are in the order of their
    importance. The first one always stays.
    """
    kept = list(costs)
    while len(kept) > 1 and _total(kept, 0.0) > budget:
        kept.pop()
    low, high = 0.0, 1.0
    if _total(kept, 1.0) > budget:
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if _total(kept, middle) <= budget else (low, middle)
        high = low
    images = {c.name: _images(c, high) for c in kept}
    return Plan(
        images,
        {c.name: round(images[c.name] * c.seconds, 2) for c in kept},
        [c.name for c in costs if c not in kept],
    )


def _images(cost: Cost, share: float) -> int:
    return max(min(cost.least, cost.wanted), int(cost.wanted * share))


def _total(costs: Sequence[Cost], share: float) -> float:
    return sum(_images(c, share) * c.seconds for c in costs)
