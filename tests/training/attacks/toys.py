"""Networks whose worst image is known, because it was built in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.networks.network import Branch, DetectingNetwork, Network, Signals


def level(z: Tensor) -> Tensor:
    """How far the mean of z [N,C,H,W] lies over mid grey, in grey levels, [N]."""
    return (z.mean((1, 2, 3)) - 128 / 255) * 255


class Linear(Network):
    """Two logits from one weighted sum: the worst image of a ball is x + eps * sign(w), for class 0.

    bias: added to the logit of class 1; low enough, no image of the ball is misclassified.
    """

    kind = "linear"

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, z: Tensor) -> Tensor:
        score = ((z - 0.5) * self.weight).sum((1, 2, 3)) + self.bias
        return torch.stack([-score, score], dim=1)


class Lure(DetectingNetwork):
    """Brightness raises class 1 for whoever ignores the detector; the detector takes it back from 3 levels up.

    Class 1 wins between 2 and 4 levels, in the deployed network: an ascent with the detector's gradient cut
    passes through and ends at the edge of the ball, where class 0 wins.
    """

    kind = "lure"

    def detect(self, x: Tensor) -> Signals:
        over = (level(x) - 3).clamp(min=0)
        return Signals(torch.stack([over, -over], dim=1), ())

    def type_logits(self, x: Tensor) -> Tensor:
        return self.detect(x).type_logits

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        score = level(x) - 2 - 2 * signals.type_logits[:, 0]
        return torch.stack([-score, score], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x, self.detect(x))

    def temper(self, factor: float) -> None:
        raise AssertionError("attacks and audits change no network")


class Switch(Lure):
    """The natural branch is fooled from 6 levels up, and from 5 levels up it is the one that answers.

    Below, the detector is sure of an attack and the adversarial branch answers, which is never fooled: the class of the
    deployed network has no gradient there, and only one who forces the natural branch finds the way up.
    """

    def detect(self, x: Tensor) -> Signals:
        sure = torch.where(level(x) < 5, 200.0, -200.0)
        return Signals(torch.stack([sure, -sure], dim=1), ())

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        score = level(x) - 6
        natural = torch.stack([-score, score], dim=1)
        safe = natural * 0 + torch.tensor([1.0, -1.0])
        if branch is not None:
            return natural if branch == "nat" else safe
        return torch.where(signals.p_type[:, 1:] < 0.6, safe, natural)
