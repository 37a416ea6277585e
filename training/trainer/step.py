"""One update of the weights, from a batch that is computed in microbatches, in one process or in several.

A microbatch is what a GPU computes at once. Gradients, losses and batch-norm statistics are means over all microbatches
of all processes, and each microbatch is normalised by itself: two processes with one microbatch each compute what one
process with two computes.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.rng import GLOBAL_RNG, Rng
from ..networks.network import Network
from .awp import perturbed
from .distributed import SINGLE_PROCESS, World
from .objectives import Loss, Objective


@dataclass
class Runtime:
    """Where and how the arithmetic is done; chosen per machine, part of no checkpoint."""

    device: torch.device
    bf16: bool

    def autocast(self, cache: bool = True) -> torch.autocast:
        """A region of this arithmetic; with `cache`, a weight that is met twice in it is cast once."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=cache)


class Statistics:
    """Running statistics of the batch norms that train, in a step of several microbatches.

    Each microbatch starts from the statistics before the step, and at the end they move by the mean of all moves.
    Without this they would move once a microbatch, so that accumulation would change their momentum, and the statistics
    of the processes would diverge, so that each would attack another network in evaluation mode.
    """

    def __init__(self, net: nn.Module, microbatches: int) -> None:
        norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
        self.values = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
        self.counts = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
        self.before, self.counts_before = self.flat(), [t.clone() for t in self.counts]
        self.moves, self.microbatches = torch.zeros_like(self.before), microbatches

    def flat(self) -> Tensor:
        return torch.cat([t.reshape(-1) for t in self.values]) if self.values else torch.zeros(0)

    def write(self, flat: Tensor) -> None:
        for t, piece in zip(self.values, flat.split([t.numel() for t in self.values]), strict=True):
            t.copy_(piece)

    def start_microbatch(self) -> None:
        self.write(self.before)
        for t, count in zip(self.counts, self.counts_before, strict=True):
            t.copy_(count)

    def end_microbatch(self) -> None:
        self.moves += (self.flat() - self.before) / self.microbatches

    def apply(self, world: World) -> None:
        world.mean_([self.moves])
        self.write(self.before + self.moves)  # of what did not move, the very same bits


class Losses(NamedTuple):
    """The losses of a step, as numbers."""

    total: float
    terms: dict[str, float]


def train_step(
    net: Network,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    runtime: Runtime,
    awp: float = 0.0,
    *,
    rng: Rng = GLOBAL_RNG,
    microbatches: int = 1,
    world: World = SINGLE_PROCESS,
) -> Losses:
    """One update of `net`; with `awp` > 0 the loss is taken at the worst weights within that share of their norm.

    x [n,3,H,W] and y [n] are the images and labels of this process, computed in equal microbatches one after the other;
    the losses that come back are means over all microbatches of all processes.

    Raises:
        FloatingPointError: the loss is not finite; the weights are as before, in every process.
        ValueError: n is no multiple of `microbatches`.
    """
    if len(x) % microbatches:
        raise ValueError(f"{len(x)} images are not {microbatches} equal microbatches")
    objective.whole_batch = microbatches * world.size == 1
    slices = [slice(i, i + len(x) // microbatches) for i in range(0, len(x), len(x) // microbatches)]
    steps = []
    for own in slices:  # all before the first backward pass: every microbatch attacks the same network
        with runtime.autocast():
            steps.append(objective.prepare(net, x[own], y[own], rng[own]))
    optimizer.zero_grad(set_to_none=True)
    statistics = None if objective.whole_batch else Statistics(net, microbatches)
    losses: list[list[float]] = []
    names: list[str] = []

    def seed(i: int) -> None:
        rng.seed(world.rank * microbatches + i)

    with perturbed(net, objective, steps, awp, runtime.autocast(), world, seed) if awp else nullcontext():
        for i, step in enumerate(steps):
            seed(i)
            if statistics:
                statistics.start_microbatch()
            with runtime.autocast():
                loss = objective.loss(net, step)
            (loss.total / microbatches).backward()
            if statistics:
                with torch.no_grad():
                    statistics.end_microbatch()
            names, values = list(loss.terms), numbers(loss).tolist()  # one wait for all
            losses.append(values)
        total, *others = world.mean([sum(column) / microbatches for column in zip(*losses, strict=True)])
        named = dict(zip(names, others, strict=True))
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {total} ({named}); lower optim.lr or switch bf16 off")
    with torch.no_grad():
        world.mean_([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None])
        if statistics:
            statistics.apply(world)
    if not objective.whole_batch:
        objective.end_step({name: torch.tensor(value, device=x.device) for name, value in named.items()})
    optimizer.step()
    return Losses(total, named)


def numbers(loss: Loss) -> Tensor:
    """Total and terms of a loss, float64 [1 + terms], where they were computed."""
    return torch.stack([t.detach().double() for t in (loss.total, *loss.terms.values())])
