"""Operating points: everything that one set of weights can answer with, and the networks that answer so."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..networks.awnet import AWNet, bounded_mixture
from ..networks.network import DetectingNetwork, InMode


class Outputs(NamedTuple):
    """What every operating point is made of, for n images."""

    adv: Tensor  # [n,K] logits of the adversarial branch
    nat: Tensor  # [n,K] of the natural one
    norms: Tensor  # [n,K] with both batch norms weighted by P_type (Eq. 16)
    type_logits: Tensor  # [n,2]


@dataclass(frozen=True)
class Point:
    """What answers: the adversarial branch ("robust"), the natural one, or both as P_type weights them ("auto").

    Attributes:
        mode: one of `network.MODES`.
        mixing, limit, temperature: of "auto", as `AWNetConfig` has them; limit and temperature of "bounded" only.
    """

    mode: str
    mixing: str = ""
    limit: float = 0.0
    temperature: float = 0.0

    @property
    def name(self) -> str:
        if self.mode != "auto":
            return self.mode
        return f"auto, a_max {self.limit:g}, T {self.temperature:g}" if self.mixing == "bounded" else "auto, Eq. 16"

    @property
    def fixed(self) -> bool:
        """It has no number to choose, so it is measured whatever else is better: a mode, or Eq. 16."""
        return self.mixing != "bounded"

    def logits(self, outputs: Outputs) -> Tensor:
        """Its logits [n,K]."""
        match self.mode, self.mixing:
            case "robust", _:
                return outputs.adv
            case "natural", _:
                return outputs.nat
            case _, "norms":
                return outputs.norms
        return bounded_mixture(outputs.adv, outputs.nat, outputs.type_logits, self.limit, self.temperature)

    def network(self, net: AWNet) -> DetectingNetwork:
        """A network that answers at this point; it shares the modules of `net`, which stays as it is."""
        if self.mode != "auto":
            return InMode(net, self.mode)
        view = copy.copy(net)
        view.config = replace(net.config, **self.changes())
        return view

    def changes(self) -> dict[str, Any]:
        """The fields of `AWNetConfig` that a checkpoint of this point has; none where only the mode differs."""
        if self.mode != "auto":
            return {}
        if self.mixing == "norms":
            return {"mixing": "norms"}
        return {"mixing": "bounded", "mixing_limit": self.limit, "mixing_temperature": self.temperature}


FIXED = (Point("robust"), Point("natural"), Point("auto", "norms"))


def grid(limits: Sequence[float], temperatures: Sequence[float]) -> list[Point]:
    """The fixed points, then bounded mixing with every limit and every temperature."""
    pairs = [(a, t) for a in limits for t in temperatures]
    return [*FIXED, *(Point("auto", "bounded", a, t) for a, t in dict.fromkeys(pairs))]


def outputs_of(net: AWNet, batches: Iterable[Tensor]) -> Outputs:
    """Of x [n,3,H,W] in [0,1], batch by batch; the network is prepared, and the result is where it is."""
    weighted = FIXED[-1].network(net)
    found = []
    with torch.no_grad():
        for x in batches:
            signals = net.detect(x)
            branches = net.classify(x, signals, "adv"), net.classify(x, signals, "nat")
            found.append((*branches, weighted.classify(x, signals), signals.type_logits))
    return Outputs(*(torch.cat(column) for column in zip(*found, strict=True)))
