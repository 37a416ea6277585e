"""Counts the verdicts of the last minutes in memory, for the page at `/`. Lasting counts are in the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..core.verdict import VERDICTS, Verdict


class VerdictHistory:
    """A ring of verdict counts: `bins` slots of `bin_seconds` each, the last one being filled now.

    Its size is fixed, whatever the load. It belongs to one event loop and takes no lock.

    Args:
        clock: seconds that never go back; on Linux the default is the same in all processes, and so are the slots.
    """

    def __init__(self, bins: int = 60, bin_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = bin_seconds
        self._clock = clock
        self._counts = [[0] * len(VERDICTS) for _ in range(bins)]
        self._slot = int(clock() / bin_seconds)
        self._others: Mapping[int, Sequence[int]] = {}

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Count the verdicts of one answer."""
        self._turn()
        slot = self._counts[self._slot % len(self._counts)]
        for verdict in verdicts:
            slot[VERDICTS.index(verdict)] += 1

    def set_others(self, counts: Mapping[int, Sequence[int]]) -> None:
        """slot -> counts of the other workers, in place of those set before."""
        self._others = counts

    def document(self) -> dict[str, object]:
        """`bin_seconds`, the names in `verdicts`, and `counts` [bins][verdicts], oldest first, the last unfinished."""
        self._turn()
        none = [0] * len(VERDICTS)
        counts = [
            [ours + theirs for ours, theirs in zip(here, self._others.get(slot, none), strict=True)]
            for slot, here in self._slots()
        ]
        return {"bin_seconds": self._seconds, "verdicts": list(VERDICTS), "counts": counts}

    def state(self) -> list[tuple[int, list[int]]]:
        """(slot, counts) of those that are not empty, of this process alone."""
        self._turn()
        return [(slot, here) for slot, here in self._slots() if any(here)]

    def _slots(self) -> list[tuple[int, list[int]]]:
        bins = len(self._counts)
        return [(slot, self._counts[slot % bins]) for slot in range(self._slot - bins + 1, self._slot + 1)]

    def _turn(self) -> None:
        # No timer moves the ring: the next call empties the slots that have passed.
        now = int(self._clock() / self._seconds)
        if now <= self._slot:
            return
        for slot in range(self._slot + 1, min(now, self._slot + len(self._counts)) + 1):
            self._counts[slot % len(self._counts)] = [0] * len(VERDICTS)
        self._slot = now
