"""One update of the weights, from a batch that may be in parts: parts of this process, and parts in other processes.

A part is what a GPU computes at once. Whatever the number of parts, gradients, losses and batch-norm statistics are
means over them, and each part is normalised by itself: two processes and one process with two parts do the same.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..network import Network
from ..rng import GLOBAL, Chance
from .awp import perturbed
from .distributed import SOLO, Ranks
from .objectives import Loss, Objective


@dataclass
class Runtime:
    """Where and how the arithmetic is done; chosen per machine, part of no checkpoint."""

    device: torch.device
    bf16: bool

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


class Statistics:
    """Running statistics of the batch norms that train, in a step of several parts.

    Each part starts from the statistics before the step, and in the end they move by the mean of the parts' moves.
    Left alone they would move once a part, so that accumulation would change their momentum, and processes would
    drift apart, each attacking another network in evaluation mode.
    """

    def __init__(self, net: nn.Module, parts: int) -> None:
        norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
        self.values = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
        self.counts = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
        self.before, self.counts_before = self.flat(), [t.clone() for t in self.counts]
        self.moves, self.parts = torch.zeros_like(self.before), parts

    def flat(self) -> Tensor:
        return torch.cat([t.reshape(-1) for t in self.values]) if self.values else torch.zeros(0)

    def write(self, flat: Tensor) -> None:
        for t, piece in zip(self.values, flat.split([t.numel() for t in self.values]), strict=True):
            t.copy_(piece)

    def start_part(self) -> None:
        self.write(self.before)
        for t, count in zip(self.counts, self.counts_before, strict=True):
            t.copy_(count)

    def end_part(self) -> None:
        self.moves += (self.flat() - self.before) / self.parts

    def finish(self, ranks: Ranks) -> None:
        ranks.mean_([self.moves])
        self.write(self.before + self.moves)  # of what did not move, the very same bits


def train_step(
    net: Network,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    runtime: Runtime,
    awp: float = 0.0,
    *,
    chance: Chance = GLOBAL,
    parts: int = 1,
    ranks: Ranks = SOLO,
) -> Loss:
    """One update: make adversaries, minimise; with `awp` > 0 at the worst weights within that share of their norm.

    x [n,3,H,W] and y [n] are this process's images, taken in `parts` equal parts one after the other; the losses
    that come back are means over all parts of all processes.

    Raises:
        FloatingPointError: the loss is not finite; the weights are as before, in every process.
        ValueError: n is no multiple of `parts`.
    """
    if len(x) % parts:
        raise ValueError(f"{len(x)} images are not {parts} equal parts")
    objective.whole = parts * ranks.size == 1
    slices = [slice(i, i + len(x) // parts) for i in range(0, len(x), len(x) // parts)]
    steps = []
    for part in slices:  # all before the first is learnt from: every part attacks the network as it was
        with runtime.autocast():
            steps.append(objective.prepare(net, x[part], y[part], chance[part]))
    optimizer.zero_grad(set_to_none=True)
    statistics = None if objective.whole else Statistics(net, parts)
    losses: list[dict[str, float]] = []

    def seed(i: int) -> None:
        chance.seed(ranks.rank * parts + i)

    with perturbed(net, objective, steps, awp, runtime.autocast(), ranks, seed) if awp else nullcontext():
        for i, step in enumerate(steps):
            seed(i)
            if statistics:
                statistics.start_part()
            with runtime.autocast():
                loss = objective.loss(net, step)
            (loss.total / parts).backward()
            if statistics:
                with torch.no_grad():
                    statistics.end_part()
            losses.append({"total": loss.total.item(), **loss.parts})
        means = ranks.mean([sum(part[key] for part in losses) / parts for key in losses[0]])
        total, *shown = means
        named = dict(zip(list(losses[0])[1:], shown, strict=True))
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {total} ({named}); lower optim.lr or switch bf16 off")
    with torch.no_grad():
        ranks.mean_([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None])
        if statistics:
            statistics.finish(ranks)
    if not objective.whole:
        objective.settle(named)
    optimizer.step()
    return Loss(torch.tensor(total), named)
