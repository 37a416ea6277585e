"""The worst case of several attacks for each image: what is left of a network's accuracy when its attacker may choose.

An attacker who has the gradient of everything (T2) can run every attack of one who ignores the detector (T1), and can
differentiate the trunk with either branch forced: the worst case is over all of them. Each is an ascent with the step
schedule of APGD (Croce and Hein 2020, arXiv 2003.01690, sec. 3) that walks on 8-bit images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ..networks.network import Network
from .ascent import Budget, cross_entropy, margin, project, quantise, uniform_start, whole_levels
from .best import BestIterate
from .copies import AttackersCopy, attackers_copy

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "margin": margin}
MISSED, WRONG_AS_IT_IS = -1, -2


class Member(NamedTuple):
    """One of the attacks: what is differentiated (`copies.COPIES`) and which loss is ascended (`LOSSES`)."""

    copy: str
    loss: str

    @property
    def name(self) -> str:
        return f"{self.copy}_{self.loss}"


T1_MARGIN, T1_CE = Member("T1", "margin"), Member("T1", "ce")
OTHERS = [("T2", "margin"), ("T2", "ce"), ("nat", "ce"), ("half", "ce"), ("adv", "margin")]
OTHERS += [("nat", "margin"), ("half", "margin"), ("adv", "ce")]
# Strongest first, on validation images; T1 twice, since its second start breaks more than most others do.
DETECTING = (T1_MARGIN, T1_CE, T1_MARGIN, T1_CE, *(Member(copy, loss) for copy, loss in OTHERS))
STATIC = (Member("T2", "margin"), Member("T2", "ce"))
# Of a network whose detector decides nothing: it still sets omega, whose gradient T1 cuts.
FIXED = (Member("T2", "margin"), T1_MARGIN, Member("T2", "ce"), T1_CE)
# Of a bounded mixture. Trained for it, "both" alone broke 64 of the 65 images that any of sixteen members broke of 100
# validation images, and "sure" the last one; untrained, it was T1, then "sure" and "nat". Eight targeted runs broke
# none of what was left of either.
BOUNDED = (
    Member("both", "ce"),
    T1_MARGIN,
    Member("sure", "ce"),
    Member("nat", "ce"),
    Member("half", "margin"),
    Member("T2", "margin"),
    Member("adv", "margin"),
    T1_CE,
)
WORST_CASE_BUDGET = Budget(steps=50)

# What chooses the epoch of a training, with ten steps: together they break most of the two released networks.
QUICK_DETECTING = (T1_MARGIN, T1_CE, Member("T2", "ce"), Member("nat", "ce"))


class WorstCase(NamedTuple):
    """What `worst_case` found for each of N images."""

    x_adv: Tensor  # [N,3,H,W], 8-bit values in [0,1]; x itself where nothing misclassified was found
    nearest: Tensor  # [N,3,H,W], the same, but the image of the largest margin also where it is not misclassified
    margin: Tensor  # [N] of the deployed network for `nearest`; positive is misclassified
    by: Tensor  # [N] index of the member that broke the image first; MISSED or WRONG_AS_IT_IS where none did


def members_of(net: Network, quick: bool = False) -> tuple[Member, ...]:
    """The attacks that `worst_case` takes against this network; `quick`: the few that are run during a training."""
    if net.detecting is None:
        return STATIC
    if net.detecting.answering is not None:
        return FIXED
    if net.detecting.bounded:
        return BOUNDED[:4] if quick else BOUNDED
    return QUICK_DETECTING if quick else DETECTING


def worst_case(
    net: Network,
    x: Tensor,
    y: Tensor,
    budget: Budget = WORST_CASE_BUDGET,
    members: Sequence[Member] | None = None,
    bf16: bool = False,
) -> WorstCase:
    """The best iterate of all members for each image, judged on the deployed network in float32 at 8 bits.

    An image is left alone from its first success on, so the order of the members decides the cost, and whom
    `by` names, but hardly what is found. All members run `budget.restarts` times, each from a new random start.

    Args:
        net: in evaluation mode.
        x: 8-bit images [N,3,H,W] in [0,1]; y: their classes [N].
        budget: eps is rounded down to whole grey levels; the step size is not used (it starts at 2 eps).
        members: None: those of `members_of(net)`.
        bf16: gradients of the attackers (nothing else) in bfloat16.

    Raises:
        ValueError: eps is under one grey level.
    """
    eps = whole_levels(budget.eps)
    members = members_of(net) if members is None else members
    x = quantise(x)
    best = BestIterate(net, x, y)
    by = torch.where(best.margin > 0, WRONG_AS_IT_IS, MISSED)
    for _ in range(budget.restarts):
        for i, member in enumerate(members):
            if not len(rows := best.resisting):
                break
            copy = attackers_copy(net, member.copy, bf16)
            climb(copy, LOSSES[member.loss], best, x, rows, eps, budget.steps)
            by[rows[best.margin[rows] > 0]] = i
    lost = (best.margin > 0)[:, None, None, None]
    return WorstCase(torch.where(lost, best.x_adv, x), best.x_adv, best.margin, by)


def broken_first_by(by: Tensor, members: Sequence[Member]) -> dict[str, int]:
    """How many images each member broke that those before it had not, of `WorstCase.by`; none and no attack too."""
    names = {MISSED: "none", WRONG_AS_IT_IS: "no attack needed"} | {i: m.name for i, m in enumerate(members)}
    found = Counter(names[i] for i in by.tolist())
    return {name: found[name] for name in names.values()}


@dataclass
class Climb:
    """The state of APGD for n images, each with a step of its own."""

    rows: Tensor  # [n] which images of `BestIterate` they are
    z: Tensor  # [n,3,H,W] the point, not rounded
    before: Tensor  # [n,3,H,W] the point before
    step: Tensor  # [n,1,1,1]
    gradient: Tensor  # [n,3,H,W] at the rounded z
    value: Tensor  # [n] the loss there
    top: Tensor  # [n] the largest loss so far
    top_z: Tensor  # [n,3,H,W] the point where it was
    top_gradient: Tensor  # [n,3,H,W]
    rises: Tensor  # [n] how often the loss rose since the last checkpoint
    top_then: Tensor  # [n] the largest loss at the last checkpoint
    halved: Tensor  # [n] bool: the step was halved there

    def of(self, keep: Tensor) -> Climb:
        """The state of those images alone."""
        return Climb(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})


def climb(
    copy: AttackersCopy,
    loss: Callable[[Tensor, Tensor], Tensor],
    best: BestIterate,
    x: Tensor,
    rows: Tensor,
    eps: float,
    steps: int,
) -> None:
    """APGD on `loss` (logits, y -> [n]) of `copy` from a uniform start, for the images `rows` [n] of `best`.

    The step starts at 2 eps and is halved, back at the point of the largest loss, at checkpoints after which the
    loss rose too rarely or reached no new height; momentum is 0.75. The point is a float, loss and gradient are those
    of its rounding, and each rounded iterate is entered into `best`; an image ends with its first success.
    """
    start = uniform_start(x[rows], eps)
    zero, low = torch.zeros_like(rows, dtype=torch.float32), torch.full_like(rows, -math.inf, dtype=torch.float32)
    step = torch.full_like(zero, 2 * eps)[:, None, None, None]
    at = Climb(rows, start, start, step, start, low, low, start, start, zero, low, zero == 1)
    checks = checkpoints(steps)
    for i in range(steps + 1):
        at = _look(at, copy, loss, best, last=i == steps)
        if i == steps or not len(at.rows):
            return
        if i in checks:
            _check(at, checks[i])
        there = x[at.rows]
        moved = project(at.z + at.step * at.gradient.sign(), there, eps)
        if i:
            moved = project(at.z + 0.75 * (moved - at.z) + 0.25 * (at.z - at.before), there, eps)
        at.before, at.z = at.z, moved


def checkpoints(steps: int) -> dict[int, int]:
    """Iterations at which APGD looks back -> how many iterations it looks back over."""
    found, at, length = {}, 0, max(1, int(0.22 * steps))
    while at + length < steps:
        at += length
        found[at] = length
        length = max(length - max(1, int(0.03 * steps)), max(1, int(0.06 * steps)))
    return found


def _look(
    at: Climb, copy: AttackersCopy, loss: Callable[[Tensor, Tensor], Tensor], best: BestIterate, last: bool
) -> Climb:
    """Loss and gradient at the rounded point, which is judged; the state of the images that still resist."""
    z, y = quantise(at.z).requires_grad_(not last), best.y[at.rows]
    if last and not copy.as_deployed:
        best.enter(z, at.rows)
        return at
    with torch.set_grad_enabled(not last):
        logits = copy(z)
        value = loss(logits, y)
        gradient = at.gradient if last else torch.autograd.grad(value.sum(), z)[0]
    margins = best.enter(z, at.rows, margin(logits, y) if copy.as_deployed else None)
    value = value.detach()
    higher = value > at.top
    at.rises = at.rises + (value > at.value)
    at.gradient, at.value = gradient, value
    at.top = torch.where(higher, value, at.top)
    wide = higher[:, None, None, None]
    at.top_z, at.top_gradient = torch.where(wide, at.z, at.top_z), torch.where(wide, gradient, at.top_gradient)
    resisting = margins <= 0
    return at if bool(resisting.all()) else at.of(resisting)


def _check(at: Climb, length: int) -> None:
    """Conditions 1 and 2 of Croce and Hein's sec. 3: halve the step where one holds, and go back to the top.

    The first is "at most", as in the authors' code; in the first window the start counts as one rise, too.
    """
    stuck = (at.rises <= 0.75 * length) | (~at.halved & (at.top_then >= at.top))
    wide = stuck[:, None, None, None]
    at.step = torch.where(wide, at.step / 2, at.step)
    at.z, at.gradient = torch.where(wide, at.top_z, at.z), torch.where(wide, at.top_gradient, at.gradient)
    at.halved, at.top_then, at.rises = stuck, at.top, torch.zeros_like(at.rises)
