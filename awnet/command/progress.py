"""What a run that scores images says on standard error: failures, how far it is, and at last what came of it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from .images import shown
from .results import Line

SHOWN_SECONDS = 0.2


def outcome(line: Line) -> str:
    """What an image's line counts as: `failed`, its verdict, or `answered` where it has none."""
    return "failed" if "error" in line else str(line.get("adversarial", {}).get("verdict", "answered"))


def failure(line: Line) -> str:
    """Why an image has no answer."""
    return f"{line['file']}: {line['error']['title']}: {line['error'].get('detail')}"


class Progress:
    """Counts images; the line that changes is there where standard error is a terminal.

    Args:
        images: of the whole run.
        quiet: only failures are told.

    Attributes:
        counts: images by `outcome`; `before` are those that an earlier run has answered.
    """

    def __init__(self, images: int, quiet: bool) -> None:
        self._images, self._quiet = images, quiet
        self._begun = self._shown = time.monotonic()
        self.counts: Counter[str] = Counter()

    def begin(self) -> None:
        """The first image is asked for now."""
        self._begun = time.monotonic()

    def add(self, counts: Mapping[str, int], failures: Sequence[str] = ()) -> None:
        """So many images more, and a line on each of them that failed."""
        self.counts.update(counts)
        if failures:
            self.clear()
        for line in failures:
            print(shown(line), file=sys.stderr)
        if self._changes and time.monotonic() - self._shown > SHOWN_SECONDS:
            self._shown = time.monotonic()
            print(f"\r\x1b[K{self._line()}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away, for another."""
        if self._changes:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The run is over."""
        self.clear()
        if not self._quiet:
            print(self._line(), file=sys.stderr)

    @property
    def _changes(self) -> bool:
        return sys.stderr.isatty() and not self._quiet

    def _line(self) -> str:
        done, seconds = self.counts.total(), time.monotonic() - self._begun
        rate = (done - self.counts["before"]) / seconds if seconds else 0.0
        digits = 0 if rate >= 10 else 1
        counts = ", ".join(f"{count} {what}" for what, count in self.counts.items())
        return f"{done} of {self._images} images in {seconds:.1f} s ({rate:.{digits}f} a second): {counts or 'none'}"
