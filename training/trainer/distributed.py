"""The processes of one training (`torchrun`): which one this is, and what they tell each other.

Every process holds the whole network, learns from its own part of each batch, and averages explicitly: gradients,
statistics, losses. Nothing wraps the network (docs/decisions/0015-*.md says why), so a step may call whatever it
likes as often as it likes. With one process all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # rank 0 writes best.pt and measures thresholds while the others wait


@dataclass(frozen=True)
class Ranks:
    """Process number `rank` of `size`. All of them must make the same calls in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor (all of one type, on one device) by its mean over the processes: one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        _write(tensors, flat / self.size)

    def mean(self, numbers: Sequence[float]) -> list[float]:
        """Their means over the processes, in float64."""
        if self.size == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return [float(s) / self.size for s in sums]

    def gather(self, thing: T) -> list[T]:
        """What every process has, in their order, for all of them."""
        things = [thing] * self.size
        if self.size > 1:
            dist.all_gather_object(things, thing)
        return things

    def first_says(self, *flags: bool) -> list[bool]:
        """The flags of rank 0, whose clock decides for all."""
        if self.size == 1:
            return list(flags)
        said = torch.tensor(flags, dtype=torch.uint8)
        dist.broadcast(said, src=0)
        return [bool(s) for s in said]

    def wait(self) -> None:
        """Until every process is here."""
        self.first_says(True)

    def same(self, net: nn.Module) -> None:
        """Give all processes rank 0's tensors, having made sure that they hold the same to float32's precision.

        Raises:
            RuntimeError: they do not, so they have trained different networks.
        """
        if self.size == 1:
            return
        tensors = [t for t in net.state_dict().values() if t.is_floating_point()]
        sizes = self.gather(sum(float(t.double().abs().sum()) for t in tensors))
        if not max(sizes) - min(sizes) <= 1e-6 * max(sizes):
            raise RuntimeError(f"the processes hold different networks: sums of their weights are {sizes}")
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.broadcast(flat, src=0)
        _write(tensors, flat)


def _write(tensors: Sequence[Tensor], flat: Tensor) -> None:
    for t, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(piece.view(t.shape))


SOLO = Ranks()


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """This process among those that `torchrun` started, and its device: 'cuda' is the GPU of its local rank.

    Not under `torchrun` it is alone. Messages about tensors on a GPU go by NCCL, all others by gloo.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:  # torchrun's, not ours: not part of any setting
        yield SOLO, torch.device(device)
        return
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), own
    finally:
        dist.destroy_process_group()
