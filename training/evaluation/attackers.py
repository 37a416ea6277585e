"""What attackers of T0 have: other networks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from ..networks import checkpoint
from ..networks.network import Network
from ..networks.pretrained import PRETRAINED, load_pretrained


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
    return Surrogate(name, prepared(network, device), weights_sha256(network))


def weights_sha256(network: Network) -> str:
    """Of the values of parameters and buffers, whatever else a checkpoint holds beside them."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def prepared(net: Network, device: torch.device) -> Network:
    """Evaluation mode, no weight gradients (only the image's is wanted), channels last."""
    return net.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
