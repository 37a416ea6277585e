"""The load table: how many connections each worker has, so that workers that share a socket keep them even."""

from __future__ import annotations

import mmap
import os
import struct

PATIENCE_SECONDS = 0.004  # how long a new connection is left to a worker that has fewer; a busy one is soon back
_ENTRY = struct.Struct("=I")
_NOBODY = 0xFFFFFFFF


class LoadTable:
    """How many connections each worker has, in memory that all workers share.

    Left to the kernel, the first worker to wake would accept all clients that connect together, and keep them. The
    numbers are a hint: one that is out of date costs a connection a few milliseconds, never more.

    Args:
        descriptor: of the memory, see `shared_memory`.
        number: this worker, from 0.
    """

    def __init__(self, descriptor: int, workers: int, number: int) -> None:
        self._memory = mmap.mmap(descriptor, workers * _ENTRY.size)
        self._workers = workers
        self._number = number

    def post(self, connections: int) -> None:
        """Write this worker's number of connections."""
        _ENTRY.pack_into(self._memory, self._number * _ENTRY.size, connections)

    def clear(self, number: int) -> None:
        """That worker accepts none."""
        _ENTRY.pack_into(self._memory, number * _ENTRY.size, _NOBODY)

    def patience(self, connections: int) -> float:
        """How long a worker with so many leaves a new connection to others, seconds; 0 where no other has fewer."""
        numbers = (value for (value,) in _ENTRY.iter_unpack(self._memory[:]))
        return PATIENCE_SECONDS if any(number < connections for number in numbers) else 0.0


def shared_memory(workers: int) -> int:
    """The descriptor of a new load table in which no worker accepts connections."""
    descriptor = os.memfd_create("awnet-workers")
    os.write(descriptor, _ENTRY.pack(_NOBODY) * workers)
    return descriptor
