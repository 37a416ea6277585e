"""The best iterate of an attack: what counts of an iterative attack is the strongest 8-bit image that it met."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .ascent import Budget, Model, ascend, margin, quantise
from .copies import AttackersCopy


def deployed(model: Model) -> Model:
    """What answers in the end: of an attacker's copy the network itself, in float32; any other model is its own."""
    return model.net if isinstance(model, AttackersCopy) else model


class BestIterate:
    """For each of N images the 8-bit image with the largest margin of the deployed network that was entered so far.

    A misclassified one has a positive margin, so it beats every one that is not, and the order holds on both sides.
    x itself is entered first: an attack never returns less than no attack.

    Args:
        judge: the deployed network, [n,3,H,W] in [0,1] -> logits [n,K].
        x: 8-bit images [N,3,H,W] in [0,1]; y: their classes [N].
        margins: what the deployed network says of x [N], where the caller has it already.

    Attributes:
        x_adv: [N,3,H,W], 8-bit values in [0,1].
        margin: [N], float32, of `judge` for `x_adv`; positive is misclassified.
    """

    def __init__(self, judge: Model, x: Tensor, y: Tensor, margins: Tensor | None = None) -> None:
        self.judge, self.y = judge, y
        self.x_adv = x.clone()
        self.margin = self.judged(x, y) if margins is None else margins.detach().clone()

    def judged(self, x_adv: Tensor, y: Tensor) -> Tensor:
        """The deployed network's margin [n] for x_adv [n,3,H,W]."""
        with torch.no_grad():
            return margin(self.judge(x_adv), y)

    @property
    def resisting(self) -> Tensor:
        """Indices of the images that nothing entered so far misclassifies."""
        return (self.margin <= 0).nonzero().squeeze(1)

    def enter(self, x_adv: Tensor, rows: Tensor | None = None, margins: Tensor | None = None) -> Tensor:
        """Keep x_adv [n,3,H,W], rounded to 8 bits, where it is better; returns its margins [n].

        Args:
            rows: which images they belong to [n]; None: all of them.
            margins: what the deployed network says of exactly these, where the caller has it already.
        """
        x_adv = quantise(x_adv.detach())
        if rows is None:
            rows = torch.arange(len(self.y), device=x_adv.device)
        found = self.judged(x_adv, self.y[rows]) if margins is None else margins.detach()
        better = found > self.margin[rows]
        self.x_adv[rows[better]], self.margin[rows[better]] = x_adv[better], found[better]
        return found

    def ascend(self, loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, budget: Budget) -> Tensor:
        """`ascend` with every iterate entered, the start and the last one too; returns the last one, not rounded."""

        def watched(z: Tensor) -> Tensor:
            self.enter(z)
            return loss(z)

        last = ascend(watched, x, start, budget)
        self.enter(last)
        return last
