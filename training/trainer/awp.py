"""Adversarial weight perturbation (Wu, Xia and Wang, NeurIPS 2020): train at the worst weights nearby."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..networks.network import Network
from .distributed import SINGLE_PROCESS, World
from .objectives import Objective, Step


@contextmanager
def perturbed(
    net: Network,
    objective: Objective,
    step: Step | Sequence[Step],
    gamma: float,
    autocast: torch.autocast,
    world: World = SINGLE_PROCESS,
    before: Callable[[int], None] = lambda microbatch: None,
) -> Iterator[dict[str, Tensor]]:
    """`net` with every filter and matrix w moved by gamma * |w| * g/|g|, g the gradient of the step's loss: of the
    mean over the microbatches of all processes. `before` is called with the number of each microbatch before its loss.

    That is one step of the paper's Eq. 8 (Algorithm 1), layer by layer; vectors (biases, batch norms) stay. Inside
    the block the loss is to be computed and differentiated; on leaving it the weights are what they were, bit for
    bit, so the optimiser then moves the original weights by the gradient taken at the perturbed ones. (The
    published code subtracts the perturbation again *after* the optimiser's step: the same up to weight decay.)
    Batch-norm statistics and the objective's state move once, in the block, as without a perturbation. Yields
    what was added, by name.

    The gradient is taken in an autocast region of its own, which must not be entered yet: autocast keeps
    low-precision copies of weights as long as a region lasts, and would not see that they have moved.
    """
    named = {name: p for name, p in net.named_parameters() if p.requires_grad and p.dim() > 1}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    state = objective.state_dict()
    steps = [step] if isinstance(step, Step) else step
    gradients: list[Tensor | None] = [None] * len(named)
    for i, one in enumerate(steps):
        before(i)
        with autocast:
            total = objective.loss(net, one).total / len(steps)
        for j, g in enumerate(torch.autograd.grad(total, list(named.values()), allow_unused=True)):
            so_far = gradients[j]
            gradients[j] = so_far if g is None else g if so_far is None else so_far + g
    world.mean_([g for g in gradients if g is not None])
    objective.load_state_dict(state)
    kept = {name: p.detach().clone() for name, p in named.items()}
    moves: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(buffers[name])
            for (name, p), gradient in zip(named.items(), gradients, strict=True):
                if gradient is not None:
                    moves[name] = gamma * p.norm() / (gradient.norm() + 1e-20) * gradient
                    p.add_(moves[name])
        yield moves
    finally:
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(kept[name])
