"""Models of the attackers: a copy of the network to differentiate (T1, T2), or other networks only (T0)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import checkpoint
from ..network import DetectingNetwork, Network
from ..pretrained import PRETRAINED, load_pretrained


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


@dataclass
class Surrogate:
    """A network that a T0 attacker has; `sha256` of its weights file names it in the report and the cache."""

    name: str
    network: Network
    sha256: str


def load_surrogate(spec: str, device: torch.device) -> Surrogate:
    """NAME=FILE (a checkpoint, or the weights of a network in `PRETRAINED`), or the name 'pyautoattack'."""
    name, _, file = spec.partition("=")
    if name in PRETRAINED:
        network: Network = load_pretrained(name, Path(file) if file else None)
    elif file:
        network = checkpoint.load(Path(file)).network
    else:
        raise ValueError(f"a surrogate is NAME=FILE, or one of {sorted(PRETRAINED)}; {spec!r} is neither")
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return Surrogate(name, prepared(network, device), digest.hexdigest())


def prepared(net: Network, device: torch.device) -> Network:
    """Evaluation mode, no weight gradients (only the image's is wanted), channels last."""
    return net.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
