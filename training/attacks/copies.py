"""A network as its attacker differentiates it: the whole of it (T2), or with the detector's gradient cut (T1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..network import DetectingNetwork, Network


@dataclass(frozen=True)
class AttackersCopy:
    """A network as an attacker differentiates it, x -> logits: the whole of one without a detector.

    bf16 computes the attacker's gradients (nothing else) in bfloat16.
    """

    net: Network
    bf16: bool = False

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


def attackers_copy(net: Network, level: str, bf16: bool = False) -> AttackersCopy:
    """What an attacker of T1 or T2 has of `net`."""
    detecting = net.detecting
    if detecting is None:
        return AttackersCopy(net, bf16)
    return BlindCopy(detecting, bf16) if level == "T1" else DetectorsCopy(detecting, bf16)
