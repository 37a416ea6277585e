"""The processes of one training (`torchrun`), and the collective operations among them.

Every process holds the whole network, takes its own share of each batch, and gradients, statistics and losses are
averaged explicitly. Nothing wraps the network (reasons: docs/decisions/0015-*.md), so a step may call any of its
methods any number of times. With one process all of this does nothing.
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

from ..core.hardware import device_of

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # rank 0 writes best.pt and measures thresholds while the others wait


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`. All processes must make the same calls in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and logs: rank 0."""
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
        """The `thing` of every process, by rank, in every process."""
        things = [thing] * self.size
        if self.size > 1:
            dist.all_gather_object(things, thing)
        return things

    def from_first(self, *flags: bool) -> list[bool]:
        """The flags of rank 0, in every process."""
        if self.size == 1:
            return list(flags)
        said = torch.tensor(flags, dtype=torch.uint8)
        dist.broadcast(said, src=0)
        return [bool(s) for s in said]

    def barrier(self) -> None:
        """Wait until every process has called this."""
        self.from_first(True)

    def synchronise(self, net: nn.Module) -> None:
        """Copy rank 0's tensors to all processes, having checked that all hold the same within float32's precision.

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


SINGLE_PROCESS = World()


@contextmanager
def process_group(device: str) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that `torchrun` started: yields this one and its device ('cuda' is the GPU of its local rank).

    Without `torchrun` it is a single process. Collectives on GPU tensors use NCCL, all others gloo.

    Raises:
        DeviceError: there is no such device here.
    """
    own = device_of(device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:  # torchrun's, not ours: not part of any setting
        yield SINGLE_PROCESS, own
        return
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), dist.get_world_size()), own
    finally:
        dist.destroy_process_group()
