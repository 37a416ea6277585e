"""Reads findings back from a journal's folder: each with its last event and its mark, over all chains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .chain import chains, read_line, segments
from .ocsf import ACTIVITY_IDS, Mark, changed

Event = dict[str, Any]


class Found(NamedTuple):
    """A finding: its last event that is no mark, and the last mark."""

    event: Event
    mark: Mark | None

    @property
    def id(self) -> str:
        return str(self.event["finding_info"]["uid"])

    @property
    def about(self) -> dict[str, Any]:
        """What OCSF has no attribute for."""
        return dict(self.event["unmapped"]["awnet"])


def events(folder: Path, newest_segments: int | None = None) -> Iterator[Event]:
    """The events of one chain in their order; what is no line, or was changed, is passed over. Raises OSError."""
    return (event for _, event in lines(folder, newest_segments))


def lines(folder: Path, newest_segments: int | None = None, about: bytes = b"") -> Iterator[tuple[bytes, Event]]:
    """As `events`, each with its line as it was written; only of lines that hold `about`."""
    paths = segments(folder)
    for path in paths if newest_segments is None else paths[-newest_segments:]:
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # no longer kept
            continue
        for raw in data.split(b"\n")[:-1]:
            line = read_line(raw) if about in raw else None
            if line is not None and line.intact:
                yield raw, line.document


def findings(folder: Path, newest_segments: int | None = None) -> list[Found]:
    """Every finding of a journal, the newest first. Raises OSError.

    Args:
        newest_segments: of each chain are read; None: all.
    """
    last: dict[str, Event] = {}
    marks: dict[str, tuple[int, Mark]] = {}
    for chain in chains(folder):
        for event in events(chain, newest_segments):
            uid, at = event["finding_info"]["uid"], event["time"]
            mark = event["unmapped"]["awnet"].get("mark")
            if mark is not None and at >= marks.get(uid, (0, mark))[0]:
                marks[uid] = at, mark
            # A mark repeats what was there, in whatever chain it stands: it is only used where nothing else is kept.
            known = last.get(uid)
            if known is None or "mark" in known["unmapped"]["awnet"] or (mark is None and at >= known["time"]):
                last[uid] = event
    found = [Found(event, marks[uid][1] if uid in marks else None) for uid, event in last.items()]
    return sorted(found, key=lambda one: -one.event["time"])


def left_open(chain: Path) -> Iterator[Event]:
    """The end of each finding in a chain that its process did not live to tell."""
    last: dict[str, Event] = {}
    for event in events(chain, 2):
        if "mark" in event["unmapped"]["awnet"]:
            continue
        last[event["finding_info"]["uid"]] = event
    now = time.time_ns() // 1_000_000
    for event in last.values():
        if event["activity_id"] != ACTIVITY_IDS["close"][0]:
            message = f"{event['message']}; its process has ended, and what came after its last event is not counted"
            yield changed(event, "close", now, message)
