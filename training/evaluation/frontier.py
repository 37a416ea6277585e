"""The frontier of operating points: which ones no other beats in both clean and worst-case accuracy.

All points answer from the same branches, so that every 8-bit image that one point's attacker finds is tried on all of
them. An image that breaks one point proves nothing about another: each point is attacked by itself, with every member
of its worst case, unless it is beaten already. What is left of a point can only fall, so a point that is beaten by
what is left of a finished one stays beaten.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attacks.ascent import margin, whole_levels
from ..attacks.best import BestIterate
from ..attacks.copies import attackers_copy
from ..attacks.worst_case import LOSSES, Member, climb, members_of
from ..data.images import to_bytes
from ..networks.awnet import AWNet
from ..networks.network import DetectingNetwork
from .points import Outputs, Point, outputs_of

ELSEWHERE, MISSED, WRONG_AS_IT_IS = -3, -1, -2  # who broke an image, beside the index of a member


@dataclass(frozen=True)
class Standing:
    """Where a point stands: its clean accuracy, the share that its attackers have left so far, members run so far."""

    clean: float
    left: float
    run: int
    members: int
    fixed: bool = False

    @property
    def finished(self) -> bool:
        return self.run >= self.members


def beaten(standings: Sequence[Standing], i: int) -> bool:
    """Whether another point has at least as much of both; of equals the first one stands. Fixed points do not count."""
    one = standings[i]
    if one.fixed:
        return False
    for j, other in enumerate(standings):
        if j == i or other.fixed or other.clean < one.clean or other.left < one.left:
            continue
        if other.clean > one.clean or other.left > one.left or j < i:
            return True
    return False


def next_point(standings: Sequence[Standing]) -> int | None:
    """The point whose next member is run: unbeaten, not finished, with the fewest members run; None: all is done."""
    open_points = [i for i, s in enumerate(standings) if not s.finished and not beaten(standings, i)]
    return min(open_points, key=lambda i: (standings[i].run, -standings[i].clean, i), default=None)


@dataclass
class Attacked:
    """A point under attack: the best iterate of each image, who broke it, and how many members have been run."""

    point: Point
    net: DetectingNetwork
    members: tuple[Member, ...]
    best: BestIterate
    by: Tensor  # [N] index of a member; ELSEWHERE, MISSED or WRONG_AS_IT_IS
    run: int = 0

    @property
    def left(self) -> float:
        return float((self.best.margin <= 0).double().mean())


@dataclass
class Frontier:
    """The search over points of one network on the same 8-bit images.

    Attributes:
        net: prepared.
        points: those of the search, with `clean` accuracies.
        x, y: [N,3,H,W] in [0,1], [N].
        kept: what an earlier search found, see `state`.
    """

    net: AWNet
    points: Sequence[Point]
    clean: Sequence[float]
    x: Tensor
    y: Tensor
    eps: float
    steps: int
    seed: int = 0
    batch_size: int = 100
    bf16: bool = False
    kept: dict[str, Any] | None = None
    attacked: list[Attacked] = field(init=False)

    def __post_init__(self) -> None:
        outputs, kept = self._outputs(self.x), dict(self.kept or {})
        self.attacked = []
        for point in self.points:
            view = point.network(self.net)
            best = BestIterate(view, self.x, self.y, margin(point.logits(outputs), self.y))
            one = Attacked(point, view, members_of(view), best, torch.where(best.margin > 0, WRONG_AS_IT_IS, MISSED))
            if (found := kept.get(point.name)) is not None:
                best.x_adv, best.margin = found["x_adv"].to(self.x) / 255, found["margin"].to(best.margin)
                one.by, one.run = found["by"].to(one.by), found["run"]
            self.attacked.append(one)
        if new := [one for one in self.attacked if one.point.name not in kept]:
            for found in kept.values():
                self._share(found["x_adv"].to(self.x) / 255, torch.arange(len(self.y)), new)

    def state(self) -> dict[str, Any]:
        """What `kept` takes: with it a search goes on, of other points too, in plain containers and tensors."""
        found = {
            one.point.name: {
                "x_adv": to_bytes(one.best.x_adv).cpu(),
                "margin": one.best.margin.cpu(),
                "by": one.by.cpu(),
                "run": one.run,
            }
            for one in self.attacked
        }
        return dict(self.kept or {}) | found

    def standings(self) -> list[Standing]:
        return [
            Standing(clean, one.left, one.run, len(one.members), one.point.fixed)
            for clean, one in zip(self.clean, self.attacked, strict=True)
        ]

    def step(self) -> Attacked | None:
        """Runs one member against `next_point` and tries what it found on all others; None: all is done."""
        if (i := next_point(self.standings())) is None:
            return None
        one = self.attacked[i]
        member = one.members[one.run]
        torch.manual_seed(zlib.crc32(f"{self.seed} {one.point.name} {one.run} {member.name}".encode()))
        copy = attackers_copy(one.net, member.copy, self.bf16)
        before, resisting = one.best.margin.clone(), one.best.resisting
        for rows in resisting.split(self.batch_size):
            climb(copy, LOSSES[member.loss], one.best, self.x, rows, whole_levels(self.eps), self.steps)
        one.by[resisting[one.best.margin[resisting] > 0]] = one.run
        one.run += 1
        nearer = (one.best.margin > before).nonzero().squeeze(1)
        self._share(one.best.x_adv[nearer], nearer, [other for other in self.attacked if other is not one])
        return one

    def _share(self, x_adv: Tensor, rows: Tensor, others: Sequence[Attacked]) -> None:
        """Enters x_adv [n,3,H,W] of the images `rows` [n] at other points."""
        if not len(rows):
            return
        outputs = self._outputs(x_adv)
        for other in others:
            resisting = other.best.margin[rows] <= 0
            margins = other.best.enter(x_adv, rows, margin(other.point.logits(outputs), self.y[rows]))
            other.by[rows[resisting & (margins > 0)]] = ELSEWHERE

    def _outputs(self, x: Tensor) -> Outputs:
        return outputs_of(self.net, x.split(self.batch_size))


def who_broke(one: Attacked) -> dict[str, int]:
    """How many images each member broke first; nobody, no attack and the attackers of other points too."""
    names = {MISSED: "none", WRONG_AS_IT_IS: "no attack needed", ELSEWHERE: "found at another point"}
    names |= {i: member.name for i, member in enumerate(one.members)}
    found = Counter(names[i] for i in one.by.tolist())
    return {name: found[name] for name in dict.fromkeys(names.values()) if found[name]}
