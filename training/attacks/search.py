"""The search of T3 for a wrong class *and* an unflagged score, whatever gives them: targets, strategies, the walk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..networks.network import ADVERSARIAL, NATURAL, Branch, DetectingNetwork
from .ascent import Budget, quantise, whole_levels

STEP = 2 / 255  # the first step of strategies that let the budget say how far it goes


class Seen(NamedTuple):
    """What an attacker has of a target at n images."""

    logits: Tensor  # [n,K] of the deployed classifier, without a gradient: they say who is misclassified
    score: Tensor  # [n] float32, without a gradient: an image is flagged where `score > threshold`
    attacked: Tensor  # [n,K] logits whose gradient the attacker takes, the deployed ones or those of a forced branch
    log_odds: Tensor  # [n] rises with the score and has a gradient where the score, a probability, is saturated


class Target(Protocol):
    """A classifier that rejects images: a network with a detector, or a static one with any score beside it."""

    def judge(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [n,K], score [n]) of z [n,3,H,W] as deployed."""
        ...

    def see(self, z: Tensor, branch: Branch | None) -> Seen:
        """The same with what an attacker differentiates; `branch` is forced where the target has branches."""
        ...


@dataclass(frozen=True)
class Detecting:
    """A network with its own detector, in evaluation mode; only `detect` and `classify` are called."""

    net: DetectingNetwork

    def judge(self, z: Tensor) -> tuple[Tensor, Tensor]:
        signals = self.net.detect(z)
        return self.net.classify(z, signals), signals.p_type[:, ADVERSARIAL].float()

    def see(self, z: Tensor, branch: Branch | None) -> Seen:
        """A forced branch has omega frozen: its gradient does not flow through the detector."""
        signals = self.net.detect(z)
        deployed = self.net.classify(z, signals) if branch is None else None
        with torch.no_grad():
            logits = self.net.classify(z, signals) if deployed is None else deployed.detach()
            score = signals.p_type[:, ADVERSARIAL].float()
        attacked = self.net.classify(z, signals.detach(), branch) if deployed is None else deployed
        type_logits = signals.type_logits.float()
        return Seen(logits, score, attacked, type_logits[:, ADVERSARIAL] - type_logits[:, NATURAL])


class Walk(NamedTuple):
    """Where a strategy stands, one row an image."""

    at: Tensor  # [n,3,H,W] in the ball; the 8-bit image nearest to it is judged and differentiated
    velocity: Tensor  # [n,3,H,W] the gradients so far, for strategies with momentum
    lean: Tensor  # [n] log-odds of the class against the score in the step, for strategies that weigh both

    def rows(self, index: Tensor) -> Walk:
        return Walk(self.at[index], self.velocity[index], self.lean[index])


class Strategy(Protocol):
    """How a search walks: which gradient it takes, and how far it goes along it."""

    @property
    def branch(self) -> Branch | None:
        """What `Target.see` is asked for."""
        ...

    @property
    def steps(self) -> int:
        """Its own number of steps."""
        ...

    def start(self, x: Tensor, budget: Budget, first: bool) -> Tensor:
        """Where a try begins, [n,3,H,W]: at x or, from the second try on, somewhere in the ball."""
        ...

    def step(self, i: int, walk: Walk, z: Tensor, seen: Seen, x: Tensor, y: Tensor, budget: Budget) -> Walk:
        """The walk after step number i; z, the 8-bit image judged, is what `seen` differentiates to."""
        ...


class Evaded(NamedTuple):
    """The best that a search found for each image: of the misclassified 8-bit images, the one with the lowest score."""

    x_adv: Tensor  # [N,3,H,W], 8-bit values in [0,1]; x itself where nothing misclassified was found
    score: Tensor  # [N] of the deployed target for it; infinite where nothing was found

    def success(self, threshold: float) -> Tensor:
        """[N] bool: misclassified and not flagged (`score > threshold` is what flags)."""
        return self.score <= threshold

    def enter(self, rows: Tensor, z: Tensor, y: Tensor, logits: Tensor, score: Tensor) -> None:
        """Keep z [n,3,H,W] where it is misclassified with a lower score than what stands in `rows` [n]."""
        better = ((logits.argmax(1) != y) & (score < self.score[rows])).nonzero().squeeze(1)
        self.score[rows[better]] = score[better]
        self.x_adv[rows[better]] = z[better]


def nothing_yet(x: Tensor) -> Evaded:
    """The result before any search."""
    return Evaded(x.clone(), torch.full((len(x),), math.inf, device=x.device))


def search(
    target: Target,
    x: Tensor,
    y: Tensor,
    budget: Budget,
    how: Strategy,
    threshold: float,
    restarts: int = 1,
    best: Evaded | None = None,
) -> Evaded:
    """Walk towards a wrong class and a score of at most `threshold`, both judged on the deployed target.

    What is judged are 8-bit images only (start included), so what it finds is what a server would receive: nothing
    is lost to rounding afterwards. Every iterate is judged (an image that is misclassified and unflagged as it
    stands counts as evaded), the best one is kept, and an image is left alone from its first success on.

    Args:
        x: 8-bit images [N,3,H,W] in [0,1]; y: their classes [N].
        budget: eps is rounded down to whole grey levels; for steps and step size see the strategy.
        threshold: the score that must not be exceeded, e.g. the one for 5 % false positives.
        restarts: tries in all; the first starts at x.
        best: what other searches found, gone on with in place.

    Raises:
        ValueError: eps is under one grey level, or restarts under one.
    """
    whole_levels(budget.eps)
    if restarts < 1:
        raise ValueError("a search needs at least one try")
    x = quantise(x)
    best = nothing_yet(x) if best is None else best
    for attempt in range(restarts):
        active = (best.score > threshold).nonzero().squeeze(1)  # images without a success so far
        at = how.start(x[active], budget, first=attempt == 0)
        walk = Walk(at, torch.zeros_like(at), torch.zeros(len(at), device=at.device))
        for i in range(budget.steps + 1):
            if not len(active):
                return best
            z, last = quantise(walk.at).detach(), i == budget.steps
            if last:
                with torch.no_grad():
                    best.enter(active, z, y[active], *target.judge(z))
                break
            with torch.enable_grad():
                seen = target.see(z.requires_grad_(True), how.branch)
                best.enter(active, z.detach(), y[active], seen.logits, seen.score)
                walk = how.step(i, walk, z, seen, x[active], y[active], budget)
            todo = (best.score[active] > threshold).nonzero().squeeze(1)
            if len(todo) < len(active):
                walk, active = walk.rows(todo), active[todo]
    return best


def best_case(
    target: Target,
    x: Tensor,
    y: Tensor,
    eps: float,
    strategies: Sequence[Strategy],
    threshold: float,
    restarts: int = 1,
) -> tuple[Evaded, Tensor]:
    """The best of several strategies, each with its own number of steps: (the result, who succeeded first).

    The latter is [N], an index into `strategies` or -1. An image that one got through is left alone by the next.
    Other arguments and errors as for `search`.
    """
    best = nothing_yet(quantise(x))
    by = torch.full((len(x),), -1, device=x.device)
    for i, how in enumerate(strategies):
        search(target, x, y, Budget(eps, STEP, how.steps), how, threshold, restarts, best)
        by[best.success(threshold) & (by < 0)] = i
    return best, by
