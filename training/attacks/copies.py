"""A network as its attacker differentiates it: all of it (T2), with the detector's gradient cut (T1), or a branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.network import NATURAL, Branch, DetectingNetwork, Network, Signals

SURE = 100.0  # log-odds at which a softmax is 1 in float32


@dataclass(frozen=True)
class AttackersCopy:
    """A network as an attacker differentiates it, x -> logits: the whole of one without a detector.

    bf16 computes the attacker's gradients (nothing else) in bfloat16.
    """

    net: Network
    bf16: bool = False

    @property
    def as_deployed(self) -> bool:
        """Its logits are those of the deployed network, only its gradient is another."""
        return not self.bf16

    def __call__(self, z: Tensor) -> Tensor:
        with self.arithmetic(z):
            logits: Tensor = self.net(z)
            return logits

    def arithmetic(self, z: Tensor) -> torch.autocast:
        return torch.autocast(z.device.type, torch.bfloat16, enabled=self.bf16)


@dataclass(frozen=True)
class BlindCopy(AttackersCopy):
    """A T1 copy: the detector answers, but its gradient is cut."""

    net: DetectingNetwork

    def __call__(self, z: Tensor) -> Tensor:
        with self.arithmetic(z):
            with torch.no_grad():
                signals = self.net.detect(z)
            return self.net.classify(z, signals)


@dataclass(frozen=True)
class DetectorsCopy(AttackersCopy):
    """A T2 copy with type logits, which the paper's adaptive attack differentiates."""

    net: DetectingNetwork

    def with_type(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and type logits [N, 2]."""
        with self.arithmetic(z):
            signals = self.net.detect(z)
            return self.net.classify(z, signals), signals.type_logits


@dataclass(frozen=True)
class BranchCopy(AttackersCopy):
    """The trunk with one branch forced: "nat" is P(natural) = 1, "adv" is 0; omega is the detector's, its gradient cut.

    Where the detector is certain, the deployed network's class hardly has a gradient through the branch that it
    switched off, and none through the switch: a forced branch has one.
    """

    net: DetectingNetwork
    branch: Branch = "nat"
    as_deployed = False

    def __call__(self, z: Tensor) -> Tensor:
        with self.arithmetic(z):
            with torch.no_grad():
                signals = self.net.detect(z)
            return self.net.classify(z, signals, self.branch)


@dataclass(frozen=True)
class HeldCopy(AttackersCopy):
    """The network with P(natural) held at 0.5, or at 1: omega keeps its gradient, and the weighting has none.

    At 0.5 both branches answer. At 1 a bounded mixture gives the natural branch all that it can have (a_max), and still
    the adversarial one more than half, which forcing a branch does not show.
    """

    net: DetectingNetwork
    natural: bool = False
    as_deployed = False

    def __call__(self, z: Tensor) -> Tensor:
        with self.arithmetic(z):
            signals = self.net.detect(z)
            held = torch.zeros_like(signals.type_logits)
            if self.natural:
                held[:, NATURAL] = SURE
            return self.net.classify(z, Signals(held, signals.omega))


@dataclass(frozen=True)
class BothCopy(AttackersCopy):
    """The sum of what both branches say, as log-probabilities; omega keeps its gradient, the weighting has none.

    Whoever turns both branches turns every mixture of them. Of a bounded mixture with a temperature, the adversarial
    branch's softmax is often saturated and its gradient gone; here both pull alike.
    """

    net: DetectingNetwork
    as_deployed = False

    def __call__(self, z: Tensor) -> Tensor:
        with self.arithmetic(z):
            signals = self.net.detect(z)
            said = (self.net.classify(z, signals, branch) for branch in get_args(Branch))
            return sum((F.log_softmax(logits.float(), dim=1) for logits in said), torch.zeros(()))


def attackers_copy(net: Network, level: str, bf16: bool = False) -> AttackersCopy:
    """What an attacker differentiates of `net`: T1, T2, its trunk with a branch forced ("nat", "adv"), or the network
    with P(natural) held at 0.5 ("half") or 1 ("sure"), or both branches together ("both").

    A network without a detector is the same to all of them.

    Raises:
        ValueError: there is no such copy.
    """
    detecting = net.detecting
    if detecting is None:
        return AttackersCopy(net, bf16)
    match level:
        case "T1":
            return BlindCopy(detecting, bf16)
        case "T2":
            return DetectorsCopy(detecting, bf16)
        case "nat" | "adv":
            return BranchCopy(detecting, bf16, level)
        case "half":
            return HeldCopy(detecting, bf16)
        case "sure":
            return HeldCopy(detecting, bf16, natural=True)
        case "both":
            return BothCopy(detecting, bf16)
    raise ValueError(f"an attacker's copy is T1, T2, nat, adv, half, sure or both, not {level}")
